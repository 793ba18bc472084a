"""C6: heads look at different feature spaces, so that together they see from several sides."""

from collections.abc import Mapping, Sequence
from math import isnan, nan
from typing import ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from headscope.errors import AnatomyError
from headscope.likeness.measures.cka import Cka
from headscope.reporting.figures import count_curves, layer_panels
from headscope.statistics.moments import Moments
from headscope.statistics.pair_sums import PairSums
from headscope.studies.bilingual import NOTHING, Both, joined
from headscope.studies.claims import (
    CLAIMS,
    FAILS,
    HOLDS,
    SEEDS_DRAWN,
    Measured,
    ModelClaim,
    Verdict,
    in_part,
    undecided,
)
from headscope.studies.headcount.results import Sweep
from headscope.studies.headcount.telling import mean_table
from headscope.studies.layers import Layer, kind_of, layer_table, named, of_layers, spans
from headscope.studies.subjects import Subject
from headscope.surplus.effective import effective_maps, effective_spread
from headscope.uncertainty.intervals import Spread

__all__ = ["Diversity"]

_HALF = 0.5  # of the way from all alike to no two alike: more unlike than alike
_SEVERAL = 2.0  # different maps: more than one side to see from
_ENDS = ("", "_low", "_high")
_SIDES = (Both("outputs", "出力"), Both("maps", "マップ"))
_PASS = ["outputs_pass", "maps_pass"]  # 1 = it does, 0 = it does not, ½ = it cannot be told


@CLAIMS.register("C6")
class Diversity(ModelClaim):
    """How many unrelated outputs, and how many different maps, the heads of a layer amount to."""

    kind: ClassVar[str] = "experiment"
    beside_untrained: ClassVar[bool] = True
    about: ClassVar[Both] = Both("different feature spaces", "異なる特徴空間")
    says: ClassVar[Both] = Both(
        "Each head works in a feature space of its own; together they see relations between tokens from many sides.",
        "各ヘッドは異なる特徴空間で独自に情報を処理し、トークン間の関係を多角的に評価する。",
    )
    where_ja: ClassVar[str] = "マルチヘッドアテンションの概要"
    means: ClassVar[Both] = Both(
        "Twelve heads that all did the same would be worth one head. It is counted how many different ones the heads "
        "of a layer are worth, once by what they put out and once by where they look. The line is half of the way "
        "from all alike to all different for outputs, and two different ones for maps.",
        "たとえば12個のヘッドがすべて同じことをしていれば、1個分の価値しかありません。"
        "層のヘッドが互いに異なる何個分に相当するかを、出力と注意の向け先(マップ)の両方で数えます。基準は、"
        "出力が「すべて同じ」と「すべて異なる」の中間以上、マップが2個分以上です。",
    )
    measured: ClassVar[Both] = Both(
        "Outputs z of every two heads of a layer are compared by linear CKA over the text (0 to 1, the same under "
        "rotation and scale; Kornblith et al. 2019, arXiv:1905.00414), maps by the Jensen-Shannon divergence of their "
        "rows (Lin 1991). From either matrix of likeness follows an effective number: the exponential of the entropy "
        "of its eigenvalues (Friedman and Dieng 2023, arXiv:2210.02410), 1 if all N are alike and N if no two are. "
        "For outputs it is told as the way from all alike to no two alike, (effective − 1) / (N − 1). Beside both "
        "stands the same of untrained copies of the model, on the same text; beside maps that on random tokens too.",
        "層の中のヘッドを2個ずつ比べます。出力zは線形CKA(2組の出力の似ている度合いを0〜1で表し、"
        "回転や拡大では変わらない値。Kornblithら2019、arXiv:1905.00414)、"
        "マップは行ごとのJensen-Shannonダイバージェンス(Lin 1991)で比べます。"
        "どちらの類似度行列からも有効数が求まります(固有値のエントロピーをHとしてexp(H)、Friedman・Dieng 2023、"
        "arXiv:2210.02410)。N個がすべて同じなら1、どの2個も似ていなければNです。出力については(有効数−1)÷(N−1)"
        "で示します。比較対象として、同じテキストを与えた未学習の複製での値を、"
        "マップについてはランダムなトークンでの値も示します。",
    )
    unit: ClassVar[Both] = Both(
        "outputs: (effective heads − 1) / (heads − 1), mean over layers",
        "出力の(有効ヘッド数−1)÷(ヘッド数−1)(層の平均)",
    )
    interval: ClassVar[Both] = Both(
        "over documents, the mean over layers of each layer's 95% ends (at least 95% for the mean)",
        "文書についての各層の95%区間の両端を層で平均したもの(平均の区間としては95%以上)",
    )
    rule: ClassVar[Both] = Both(
        "it holds if in every layer outputs come to at least half of the way and maps to at least two different ones "
        "(of fewer than three heads: to half of the way), each with its whole interval; it does not if every layer "
        "clearly fails by both; it is not decided where no layer passes by either and some interval spans its line; "
        "else it holds in part, and the layers are named",
        "すべての層で、出力が半分以上かつマップが2個分以上(ヘッドが3個未満なら半分以上)であり、"
        "どちらも区間の下端で満たせば成り立つ。すべての層でどちらも明らかに(区間の上端でも)"
        "満たさなければ成り立たない。どちらかを満たす層が1つもなく、基準をまたぐ区間があれば未判定。"
        "それ以外は一部で成り立つ(満たさない層を示す)",
    )
    drawn: ClassVar[Both] = (
        Both(
            "Left: outputs, right: maps, each as an effective number over the number of heads. Bars: 95% over "
            "documents, of one model. Dots: the trained model; squares: untrained copies; diamonds: random tokens. "
            "Dotted: the rule, for outputs half of the way from all alike to all different, (N + 1) / 2N on this "
            "axis, for maps two of N heads.",
            "左は出力、右はマップ(いずれも有効数÷ヘッド数)。縦棒は文書についての95%区間(1モデルのとき)、"
            "四角は未学習の複製、ひし形はランダムなトークン、点線は判定基準(出力は「すべて同じ」と「すべて異なる」"
            "の中間で、この縦軸では(N+1)/(2N)。マップは2個分、つまり2/N。Nはヘッド数)。丸は学習済みのモデル。",
        )
        + SEEDS_DRAWN
    )
    follows: ClassVar[Both] = Both(
        "Readers infer that training makes heads differ, and that heads which differ are all needed. The first is told "
        "by the untrained copies, the second by C9 and C12.",
        "「学習によってヘッドが分化する」「異なるヘッドはすべて必要だ」と読まれがちです。"
        "前者は未学習の複製との比較で、後者はC9とC12"
        "で確かめます。",
    )
    limits: ClassVar[Both] = Both(
        "The two lines are unlike: two different maps of twelve are 9% of the way from all alike to all different, "
        "where outputs must come half of the way. CKA sees linear likeness of outputs on this text, two heads at a "
        "time: what no other head has, several may have together (C9). Few tokens make heads look more alike than "
        "they are. What single heads look at is told by `headscope.roles`.",
        "2つの基準の厳しさは異なります。12個中2個分のマップは、「すべて同じ」から「すべて異なる」までの9%にすぎず、"
        "出力には50%を求めています。CKAで分かるのは、このテキストでの出力の線形な類似だけです。"
        "また2個ずつの比較なので、どの1個にもない情報を複数のヘッドが合わせて持つことはあります(C9)。"
        "トークンが少ないと実際より似て見えます。個々のヘッドが何を見ているかは`headscope.roles`で調べられます。",
    )
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def measure(self, subject: Subject) -> Measured:
        layers = [layer for layer, blocks in subject.moments.items() if len(Moments.total(blocks).dims) > 1]
        if not layers:
            raise AnatomyError("no layer has two heads to compare")
        maps = subject.maps
        table = pd.DataFrame([_row(subject, layer, maps.get(layer, ())) for layer in layers])
        random = [float(effective_maps(subject.random_maps.get(layer, ())).centre) for layer in layers]
        table = table.assign(maps_random=random, **_untrained(subject, layers))
        passed = {f"{name}_fit": float((table[name] == 1).sum()) for name in _PASS}
        effect, low, high = (float(table[f"share{end}"].mean()) for end in _ENDS)
        numbers = {
            "layers": float(len(table)), "heads": float(table["n_heads"].mean()), **passed,
            "both": float((table[_PASS] == 1).all(axis=1).sum()),
            "neither": float((table[_PASS] == 0).all(axis=1).sum()),
            **{name: float(table[name].mean()) for name in _MEANS},
            **{name: float(table.loc[table["maps"].notna(), name].mean(skipna=False)) for name in _MAPS_BESIDE},
            **{named(name, layer): passes for name in _PASS for layer, passes in _passing(subject, table, name)},
        }  # fmt: skip
        return Measured(effect, subject.over, numbers, table, low, high)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        layers = words["layers"]
        if words["both"] == layers:
            return HOLDS
        if words["neither"] == layers:
            return FAILS
        if not words["outputs_pass_fit"] and not words["maps_pass_fit"]:
            return undecided(Both("more text", "テキストが足りない"))
        parts = []
        for what, name in zip(_SIDES, _PASS, strict=True):
            fit, spanning = words[f"{name}_fit"], sum(0 < passes < 1 for passes in of_layers(words, name).values())
            untold = Both(f", {spanning} not told", f"、{spanning}層は未判定") if spanning else NOTHING
            parts.append(
                Both(
                    f"{what.en} in {fit:.3g} of {layers:g} layers{untold.en}",
                    f"{what.ja}は{layers:g}層中{fit:.3g}層{untold.ja}",
                )
            )
        return in_part(joined(parts, "; ", "、"))

    def say(self, words: Mapping[str, float]) -> Both:
        heads, effective, maps = (f"{words[name]:.3g}" for name in ("heads", "effective", "maps"))
        share, cka = f"{words['effect']:.0%}", f"{words['cka']:.2f}"
        counted = Both(
            f"By their outputs the {heads} heads of a layer are worth {effective} different ones: {share} of the way "
            f"from all alike to no two alike, with a mean CKA of two heads of {cka}. By their maps they are worth "
            f"{maps}.",
            f"層の{heads}個のヘッドは、出力では互いに異なる{effective}個分(すべて同じを0%、"
            f"すべて異なるを100%とすると{share})、マップでは{maps}個分に相当します。"
            f"2個のヘッドの出力の似ている度合い(CKA、最大1)は平均{cka}です。",
        )
        beside = NOTHING
        if not isnan(words["maps_random"]):
            random = f"{words['maps_random']:.3g}"
            beside = Both(
                f"On random tokens maps are worth {random}. As far as the two agree, the number of different maps does "
                "not depend on what the text means.",
                f"意味のないランダムなトークンでは、マップは{random}個分です。両者が近ければ、"
                "異なるマップの数は、文章の意味にほとんどよりません。",
            )
        return joined([counted, beside, _failing(words)])

    def headline(self, words: Mapping[str, float]) -> Both:
        heads, effective, maps = (f"{words[name]:.3g}" for name in ("heads", "effective", "maps"))
        return Both(
            f"The {heads} heads of a layer are worth {effective} different ones by their outputs, and {maps} by their "
            "maps.",
            f"層の{heads}個のヘッドは、出力では{effective}個分、マップでは{maps}個分の異なるヘッドに相当します。",
        )

    def tabled(self, table: pd.DataFrame) -> Both:
        columns = {
            "layer": Both("layer", "層"), "effective": Both("by outputs", "出力で何個分か"),
            "effective_low": Both("low end", "区間の下端"), "untrained": Both("untrained", "未学習"),
            "maps": Both("by maps", "マップで何個分か"), "maps_low": Both("low end", "区間の下端"),
            "untrained_maps": Both("untrained", "未学習"), "maps_random": Both("random tokens", "ランダムなトークン"),
        }  # fmt: skip
        return layer_table(table, columns, "{:.3g}".format)

    def follow(self, words: Mapping[str, float]) -> Both:
        if isnan(words["untrained"]):
            return NOTHING
        trained, untrained, maps, own = (f"{words[name]:.3g}" for name in _BESIDE)
        return Both(
            f"Untrained copies of the model are worth {untrained} different heads by their outputs, and "
            f"{maps} by their maps; the trained model is worth {trained} and {own}.",
            f"未学習の複製は出力で{untrained}個分、マップで{maps}個分です。学習済みのモデルは出力で{trained}個分、"
            f"マップで{own}個分"
            "です。",
        )

    def beside(self, sweep: Sweep) -> tuple[Both, Mapping[str, Figure]]:
        own = sweep.runs[sweep.runs["effective_heads"].notna()]
        if own.empty:
            return NOTHING, {}
        table = mean_table(own, "effective_heads", lambda mean: f"{mean:.3g}", beside="effective_heads_untrained")
        told = Both(
            "Effective heads of a layer, by the number of heads that it has (in brackets: before training, where that "
            f"was measured):\n\n{table.en}",
            f"層の有効ヘッド数(ヘッド数ごと。括弧内は学習前の値で、測定した場合のみ):\n\n{table.ja}",
        )
        return told, {
            "effective_heads": count_curves(
                sweep.runs,
                "effective_heads",
                label="effective heads",
                beside=("effective_heads_untrained", "before training"),
            )
        }

    def draw(self, table: pd.DataFrame) -> Figure:
        per_head = table.assign(
            **{
                f"{name}{end}": table[f"{source}{end}"] / table["n_heads"]
                for name, source in (("out", "effective"), ("look", "maps"))
                for end in _ENDS
            },
            out_untrained=table["untrained"] / table["n_heads"],
            look_untrained=table["untrained_maps"] / table["n_heads"],
            look_random=table["maps_random"] / table["n_heads"],
        )
        half = float(((1 + (table["n_heads"] - 1) * _HALF) / table["n_heads"]).mean())
        several = float((table["n_heads"].map(_enough) / table["n_heads"]).mean())
        panels = {
            "outputs": ({"out": "trained", "out_untrained": "untrained copies"}, half),
            "maps": (
                {"look": "trained", "look_untrained": "untrained copies", "look_random": "random tokens"}, several,
            ),
        }  # fmt: skip
        return layer_panels(per_head, panels, label="effective number over heads")


_MEANS = ("effective", "cka", "maps", "untrained")
_MAPS_BESIDE = ("maps_random", "untrained_maps")  # in every layer with maps, or in none: means of the same layers
_BESIDE = ("effective", "untrained", "untrained_maps", "maps")


def _enough(n_heads: float) -> float:
    """How many different maps are several, of so many heads."""
    return min(_SEVERAL, 1 + (n_heads - 1) * _HALF)


def _row(subject: Subject, layer: int, maps: Sequence[PairSums]) -> dict[str, float]:
    """One layer: effective numbers with their ends, and whether each passes."""
    blocks = subject.moments[layer]
    whole = Moments.total(blocks)
    n_heads = len(whole.dims)
    effective = _ends(effective_spread(blocks))
    looks = _ends(effective_maps(maps))
    share = [(end - 1) / (n_heads - 1) for end in effective]
    alike = Cka().compare({"moments": whole})[np.triu_indices(n_heads, 1)]
    return {
        "layer": layer, "n_heads": n_heads, "cka": float(np.nanmean(alike)),
        **{f"effective{end}": value for end, value in zip(_ENDS, effective, strict=True)},
        **{f"share{end}": value for end, value in zip(_ENDS, share, strict=True)},
        **{f"maps{end}": value for end, value in zip(_ENDS, looks, strict=True)},
        "outputs_pass": _passes(share, _HALF), "maps_pass": _passes(looks, _enough(n_heads)),
    }  # fmt: skip


def _passes(ends: Sequence[float], least: float) -> float:
    middle, low, high = ends
    if isnan(middle) or isnan(low):
        return 0.5
    return 1.0 if low >= least else 0.0 if high < least else 0.5


def _ends(spread: Spread) -> tuple[float, float, float]:
    low, high = spread.interval()
    return float(spread.centre), float(low), float(high)


def _untrained(subject: Subject, layers: Sequence[int]) -> dict[str, list[float]]:
    """The same of untrained copies: means over them, a layer each."""
    found: dict[str, list[float]] = {"untrained": [], "untrained_maps": []}
    for layer in layers:
        outputs = [float(effective_spread(one.moments[layer]).centre) for one in subject.untrained]
        looks = [float(effective_maps(one.maps[layer]).centre) for one in subject.untrained if layer in one.maps]
        found["untrained"].append(float(np.mean(outputs)) if outputs else nan)
        found["untrained_maps"].append(float(np.mean(looks)) if looks else nan)
    return found


def _passing(subject: Subject, table: pd.DataFrame, name: str) -> list[tuple[Layer, float]]:
    """Each layer, and whether it passes."""
    kinds = {site.layer: kind_of(site) for site in subject.anatomy.sites}
    return [(Layer(kinds[layer], layer), float(passes)) for layer, passes in table.set_index("layer")[name].items()]


def _failing(words: Mapping[str, float]) -> Both:
    """The layers that do not pass, and those of which it cannot be told, by name."""
    found = []
    for what, name in zip(_SIDES, _PASS, strict=True):
        for clear in (True, False):
            every = of_layers(words, name).items()
            layers = [layer.number for layer, passes in every if (passes == 0 if clear else 0 < passes < 1)]
            if layers:
                told = spans(layers)
                how = Both("below the line", "基準に届かない") if clear else Both("across the line", "基準をまたぐ")
                lies = "layers {} lie" if len(layers) > 1 else "layer {} lies"
                found.append(
                    Both(f"by {what.en} {lies.format(told.en)} {how.en}", f"{what.ja}で{how.ja}のは層{told.ja}")
                )
    if not found:
        return NOTHING
    several = joined(found, "; ", "、")
    return Both(f"{several.en[:1].upper()}{several.en[1:]}.", f"{several.ja}です。")
