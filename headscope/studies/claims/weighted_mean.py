"""C3: a head's output is the mean of the values, weighted by its map."""

from collections.abc import Iterator, Mapping
from typing import ClassVar

from headscope._support.formatting import number
from headscope.anatomy.check import for_each_head
from headscope.studies.bilingual import Both
from headscope.studies.claims import CLAIMS, WORKED
from headscope.studies.made_again import MadeAgain, apart
from headscope.studies.subjects import Subject
from headscope.text.batches import kept_positions

__all__ = ["WeightedMean"]


@CLAIMS.register("C3")
class WeightedMean(MadeAgain):
    """What leaves a head, made again from its map and its values."""

    about: ClassVar[Both] = Both("z = map · V", "バリューの加重平均")
    says: ClassVar[Both] = Both(
        "A head's output is the weighted mean of the values, for example a matrix of 10 tokens × 64.",
        "アテンションスコアでバリューを加重平均し、出力(例:10トークン×64次元)を得る。",
    )
    where_ja: ClassVar[str] = "アテンション出力の生成"
    means: ClassVar[Both] = Both(
        "Is what leaves a head the mean of the values, weighted by its map, and nothing else? Where it is, a head can "
        "only mix what the tokens' values hold.",
        "ヘッドの出力が、マップで重み付けしたバリューの平均そのものかを調べます。"
        "そうであれば、ヘッドにできるのは各トークンのバリューを混ぜることだけです。",
    )
    measured: ClassVar[Both] = (
        Both(
            "Maps, values and each head's output z are captured from the model's own forward pass, whichever kernel "
            "it runs. map · V is computed again in float64 and held against z (Vaswani et al. 2017, equation 1).",
            "モデル自身の順伝播から、カーネルの種類によらず、マップ、バリュー、各ヘッドの出力zを取り出します。"
            "マップ·Vをfloat64で計算し直し、zと比べます(Vaswaniら2017、式1)。",
        )
        + WORKED
    )
    limits: ClassVar[Both] = Both(
        "A few short texts. A gate (a factor on a head's output) that is applied after the mean is not part of z.",
        "数本の短いテキストで測った値です。平均の後に掛けるゲート(ヘッドの出力を弱める係数)はzに含みません。",
    )

    def compare(self, subject: Subject) -> Iterator[dict[str, float]]:
        for layer, own in subject.look("v", "pattern", "z").items():
            values = for_each_head(own.v, own.site.kv_of_query).double()
            tokens = int(kept_positions(subject.few, own.site.kind, own.z.shape[2]).sum(1).max())
            row = apart(layer, own.pattern.double() @ values, own.z, own.v)
            yield row | {"tokens": tokens, "dims": own.z.shape[3]}

    def found(self, words: Mapping[str, float]) -> Both:
        gap, tokens, dims = number(words["effect"]), words["largest_tokens"], words["largest_dims"]
        return Both(
            f"Map times values is every head's output, here up to {tokens:g} tokens × {dims:g}, to within {gap} of a "
            "layer's largest.",
            f"マップとバリューの積と各ヘッドの出力(ここでは最大{tokens:g}トークン×{dims:g}次元)との差は、"
            f"その層の出力の絶対値の最大値の{gap}倍以内です。",
        )
