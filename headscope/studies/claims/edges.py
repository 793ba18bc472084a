"""C15: the attention weight says how important one token is to another."""

from collections.abc import Mapping
from functools import partial
from math import ceil, inf, isnan
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import rankdata
from scipy.stats import t as student
from torch import Tensor

from headscope._support.formatting import count, fixed
from headscope.anatomy.weights import output_weights
from headscope.errors import AnatomyError, InputError
from headscope.reporting.figures import figure_of, paired_dots
from headscope.studies.bilingual import NOTHING, Both
from headscope.studies.claims import CLAIMS, FAILS, HOLDS, Measured, ModelClaim, Verdict, in_part, undecided
from headscope.studies.cuts import LEAST_KEYS, Place, exchanged, single_rows
from headscope.studies.subjects import Subject
from headscope.uncertainty.intervals import LEVEL, Spread, mean_spread

__all__ = ["Edges"]

_SIZE = 0.1  # of a rank correlation; why, `measured` says
_MANY = 1000  # documents: more are not counted up
_PLACES = ["document", "row", "layer", "head", "query", "keys"]
_LOSS = Both("the loss", "損失の増加")
_RANKS = ["difference", "own", "other", "length", "target", "target_other", "target_size"]
_signed = partial(fixed, digits=2)
_ORDERS = 0.5  # rank correlation from which on the weights put effects in order for the most part


@CLAIMS.register("C15")
class Edges(ModelClaim):
    """A query's weights, held against what cutting each of its edges does to the model's output and to its loss."""

    kind: ClassVar[str] = "experiment"
    about: ClassVar[Both] = Both("weights are importance", "スコアは重要度を表す")
    says: ClassVar[Both] = Both(
        "The attention score says how important each token is to another.",
        "アテンションスコアは、各トークンが他のトークンに対してどれだけ重要であるかを計算する。",
    )
    where_ja: ClassVar[str] = "アテンションスコアの計算"
    means: ClassVar[Both] = Both(
        "We take one token after another away from what a query looks at, and ask whether those with larger weights "
        "are missed more: more than others would be if they stood there with the same weights. If so, then the weight "
        "tells which tokens matter for what they are; if not, then it tells only how much of a token is taken.",
        "クエリが見ているトークンへのつながりを1本ずつ切り、アテンションの重みの大きいトークンほど影響が大きいか、"
        "しかも同じ重みで別のトークンがそこにあった場合よりも大きいかを調べます。そうであれば、"
        "重みはどのトークンが内容として重要かを示しており、そうでなければ、"
        "重みはトークンをどれだけ取り込むかを示しているだけです。",
    )
    measured: ClassVar[Both] = Both(
        "Heads and queries are drawn by seed, in up to 24 rows of text, no query of a head twice from the same row. "
        "Each edge of a query is cut in turn: the key's "
        "weight becomes 0, the others are made to sum to 1 again, and the model is run to its end. The effect is the "
        "length of the change of the model's output. Spearman's rank correlation, over the keys of the query, tells "
        "whether larger weights have larger effects (the question is that of Jain and Wallace 2019, arXiv:1902.10186)"
        ". Some of that is arithmetic: a head's output z is the weighted mean of values v, so cutting a key of weight "
        "w moves z by w / (1 − w) · (z − v), further for a larger w whatever v is. So each cut is made once more with "
        "the same weight and the value of another key, drawn by seed. What is left when that correlation is taken "
        "from the first, query by query, is what the weight says of the very token that it is given to. A difference "
        "of 0.1 is the least that counts: it is a change of order in 3 to 14 of 100 pairs of keys. The same weights "
        "are also held against the change of what the model is judged by: its loss, where it has one, which rises "
        "where the token was of use and falls where it did harm; else the distance (drift) to its intact output. "
        "Weight × length of what the value contributes (Kobayashi et al. 2020, arXiv:2004.10102) is told beside.",
        "ヘッドとクエリは、テキストの最大24行の中からシードで選び、同じ行の同じヘッドのクエリは重ねて選びません。1つのクエリについて、見ているキーを1つずつ切断します。"
        "そのキーの重みを0にし、残りの重みを合計1に直して、モデルを最後まで実行します。"
        "効果はモデルの出力の変化の大きさです。重みの大きいキーほど効果が大きいかを、"
        "クエリのキーについてのスピアマンの順位相関で表します(問いはJain・Wallace 2019、arXiv:1902.10186による)。"
        "ただし、その一部は計算上必ず生じます。ヘッドの出力zはバリューvの加重平均なので、"
        "重みwのキーを切断するとzはw/(1−w)·(z−v)だけ動き、vが何であってもwが大きいほど大きく動くからです。そこで、"
        "同じ重みのまま、シードで選んだ別のキーのバリューを使った切断も行います。"
        "この相関を最初の相関からクエリごとに引いた差だけが、重みがそのトークンの内容を見分けている証拠になります。"
        "差は0.1以上を意味のある大きさとします。これは、キーの組100のうち3〜14組の順序が入れ替わる程度です。さらに、"
        "同じ重みと、モデルの評価指標の変化との順位相関も求めます。評価指標は、損失があれば損失で、"
        "役に立っていたトークンを切れば上がり、害になっていたトークンを切れば下がります。損失がなければ、"
        "元の出力との距離(drift)です。参考として、重み×バリューの寄与の大きさ(Kobayashiら2020、arXiv:2004.10102)"
        "の相関も示します。",
    )
    unit: ClassVar[Both] = Both(
        "rank correlation of weight and effect, less that of the same weights with other keys' values",
        "重みと効果の順位相関から、同じ重みで別のキーのバリューを使ったときの順位相関を引いた差",
    )
    interval: ClassVar[Both] = Both("95%, over documents", "文書についての95%区間")
    rule: ClassVar[Both] = Both(
        "it holds if the difference is above 0.1 and the rank correlation of the weight with the effect on the loss "
        "(or distance) is above 0.1, both by their whole intervals; where the difference is below 0.1 so, it holds in "
        "part, for how far the output moves, if weights put the effects in order (a correlation above one half), and "
        "does not hold if they do not; where the interval of the difference spans 0.1 it is not decided; else it "
        "holds in part, for the output alone",
        "差と、重みと損失(または距離)への効果との順位相関が、ともに区間全体で0.1を超えるなら成り立つ。"
        "差の区間全体が0.1を下回る場合は、重みが切断効果の順序を決めていれば(相関が0.5超)"
        "出力が変わる大きさについてのみ一部で成り立ち、そうでなければ成り立たない。差の区間が0.1をまたぐなら未判定、"
        "それ以外は出力についてのみ一部で成り立つ",
    )
    drawn: ClassVar[Both] = Both(
        "A dot is a query. The first two rows: the rank correlation with cuts of its own edges, and with another key's "
        "value, joined by a line; the third: their difference; the fourth: the rank correlation with the effect on "
        "what the model is judged by. Diamonds: means with their 95% intervals, one for each training seed. Dotted: "
        "the size of 0.1.",
        "点は1つのクエリ。上の2行は、実際にそのキーを切ったときとの順位相関と、"
        "別のキーのバリューで切ったときとの順位相関で、同じクエリを線で結ぶ。3行目はその差、"
        "4行目は評価指標への効果との順位相関。ひし形は平均と95%区間(学習シードごと)。点線は大きさ0.1。",
    )
    follows: ClassVar[Both] = Both(
        "Readers take a bright cell of a map for a token that the model needs. One may say that cutting it moves the "
        "output further than cutting a dark one. One may not say that this is for what the token is, where any other "
        "with that weight would have moved it as far; nor that the prediction gets worse without it.",
        "マップの明るいセルは、モデルに必要なトークンだと読まれがちです。暗いセルより、切ったときに出力が大きく動く、"
        "とは言えます。"
        "しかし、同じ重みなら別のトークンでも同じだけ動くのであれば、そのトークンの内容が重要だからだとは言えません。"
        "また、それがないと予測が悪くなるとも言えません。",
    )
    limits: ClassVar[Both] = Both(
        "The difference can be no larger than what the arithmetic leaves: 1 less the correlation with other keys' "
        "values. Where that one is above 0.9, no weights could pass: the order of the effects already follows from the "
        "size of the weights, which is no evidence that tokens were told apart. A distance is a length as well, so it "
        "rises with the weight by the same arithmetic; a loss need not. Single edges, in rows of 48 tokens at the "
        "most. Ranks among a query's own keys: it says nothing of one head against another.",
        "差の上限は、計算上生じる分を除いた残り、つまり1から別のキーのバリューによる相関を引いた値です。"
        "その相関が0.9を超えていれば、どのような重みでも基準を満たせません。"
        "このとき切断効果の順序は重みの大きさだけで決まっており、トークンの内容を見分けた証拠にはなりません。"
        "距離も大きさの一種なので、同じ計算によって重みとともに増えますが、損失はそうとは限りません。"
        "最長48トークンの行で、切断は1つずつ行います。順位はクエリ自身のキーの間のもので、"
        "ヘッド同士の比較については何も示しません。",
    )
    bounds: ClassVar[tuple[float, float]] = (-2.0, 2.0)
    brief: ClassVar[bool] = False

    def measure(self, subject: Subject) -> Measured:
        sites = [site for site in subject.anatomy.apart.sites if site.kind != "cross" and not site.gated]
        if not sites:
            raise AnatomyError("no layer hands its heads' outputs to the projection as they are, so no edge can be cut")
        rng = np.random.default_rng(subject.seed)
        weights = output_weights(subject.model, subject.anatomy.apart)
        rows = []
        for number, (document, row) in enumerate(single_rows(subject, 8 if subject.quick else 24)):
            given = subject.judged_by.inputs(subject.model, row)
            seen = subject.look("pattern", "v", "z", batch=given)
            taken: list[Place] = []
            for _ in range(2 if subject.quick else 4):
                place = Place.draw(seen, sites, row, rng, taken)
                if place is not None:
                    taken.append(place)
                    own = weights[place.site.layer][place.head]
                    rows.append({"document": document, "row": number, **_ranks(subject, place, own, rng)})
        table = pd.DataFrame(rows, columns=[*_PLACES, *_RANKS]).dropna(ignore_index=True)
        if table.empty:
            raise InputError(f"no row has a query with {LEAST_KEYS} keys to look at, whose weights and effects differ")
        spread = _spread(table)
        low, high = spread.interval()
        means = dict(zip(_RANKS, spread.centre.tolist(), strict=True))
        numbers = {name: means[name] for name in _RANKS[1:]} | {
            **{
                f"{name}{end}": float(np.clip(ends[_RANKS.index(name)], -1.0, 1.0))
                for name in ("own", "target")
                for end, ends in (("_low", low), ("_high", high))
            },
            "distance": float(subject.judged_by.is_distance), "queries": float(len(table)),
            "keys": float(table["keys"].mean()), "documents": float(table["document"].nunique()),
        }  # fmt: skip
        over = count(table["document"].nunique(), "document")
        return Measured(means["difference"], over, numbers, table, float(low[0]), float(high[0]))

    def decide(self, words: Mapping[str, float]) -> Verdict:
        if words["high"] < _SIZE:
            return (
                in_part(Both("for how far the output moves", "出力が変わる大きさについてのみ"))
                if _orders(words)
                else FAILS
            )
        if words["low"] <= _SIZE:
            return undecided(_more(words))
        if words["target_low"] > _SIZE:
            return HOLDS
        return in_part(Both("for the output, not the metric", "出力についてのみ"))

    def say(self, words: Mapping[str, float]) -> Both:
        queries, keys = f"{words['queries']:.0f}", f"{words['keys']:.0f}"
        names = ("own", "other", "length", "effect", "target", "target_other", "target_size")
        own, other, by_length, effect, target, target_other, size = (_signed(words[name]) for name in names)
        judged = Both("the distance to its intact output", "元の出力との距離") if words["distance"] else _LOSS
        ends, target_ends = (_between(words[f"{of}low"], words[f"{of}high"]) for of in ("", "target_"))
        return Both(
            f"Over {queries} queries of {keys} keys on average, the weight's rank correlation with the effect of "
            f"cutting is {own}. With another key's value it is {other}, so the difference is {effect}{ends.en}. With "
            f"the effect on {judged.en} it is {target}{target_ends.en}; with another key's value, {target_other}; "
            f"with its size, whichever way it goes, {size}. Weight × length of the value comes to {by_length}.",
            f"{queries}個のクエリ(キーは平均{keys}個)で、重みと切断効果の順位相関は{own}です。"
            f"別のキーのバリューで切ると{other}なので、差は{effect}{ends.ja}です。"
            f"重みと{judged.ja}の順位相関は{target}{target_ends.ja}で、別のキーのバリューで切ると{target_other}、"
            f"増減を問わない大きさで比べると{size}です。重み×バリューの大きさと切断効果の順位相関は{by_length}です。",
        )

    def headline(self, words: Mapping[str, float]) -> Both:
        own, other, effect, loss = (_signed(words[name]) for name in ("own", "other", "effect", "target"))
        low, high = (_signed(words[name]) for name in ("low", "high"))
        ends = NOTHING if isnan(words["low"]) else Both(f" ({low} to {high})", f"({low}〜{high})")
        target = NOTHING  # a distance is a length as well, and tells no more
        if not words["distance"]:
            target = Both(
                f"; with the rise of the loss the rank correlation is {loss}", f"損失の増加との順位相関は{loss}です。"
            )
        first = Both(
            f"The rank correlation of a token's weight with how far cutting it moves the output is {own}",
            f"トークンの重みと、それを切ったときに出力が動く大きさとの順位相関は{own}です。",
        )
        if _orders(words):
            first = Both(
                f"Cutting a token with a larger weight moves the output further (rank correlation {own})",
                f"重みの大きいトークンを切るほど出力は大きく動きます(順位相関{own})。",
            )
        return Both(
            f"{first.en}; with another token's content under that weight it is {other}, a difference of "
            f"{effect}{ends.en}"
            f"{target.en}.",
            f"{first.ja}同じ重みで中身を別のトークンに替えると順位相関は{other}で、差は{effect}{ends.ja}です。{target.ja}",
        )

    def follow(self, words: Mapping[str, float]) -> Both:
        other, most = _signed(words["other"]), _signed(1 - words["other"])
        told = Both(
            f"Other keys' values alone come to {other} here, so that the difference could be {most} at the most.",
            f"ここでは別のキーのバリューだけで{other}に達するため、差は大きくても{most}です。",
        )
        if words["other"] <= 1 - _SIZE:
            return told
        return told + Both(
            "No weights could have passed: it shows what the arithmetic gives, and leaves no room for more.",
            "どのような重みでも基準を満たせませんでした。ここから分かるのは計算上必ず生じる分だけで、"
            "それ以上のことは言えません。",
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        rows = {
            "own": "weight and effect\nof cutting",
            "other": "the same, with\nanother key's value",
            "difference": "difference",
            "target": "weight and effect\non the metric",
        }
        seeds = table.groupby("training_seed") if "training_seed" in table else [(0, table)]
        ends = [(spread.centre, *spread.interval()) for spread in (_spread(own) for _, own in seeds)]
        means = {name: [[float(part[_RANKS.index(name)]) for part in one] for one in ends] for name in rows}
        sizes = {"difference": _SIZE, "target": _SIZE}
        label = "Spearman's rank correlation, over a query's keys"
        return figure_of(paired_dots(table, rows, means, sizes=sizes, label=label, noun="query"))


def _orders(words: Mapping[str, float]) -> bool:
    return words["own_low"] > _ORDERS


def _ranks(subject: Subject, place: Place, weight: Tensor, rng: np.random.Generator) -> dict[str, Any]:
    """One query's row of the table: rank correlations of its weights with what cuts do."""
    weights = place.weights.double().cpu().numpy()
    own, other = place.cut(subject, [np.arange(len(weights)), exchanged(len(weights), rng)])
    ranks = {
        "own": _spearman(weights, own.length), "other": _spearman(weights, other.length),
        "length": _spearman(weights * place.lengths(weight), own.length),
        "target": _spearman(weights, own.target), "target_other": _spearman(weights, other.target),
        "target_size": _spearman(weights, np.abs(own.target)),
    }  # fmt: skip
    return {
        "layer": place.site.layer, "head": place.site.head_ids[place.head], "query": place.query, "keys": len(weights),
        "difference": ranks["own"] - ranks["other"], **ranks,
    }  # fmt: skip


def _spread(table: pd.DataFrame) -> Spread:
    """Of the means of `_RANKS`, over documents."""
    return mean_spread(table[_RANKS].to_numpy(np.float64).T, table["document"].to_numpy())


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """NaN where either does not vary."""
    ranks = rankdata(a), rankdata(b)
    if min(rank.std() for rank in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def _more(words: Mapping[str, float]) -> Both:
    """How many documents would tell the difference from the size: errors fall with the root of their number.

    Over training seeds it is more seeds that would tell.
    """
    if (seeds := words.get("seeds", 1.0)) > 1:
        return Both(f"{2 * seeds:g} seeds or more", f"シード{2 * seeds:g}個以上が必要")
    documents, away, half = words["documents"], abs(words["effect"] - _SIZE), (words["high"] - words["low"]) / 2
    now, then = student.ppf((1 + LEVEL) / 2, [documents - 1, inf])  # with few documents an error is stretched further
    needed = documents * (half * then / now / away) ** 2 if away else inf
    if needed > _MANY:
        return Both(f"more than {_MANY} documents", f"{_MANY}件を超える文書が必要")
    return Both(f"about {ceil(needed)} documents", f"文書約{ceil(needed)}件が必要")


def _between(low: float, high: float) -> Both:
    """An interval in brackets; nothing where there is none."""
    if isnan(low) or isnan(high):
        return NOTHING
    return Both(f" ({_signed(low)} to {_signed(high)})", f"({_signed(low)}〜{_signed(high)})")
