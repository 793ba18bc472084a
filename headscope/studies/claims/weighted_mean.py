"""C3: a head's output is the mean of the values, weighted by its map."""

from collections.abc import Mapping
from math import inf
from typing import ClassVar

import pandas as pd
from matplotlib.figure import Figure

from headscope._support.formatting import number
from headscope.reporting.figures import figure_of, layer_dots
from headscope.studies.bilingual import Both
from headscope.studies.claims import CLAIMS, FAILS, HOLDS, ROUNDING, SEEDS_DRAWN, Measured, ModelClaim, Verdict
from headscope.studies.subjects import Subject
from headscope.text.batches import kept_positions

__all__ = ["WeightedMean"]


@CLAIMS.register("C3")
class WeightedMean(ModelClaim):
    """What leaves a head, made again from its map and its values."""

    kind: ClassVar[str] = "definition"
    about: ClassVar[Both] = Both("z = map · V", "バリューの加重平均")
    says: ClassVar[Both] = Both(
        "A head's output is the weighted mean of the values, for example a matrix of 10 tokens × 64.",
        "アテンションスコアでバリューを加重平均し、出力(例:10トークン×64次元)を得る。",
    )
    where_ja: ClassVar[str] = "アテンション出力の生成"
    means: ClassVar[Both] = Both("", "")
    measured: ClassVar[Both] = Both(
        "Maps, values and each head's output z are captured from the model's own forward pass, whichever kernel it "
        "runs; map · V is computed again in float64 (Vaswani et al. 2017, equation 1).",
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
    limits: ClassVar[Both] = Both("A few rows of text. A gate that is applied after the mean is not part of z.", "")
    bounds: ClassVar[tuple[float, float]] = (0.0, inf)

    def measure(self, subject: Subject) -> Measured:
        rows = []
        for layer, own in subject.look("v", "pattern", "z").items():
            site, z = own.site, own.z.double()
            groups = site.n_heads // own.v.shape[1]
            values = own.v.double()
            reads = (
                list(site.kv_of_query)
                if own.v.shape[1] == site.n_kv_heads
                else [h // groups for h in range(site.n_heads)]
            )
            apart = (own.pattern.double() @ values[:, reads] - z).abs().max() / z.abs().max()
            tokens = int(kept_positions(subject.few, site.kind, z.shape[2]).sum(1).max())
            rows.append({"layer": layer, "difference": float(apart), "tokens": tokens, "dims": z.shape[3]})
        table = pd.DataFrame(rows)
        worst = float(table["difference"].max())
        sizes = {"tokens": float(table["tokens"].iloc[0]), "dims": float(table["dims"].iloc[0])}
        return Measured(worst, f"{len(table)} layers", sizes, table)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        return HOLDS if words["effect"] <= ROUNDING else FAILS

    def say(self, words: Mapping[str, float]) -> Both:
        return Both(
            f"Map times values gives every head's output, here up to {words['tokens']:g} tokens × {words['dims']:g}, "
            f"to within {number(words['effect'])} of the largest.",
            "",
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        lines = {"rule": ROUNDING}
        return figure_of(
            layer_dots(table, {"difference": ""}, label="largest difference, relative", log=True, lines=lines)
        )
