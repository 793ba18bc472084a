"""C4: outputs are put side by side and mapped back to the width, which is a sum of what each head contributes."""

from collections.abc import Mapping
from math import inf
from typing import ClassVar

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from headscope._support.formatting import number
from headscope._support.running import run_model
from headscope.anatomy.features import feature_axis, features_last
from headscope.anatomy.linear import is_plain
from headscope.errors import AnatomyError
from headscope.reporting.figures import figure_of, layer_dots
from headscope.sites import Site
from headscope.studies.bilingual import Both
from headscope.studies.claims import CLAIMS, FAILS, HOLDS, ROUNDING, SEEDS_DRAWN, Measured, ModelClaim, Verdict
from headscope.studies.subjects import Subject
from headscope.watching.observation import capture

__all__ = ["Contributions"]


def _as_heads_have_it(out: Tensor, module: nn.Module, site: Site, shape: torch.Size) -> Tensor:
    """What a projection puts out, as (batch, position, width)."""
    rows = features_last(out, (feature_axis(module, out),)).detach()
    batch, positions, width = shape
    return rows.reshape(positions, batch, width).transpose(0, 1) if site.rows == "t b" else rows.reshape(shape)


@CLAIMS.register("C4")
class Contributions(ModelClaim):
    """The output projection's output, held against the sum of what its heads contribute."""

    kind: ClassVar[str] = "definition"
    about: ClassVar[Both] = Both("concatenation and projection", "連結と線形変換")
    says: ClassVar[Both] = Both(
        "The outputs of all heads are concatenated and mapped back to the width of the embedding.",
        "全ヘッドの出力を連結し、線形変換で元の埋め込み次元に再構成する。",
    )
    where_ja: ClassVar[str] = "ヘッドの連結と最終出力の生成"
    means: ClassVar[Both] = Both("", "")
    measured: ClassVar[Both] = Both(
        "Concatenation and one linear map are the same as a sum: head h adds W_Oʰ zʰ (Elhage et al. 2021, A "
        "mathematical framework for transformer circuits). The contributions captured are summed, the bias added, and "
        "the sum held against what the model's own projection puts out.",
        "",
    )
    unit: ClassVar[Both] = Both("largest difference, of the largest output", "最大の出力に対する最大差の比")
    rule: ClassVar[Both] = Both("supported if no output differs by more than 0.1% of the largest of its layer", "")
    drawn: ClassVar[Both] = (
        Both(
            "The largest difference in each layer, of the layer's largest output; the dotted line is the rule's 0.1%. ",
            "",
        )
        + SEEDS_DRAWN
    )
    limits: ClassVar[Both] = Both(
        "Layers whose heads are mixed before the projection have no such sum, and are left out.", ""
    )
    bounds: ClassVar[tuple[float, float]] = (0.0, inf)

    def measure(self, subject: Subject) -> Measured:
        every = subject.anatomy.apart.having("contribution").sites
        sites = [site for site in every if site.rows and not site.reads_by_operation]
        if not sites:
            raise AnatomyError(
                "in every layer heads are mixed before the output projection, or it is no module of its own"
            )
        rows = []
        for site in sites:
            assert site.output is not None
            out: list[Tensor] = []
            module = subject.model.get_submodule(site.output.module)
            handle = module.register_forward_hook(lambda _module, _args, output, out=out: out.append(output))
            try:
                with (
                    subject.running(),
                    capture(subject.model, ("contribution",), [site.layer], anatomy=subject.anatomy) as seen,
                ):
                    run_model(subject.model, subject.few)
                    summed = seen[site.layer].contribution.double().sum(1)
            finally:
                handle.remove()
            real = _as_heads_have_it(out[site.output_call], module, site, summed.shape).double()
            rest = (real - summed).flatten(0, -2)
            bias = getattr(module, "bias", None)
            if not isinstance(bias, Tensor):  # of what is no plain layer, whatever it adds everywhere
                bias = torch.zeros(1) if is_plain(module) else rest[0]
            apart = (rest - bias.detach().double()).abs().max()
            rows.append({"layer": site.layer, "difference": float(apart / real.abs().max())})
        table = pd.DataFrame(rows)
        worst = float(table["difference"].max())
        numbers = {"heads": float(sum(site.n_heads for site in sites)), "layers": float(len(sites))}
        return Measured(worst, f"{len(table)} layers", numbers, table)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        return HOLDS if words["effect"] <= ROUNDING else FAILS

    def say(self, words: Mapping[str, float]) -> Both:
        return Both(
            f"The contributions of {words['heads']:g} heads, with the bias, sum to what their layers put out, to within"
            f" {number(words['effect'])} of the largest.",
            "",
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        lines = {"rule": ROUNDING}
        return figure_of(
            layer_dots(table, {"difference": ""}, label="largest difference, relative", log=True, lines=lines)
        )
