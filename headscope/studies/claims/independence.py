"""C13: heads compute independently of each other."""

from collections.abc import Mapping
from math import isnan, nan
from typing import ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from headscope._support.formatting import count, number
from headscope.effects.ablation import ablate
from headscope.errors import AnatomyError
from headscope.reporting.figures import figure_of, layer_dots
from headscope.studies.bilingual import NOTHING, Both
from headscope.studies.claims import CLAIMS, WORKED, Measured, ModelClaim, Verdict, in_layers
from headscope.studies.layers import layer_table
from headscope.studies.subjects import Subject

__all__ = ["Independence"]

_MOST_LAYERS = 8  # that a head is removed in


@CLAIMS.register("C13")
class Independence(ModelClaim):
    """What removing a head does to the maps of the others."""

    kind: ClassVar[str] = "architecture"
    about: ClassVar[Both] = Both("independent heads", "ヘッドの独立性")
    says: ClassVar[Both] = Both(
        "Every head computes its attention independently of the others.", "アテンションの計算は各ヘッドが独立して行う。"
    )
    where_ja: ClassVar[str] = "アテンションスコアの計算"
    means: ClassVar[Both] = Both(
        "Does what one head does change the maps of the heads beside it? Where it does not, the heads of a layer can "
        "be computed in any order, and taking one out leaves the maps of the others as they are.",
        "1個のヘッドの働きが、同じ層の他のヘッドのマップを変えるかを調べます。"
        "変えなければ、同じ層のヘッドはどの順序でも計算でき、1個を除いても他のヘッドのマップはそのままです。",
    )
    measured: ClassVar[Both] = (
        Both(
            "The probe that finds a model's attention says whether each head's queries, keys and values are made "
            "apart from those of other heads. One head of a layer is switched off, and all maps are captured again. "
            "Those of its own layer must be the same to the last bit. Those of later layers are compared by total "
            "variation (half the summed difference of a query's weights: 0 = the same, 1 = nothing in common).",
            "各ヘッドのクエリ・キー・バリューが他のヘッドと混ざらずに作られるかは、"
            "アテンションを見つけるプローブが示します。"
            "さらに、ある層のヘッドを1個止めて、全マップを取り出し直します。"
            "同じ層のマップは最後の1ビットまで同じでなければなりません。"
            "後の層のマップは全変動距離(クエリごとの重みの差の絶対値の和の半分。0なら同じ、1なら共通部分なし)"
            "で比べます。",
        )
        + WORKED
    )
    unit: ClassVar[Both] = Both("largest change of another map in the layer", "同じ層の他のマップの最大変化")
    rule: ClassVar[Both] = Both(
        "it holds if in every layer nothing mixes the heads' queries, keys or values and removing a head changes no "
        "map of the layer in any bit; it does not hold if that is so in no layer; else it holds in part",
        "すべての層で、ヘッドのクエリ・キー・バリューが混ざらず、"
        "ヘッドを除いても同じ層のマップが1ビットも変わらなければ"
        "成り立ち、どの層でもそうでなければ成り立たず、それ以外は一部で成り立つ",
    )
    drawn: ClassVar[Both] = Both(
        "How far maps move, by how many layers they come after the removed head's own (0: its own layer). Faint "
        "marks: single removals; large marks: their mean.",
        "マップの変化量。横軸は、ヘッドを除いた層から何層後か(0は同じ層)。薄い印は除いたヘッドごとの値、"
        "大きい印はその平均。",
    )
    follows: ClassVar[Both] = Both(
        "Readers infer that a head is independent in the whole model. It is so within its layer only: later layers "
        "read what it wrote, and training ties all heads by one loss.",
        "ヘッドはモデル全体でも独立している、と読まれがちです。独立しているのは同じ層の中だけです。"
        "後の層はそのヘッドが書いた内容を読み、学習では全ヘッドが1つの損失で結び付いています。",
    )
    limits: ClassVar[Both] = Both(
        "A head is switched off after its map is made: that alone confirms the wiring, and could not show what mixes "
        "queries or keys before. A norm over all heads does, as in OLMo 2. One head of each of up to eight layers, on "
        "a few short texts.",
        "マップができた後でヘッドを除くので、これで確かめられるのは、"
        "ヘッドの出力が同じ層の他のマップに流れ込まないことだけです。"
        "マップができる前にクエリやキーが混ざっていても(OLMo 2のように全ヘッドにわたる正規化があると混ざります)、"
        "この方法では検出できません。そこで、混ざりの有無はモデルの構造から調べて判定に加えます。最大8層から1個ずつ、"
        "数本の短いテキストで測った値です。",
    )
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def measure(self, subject: Subject) -> Measured:
        sites = subject.anatomy.apart.sites
        if not sites:
            raise AnatomyError("no head of this model can be switched off alone")
        intact = subject.look("pattern")
        chosen = sorted({round(place) for place in np.linspace(0, len(sites) - 1, min(len(sites), _MOST_LAYERS))})
        rows = []
        for site in (sites[place] for place in chosen):
            with ablate(subject.model, [site.heads[0]], anatomy=subject.anatomy):
                without = subject.look("pattern")
            for layer, own in without.items():
                moved = (own.pattern.double() - intact[layer].pattern.double()).abs()
                rows.append(
                    {
                        "removed_in": site.layer, "layer": layer, "behind": layer - site.layer,
                        "largest": float(moved.max()), "variation": float(moved.sum(-1).mean() / 2),
                        "mixed": float(bool({"q", "k", "v"} & {*site.entangled})),
                    }
                )  # fmt: skip
        table = pd.DataFrame(rows)
        same, later = table[table["behind"] == 0], table[table["behind"] > 0]
        numbers = {
            "later": float(later["variation"].mean()) if len(later) else nan,
            "removed": float(len(chosen)),
            "kept": float(((same["largest"] == 0) & (same["mixed"] == 0)).sum()),
            "mixed": float(same["mixed"].sum()),
        }
        return Measured(float(same["largest"].max()), f"{count(len(chosen), 'head')} removed", numbers, table)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        return in_layers(words["kept"], words["removed"])

    def say(self, words: Mapping[str, float]) -> Both:
        most, mixed, asked = number(words["effect"]), words["mixed"], words["removed"]
        told = Both(
            "With a head removed, the maps of the other heads in its layer stay the same to the last bit.",
            "ヘッドを除いても、同じ層の他のヘッドのマップは最後の1ビットまで変わりません。",
        )
        if words["effect"]:
            told = Both(
                f"With a head removed, weights in the maps of the other heads in its layer change by up to {most}.",
                f"ヘッドを除くと、同じ層の他のヘッドのマップの重みが最大{most}変わります。",
            )
        together = Both(
            f"In {mixed:.3g} of {asked:g} layers the heads' queries, keys or values cannot be told apart: something, "
            "such "
            "as a norm over all heads, mixes them.",
            f"{asked:g}層中{mixed:.3g}層では、ヘッドのクエリ・キー・バリューを区別できません"
            "(全ヘッドにわたる正規化などで混ざっています)。",
        )
        return told + (together if mixed else NOTHING)

    def follow(self, words: Mapping[str, float]) -> Both:
        if isnan(words["later"]):
            return NOTHING
        moved = number(words["later"])
        return Both(
            f"With a head removed, the maps of later layers move by a total variation of {moved} on average.",
            f"ヘッドを除くと、後の層のマップは全変動距離で平均{moved}変わります。",
        )

    def tabled(self, table: pd.DataFrame) -> Both:
        behind = table.loc[table["behind"] >= 0]
        each = behind.groupby("behind")["variation"].agg(["mean", "min", "max"]).reset_index()
        columns = {
            "behind": Both("layers after the removed head's", "除いた層から何層後か"),
            "mean": Both("total variation, mean", "全変動距離の平均"), "min": Both("least", "最小"),
            "max": Both("most", "最大"),
        }  # fmt: skip
        return layer_table(each, columns, number, by="behind")

    def draw(self, table: pd.DataFrame) -> Figure:
        moved = table.loc[table["behind"] >= 0, ["behind", "variation"]]
        ax = layer_dots(moved.rename(columns={"behind": "layer"}), {"variation": ""}, label="total variation of maps")
        ax.set_xlabel("layers after the removed head's (0: its own)")
        return figure_of(ax)
