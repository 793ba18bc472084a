"""C2: a head's map is the softmax of its scaled scores, over all pairs of tokens."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from headscope._support.formatting import number
from headscope.errors import AnatomyError
from headscope.reporting.figures import figure_of, layer_dots
from headscope.sites import Site
from headscope.studies.bilingual import Both
from headscope.studies.claims import CLAIMS, FAILS, HOLDS, ROUNDING, SEEDS_DRAWN, Measured, ModelClaim, Verdict
from headscope.studies.subjects import Subject

__all__ = ["ScaledScores"]


@CLAIMS.register("C2")
class ScaledScores(ModelClaim):
    """The map made again from the captured queries and keys."""

    kind: ClassVar[str] = "definition"
    about: ClassVar[Both] = Both("softmax of scaled QKᵀ", "スケールしたQKᵀのソフトマックス")
    says: ClassVar[Both] = Both(
        "A head's attention is the softmax of the scaled products of its queries and keys, for all pairs.",
        "全トークン間について、クエリとキーの内積をスケールし、ソフトマックスを適用してアテンションスコアを得る。",
    )
    where_ja: ClassVar[str] = "アテンションスコアの計算"
    means: ClassVar[Both] = Both("", "")
    measured: ClassVar[Both] = Both(
        "Queries, keys, masks and maps are captured from the model's own forward pass; softmax(scale · QKᵀ + mask) is "
        "computed again in float64 and held against the captured map (Vaswani et al. 2017, equation 1). Rows must sum "
        "to 1.",
        "",
    )
    unit: ClassVar[Both] = Both("largest difference of a weight", "重みの最大差")
    rule: ClassVar[Both] = Both(
        "supported if no weight differs by more than 0.001 (rounding of float32 is some 0.000001)", ""
    )
    drawn: ClassVar[Both] = (
        Both(
            "The largest difference in each layer (0 stands on the floor of the axis), and how far a row's sum is "
            "from 1; "
            "the dotted line is the rule's 0.001.",
            "",
        )
        + SEEDS_DRAWN
    )
    limits: ClassVar[Both] = Both(
        "A few rows of text. Models that cap their scores, or add a sink, do more than the formula says.", ""
    )
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def measure(self, subject: Subject) -> Measured:
        seen = subject.look("q", "k", "bias", "pattern")
        rows = []
        for layer, own in seen.items():
            if np.isnan(own.site.scaling):
                continue
            made = _again(own.q, own.k, own.bias, own.site)
            apart, sums = (made - own.pattern.double()).abs(), own.pattern.double().sum(-1)
            rows.append({"layer": layer, "difference": float(apart.max()), "row_sum": float((sums - 1).abs().max())})
        if not rows:
            raise AnatomyError("no layer's scores are scaled by one number, so that its maps cannot be made again")
        table = pd.DataFrame(rows)
        worst = float(table["difference"].max())
        numbers = {"largest_row_sum": float(table["row_sum"].max()), "layers": float(len(table))}
        return Measured(worst, f"{len(seen)} layers", numbers, table)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        return HOLDS if words["effect"] <= ROUNDING else FAILS

    def say(self, words: Mapping[str, float]) -> Both:
        return Both(
            f"No weight of any map, made again from queries and keys, differs by more than {number(words['effect'])}; "
            f"rows sum to 1 to within {number(words['largest_row_sum'])}.",
            "",
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        series = {"difference": "weight made again", "row_sum": "row sum − 1"}
        return figure_of(layer_dots(table, series, label="largest difference", log=True, lines={"rule": ROUNDING}))


def _again(q: Tensor, k: Tensor, bias: Tensor, site: Site) -> Tensor:
    """softmax(scale · QKᵀ + mask), every query head with the key head that it reads."""
    keys = k[:, list(site.kv_of_query)].double()
    scores = site.scaling * q.double() @ keys.mT + bias.double()
    return torch.softmax(scores, dim=-1)
