"""C4: outputs are put side by side and mapped back to the width, which is a sum of what each head contributes."""

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from headscope._support.formatting import number
from headscope.anatomy.features import feature_axis, features_last
from headscope.anatomy.linear import is_plain
from headscope.errors import AnatomyError
from headscope.sites import Site
from headscope.studies.bilingual import Both
from headscope.studies.claims import CLAIMS, WORKED
from headscope.studies.made_again import MadeAgain, apart
from headscope.studies.subjects import Subject

__all__ = ["Contributions"]


def _as_heads_have_it(out: Tensor, module: nn.Module, site: Site, shape: torch.Size) -> Tensor:
    """What a projection puts out, as (batch, position, width)."""
    rows = features_last(out, (feature_axis(module, out),)).detach()
    batch, positions, width = shape
    return rows.reshape(positions, batch, width).transpose(0, 1) if site.rows == "t b" else rows.reshape(shape)


@CLAIMS.register("C4")
class Contributions(MadeAgain):
    """The output projection's output, held against the sum of what its heads contribute."""

    about: ClassVar[Both] = Both("concatenation and projection", "連結と線形変換")
    says: ClassVar[Both] = Both(
        "The outputs of all heads are concatenated and mapped back to the width of the embedding.",
        "全ヘッドの出力を連結し、線形変換で元の埋め込み次元に再構成する。",
    )
    where_ja: ClassVar[str] = "ヘッドの連結と最終出力の生成"
    means: ClassVar[Both] = Both(
        "Is what a layer puts out one linear map of the heads' outputs side by side, and nothing else? Where it is, "
        "it is also a sum with one term a head, so that a head can be judged and removed by itself.",
        "層の出力が、全ヘッドの出力を横に並べて1つの線形変換にかけたものかを調べます。"
        "そうであれば、層の出力はヘッドごとの項の和でもあり、ヘッドを1個ずつ評価し、除くことができます。",
    )
    measured: ClassVar[Both] = (
        Both(
            "Concatenation and one linear map are the same as a sum: head h adds W_Oʰ zʰ (Elhage et al. 2021, A "
            "mathematical framework for transformer circuits). The contributions captured are summed, the bias is "
            "added, and the sum is held against what the model's own projection puts out.",
            "連結して1つの線形変換にかけることは、ヘッドhがW_Oʰ zʰを足す和に等しくなります"
            "(Elhageら2021、A mathematical framework for transformer circuits)。取り出した寄与の和にバイアスを加え、"
            "モデル自身の射影の出力と比べます。",
        )
        + WORKED
    )
    limits: ClassVar[Both] = Both(
        "A few short texts. Layers whose heads are mixed before the projection have no such sum, and are left out.",
        "数本の短いテキストで測った値です。射影の前にヘッドを混ぜ合わせる層にはこの和がないため、除いています。",
    )

    def compare(self, subject: Subject) -> Iterator[dict[str, float]]:
        every = subject.anatomy.apart.having("contribution").sites
        sites = [site for site in every if site.rows and not site.reads_by_operation]
        if not sites:
            raise AnatomyError(
                "in every layer heads are mixed before the output projection, or it is no module of its own"
            )
        for site in sites:
            each, real, bias = _contributions_and_output(subject, site)
            summed = each.double().sum(1)
            added = real.double()[0, 0] - summed[0, 0] if bias is None else bias.double()
            yield apart(site.layer, summed + added, real, each) | {"heads": site.n_heads}

    def found(self, words: Mapping[str, float]) -> Both:
        gap, heads = number(words["effect"]), words["largest_heads"]
        return Both(
            f"The contributions of {heads:g} heads and the bias sum to what their layer puts out, to within {gap} of "
            "its largest.",
            f"{heads:g}個のヘッドの寄与とバイアスをすべて足した値と、層の出力との差は、"
            f"その層の出力の絶対値の最大値の{gap}倍以内です。",
        )


def _contributions_and_output(subject: Subject, site: Site) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a site's heads contribute, what its projection puts out, and its bias; None where it does not tell.

    Args:
        subject: the model and its text.
        site: whose output projection is a module.
    """
    assert site.output is not None
    out: list[Tensor] = []
    module = subject.model.get_submodule(site.output.module)
    handle = module.register_forward_hook(lambda _module, _args, output: out.append(output))
    try:
        each = subject.look("contribution", layers=[site.layer])[site.layer].contribution
    finally:
        handle.remove()
    real = _as_heads_have_it(out[site.output_call], module, site, each[:, 0].shape)
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor):
        return each, real, bias.detach()
    return each, real, each.new_zeros(()) if is_plain(module) else None  # what is no plain layer may add anything
