"""C2: a head's map is the softmax of its scaled scores, over all pairs of tokens."""

from collections.abc import Iterator, Mapping
from math import isnan
from typing import ClassVar

import torch
from torch import Tensor

from headscope._support.formatting import number
from headscope.anatomy.check import for_each_head
from headscope.errors import AnatomyError
from headscope.sites import Site
from headscope.studies.bilingual import Both
from headscope.studies.claims import CLAIMS, WORKED
from headscope.studies.made_again import MadeAgain, apart
from headscope.studies.subjects import Subject

__all__ = ["ScaledScores"]


@CLAIMS.register("C2")
class ScaledScores(MadeAgain):
    """The map made again from the captured queries and keys."""

    about: ClassVar[Both] = Both("softmax of scaled QKᵀ", "スケールしたQKᵀのソフトマックス")
    says: ClassVar[Both] = Both(
        "A head's attention is the softmax of the scaled products of its queries and keys, for all pairs.",
        "全トークン間について、クエリとキーの内積をスケールし、ソフトマックスを適用してアテンションスコアを得る。",
    )
    where_ja: ClassVar[str] = "アテンションスコアの計算"
    means: ClassVar[Both] = Both(
        "Does the paper's formula give a head's map from its queries, its keys and the mask? Where it does not, the "
        "model does more than the formula says.",
        "クエリ・キー・マスクから論文の式どおりに計算して、ヘッドのマップが得られるかを調べます。"
        "得られなければ、そのモデルは式にない処理をしています。",
    )
    measured: ClassVar[Both] = (
        Both(
            "Queries, keys, masks and maps are captured from the model's own forward pass. softmax(scale · QKᵀ + "
            "mask) is computed again in float64 and held against the captured map (Vaswani et al. 2017, equation 1). "
            "Beside it, how far the sum of a map's row is from 1.",
            "モデル自身の順伝播からクエリ、キー、マスク、マップを取り出します。"
            "softmax(スケール·QKᵀ+マスク)をfloat64で計算し直し、取り出したマップと比べます(Vaswaniら2017、式1)。"
            "マップの各行の和と1との差も示します。",
        )
        + WORKED
    )
    limits: ClassVar[Both] = Both(
        "A few short texts. Models that cap their scores, or add a sink (which takes weight and is no token), do more "
        "than the formula says.",
        "数本の短いテキストで測った値です。内積に上限を設けるモデルや、シンク(どのトークンでもない、重みの受け皿)"
        "を加えるモデルは、式にない処理をしています。",
    )

    def compare(self, subject: Subject) -> Iterator[dict[str, float]]:
        seen = subject.look("q", "k", "bias", "pattern")
        scaled = {layer: own for layer, own in seen.items() if not isnan(own.site.scaling)}
        if not scaled:
            raise AnatomyError("no layer's scores are scaled by one number, so that its maps cannot be made again")
        for layer, own in scaled.items():
            made, sums = _again(own.q, own.k, own.bias, own.site), own.pattern.double().sum(-1)
            yield apart(layer, made, own.pattern, own.q, own.k) | {"row_sum": float((sums - 1).abs().max())}

    def found(self, words: Mapping[str, float]) -> Both:
        gap, rows = number(words["effect"]), number(words["largest_row_sum"])
        return Both(
            f"Maps made again from queries and keys are the model's to within {gap} of a layer's largest weight; their "
            f"rows sum to 1 to within {rows}.",
            "クエリとキーから計算し直したマップとモデルのマップの差は、"
            f"その層のアテンションの重みの最大値の{gap}倍以内、マップの各行の和と1との差は{rows}以内です。",
        )


def _again(q: Tensor, k: Tensor, bias: Tensor, site: Site) -> Tensor:
    """softmax(scale · QKᵀ + mask), every query head with the key head that it reads."""
    keys = for_each_head(k, site.kv_of_query).double()
    return torch.softmax(site.scaling * q.double() @ keys.mT + bias.double(), dim=-1)
