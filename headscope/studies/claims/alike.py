"""C9: many heads learn the same, so that some are redundant."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import isnan, nan
from typing import ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import t as student

from headscope._support.formatting import percent
from headscope.effects.sweep import group_effects
from headscope.errors import AnatomyError, InputError
from headscope.planning.rises import Rise
from headscope.reporting.figures import count_curves, figure_of, removal_curves, sorted_dots
from headscope.scoring.scores import Rating
from headscope.statistics.moments import Moments
from headscope.studies.bilingual import NOTHING, Both, joined
from headscope.studies.claims import CLAIMS, FAILS, HOLDS, Measured, ModelClaim, Verdict, in_part, undecided
from headscope.studies.given import amount_of_text, done_by_training, ends_of_mean, given_most
from headscope.studies.headcount.results import Sweep
from headscope.studies.headcount.telling import mean_table
from headscope.studies.headcount.trends import more_alike, quality
from headscope.studies.layers import layer_table
from headscope.studies.shares import SHARE_INTERVAL, count_beyond
from headscope.studies.subjects import Subject
from headscope.uncertainty.intervals import LEVEL, ONE_DOCUMENT, Spread, jackknife_spread
from headscope.uncertainty.resampling import share_above
from headscope.verdict.preparation import Budget

__all__ = ["Alike"]

_MOST_OF_IT = 0.5  # of what varies in a head, that the rest of its layer gives
_UNTRAINED = Both("untrained copies to hold it against", "比べるための未学習の複製が必要")
_percent = partial(percent, digits=0)
_FEWEST = 2  # heads of which the others give most: likeness takes two


@CLAIMS.register("C9")
class Alike(ModelClaim):
    """How much of what varies in each head the rest of its layer gives, beyond chance."""

    kind: ClassVar[str] = "experiment"
    beside_untrained: ClassVar[bool] = True
    about: ClassVar[Both] = Both("redundancy", "ヘッド間の冗長性")
    says: ClassVar[Both] = Both(
        "Many heads may learn similar patterns, and redundancy arises. The model then gets less efficient, and quality "
        "does not always rise.",
        "多くのヘッドが同様のパターンを学習してしまうことがあり、冗長性が発生する。モデルの効率が下がり、必ずしも性能が"
        "向上しない場合がある。",
    )
    where_ja: ClassVar[str] = "ヘッド数が多すぎる場合の問題点"
    means: ClassVar[Both] = Both(
        "A head is redundant as far as the other heads of its layer, put together, give what it gives. It is asked "
        "how much of what varies in a head they give on texts that nothing was fitted on: 100% is a copy, 0% is no "
        "more than a constant gives. Whether heads get more alike as they become more, and whether quality fails to "
        "rise, no single model can tell: that takes models trained with few heads and with many.",
        "同じ層の残りのヘッドを合わせればそのヘッドの出力を再現できるとき、その分だけ冗長です。"
        "当てはめに使っていないテキストで、ヘッドの出力の変動のうち何%を残りのヘッドから再現できるかを測り"
        "ます(100%なら複製、0%なら定数と同じ)。ヘッドを増やすと互いに似てくるか、性能が上がらないかは、"
        "1つのモデルからは分からず、ヘッド数を変えて学習した結果で調べます。",
    )
    measured: ClassVar[Both] = Both(
        "Of every head, the share of what varies in its contribution that a linear map of its layer's other heads "
        "gives, fitted on one half of the documents and judged on the other (ridge regression; `headscope.importance`, "
        "replaceability). A constant that a head always writes needs no other head, and is told apart from it. Three "
        "things stand beside it. Chance: the same head beside what the others wrote at the same positions of other "
        "documents; below 0 the fit does worse than a constant, as fits on little text do. Untrained copies: the same "
        "model with weights drawn anew, several times, on the same text; the mean is held against what a further copy "
        "would come to; what is given there, architecture, initialisation and text give alone. And how many heads can "
        "go together as they are, at a cost of 1% of the loss, or of 0.01 where the metric is a distance to the intact "
        "model; ordered and judged on the same text, so that it is rather too many.",
        "各ヘッドの寄与の変動のうち、同じ層の残りのヘッドから線形変換で再現できる割合を測ります。"
        "文書の半分で当てはめ、残り半分で評価します(リッジ回帰、`headscope.importance`のreplaceability)。"
        "ヘッドが常に書き込む定数には他のヘッドが要らないので、別に数えます。比較対象は3つです。偶然の水準は、"
        "残りのヘッドの出力を、別の文書の同じ位置での出力に取り替えて同じことをした値です。負の値は、"
        "定数で答えるよりも外れたことを表します(テキストが少ないときに起こります)。未学習の複製は、"
        "同じ構造で重みだけを初期化し直したモデルに同じテキストを与えた値です。複数回初期化し、"
        "ヘッドの平均を、もう1つ複製を作ったときに取りうる値と比べます。"
        "構造と初期値とテキストだけで決まる分を表します。最後は、"
        "調整なしに損失1%(元のモデルとの距離で測る場合は0.01)の増加でまとめて除けるヘッド数です。"
        "順位付けと評価に同じテキストを使うため、やや多めに出ます。",
    )
    unit: ClassVar[Both] = Both(
        "share of heads of which the others give more than half of what varies, clearly or not; the verdict goes by "
        "the mean head, and by heads whose whole interval lies above half",
        "残りのヘッドから変動の半分超を再現できるヘッドの割合(区間が半分をまたぐヘッドも含む)。"
        "判定に使うのは全ヘッドの平均と、区間全体が半分を超えるヘッドの個数",
    )
    interval: ClassVar[Both] = SHARE_INTERVAL
    rule: ClassVar[Both] = Both(
        "it holds if (1) the mean head's share is clear of 0 and of chance, (2) the others give more than half of two "
        "heads at least, and (3) the mean is clearly above that of untrained copies, since heads are said to *learn* "
        "it; it does not if the whole interval of the mean lies at 0 or chance, or below; it holds in part where (1) "
        "holds and (2) or (3) fails; it is not decided where the mean's interval spans 0 or chance, and where (1) and "
        "(2) hold but there are no untrained copies. Clear is: by the whole interval",
        "次の3つをすべて満たせば成り立つ。(1)全ヘッドの平均の区間全体が0と偶然の水準を上回る、(2)"
        "区間全体が半分を超えるヘッドが2個以上ある、(3)平均が未学習の複製を明らかに上回る(論文は「学習してしまう」"
        "と述べているため)。(1)だけを満たし、(2)"
        "と(3)の一方または両方を満たさなければ一部で成り立つ。平均の区間全体が0または偶然の水準以下なら成り立たない。"
        "平均の区間が0か偶然の水準をまたぐとき、また(1)と(2)を満たすが未学習の複製がないときは未判定とする",
    )
    drawn: ClassVar[Both] = Both(
        "Every head from low to high; bars: 95% over documents. The dotted line is one half. Crosses: chance. Pluses: "
        "the mean of the same layer in untrained copies.",
        "ヘッドを値の小さい順に並べた。縦棒は文書についての95%区間、点線は半分。×は偶然の水準、"
        "+は未学習の複製の同じ層の平均。",
    )
    follows: ClassVar[Both] = Both(
        "Readers infer that training makes heads redundant, and that redundant heads can be taken out. Neither "
        "follows: an untrained copy tells what training added, and what the others *could* give they give only after a "
        "repair.",
        "「学習するとヘッドが冗長になる」「冗長なヘッドは取り除ける」と読まれがちですが、"
        "どちらもここからは言えません。学習による"
        "分は未学習の複製と比べて初めて分かり、残りのヘッドで再現できる分も、修復(重みの調整)をして初めて得られます。",
    )
    limits: ClassVar[Both] = Both(
        "Linear maps within one layer. With little text fits carry over badly, and less is given than could be: the "
        "median head of MiniLM comes to 0.17 on 18 tokens for each dimension of its layer, to 0.45 on 74 and to 0.55 "
        "on 272, so that shares of models are comparable at as much text alone. A chance far below 0 says the same; "
        "below 0 it adds nothing to the rule. The four query heads of a layer of Gemma 3 270M read one key and one "
        "value head; what sharing adds cannot be told here: it would take the same model without sharing, on as much "
        "text. The paper says that heads *can* come to be alike: a share that untrained weights reach as well is no "
        "case of it. Quality against the number of heads is judged under C7 and C11.",
        "1つの層の中の線形変換だけを見ています。テキストが少ないと当てはめが別の文書に通用せず、"
        "実際より低く出ます(MiniLMの中央のヘッドは、層の次元あたり18トークンで0.17、74トークンで0.45、"
        "272トークンで0.55)。モデル同士は、同じだけのテキストで測った値でなければ比べられません。"
        "偶然の水準が0を大きく下回るのも、テキストが足りないことの表れです(0より低い水準は、判定には影響しません)。"
        "Gemma 3 270Mでは同じ層の4個のクエリヘッドが1組のキーとバリューを共有しますが、"
        "共有がどれだけ効いているかは、ここでは分かりません。共有のない同じモデルを同じ量のテキストで測る必要があります。"
        "論文は「学習してしまうことがある」と述べています。未学習でも出る値は、その例にはなりません。"
        "ヘッド数と性能の関係はC7とC11で判定します。",
    )
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def measure(self, subject: Subject) -> Measured:
        rating = subject.replaced
        assert rating.spread is not None
        table, places = _rows(subject, rating)
        if table.empty and subject.n_documents < 2:
            raise InputError(ONE_DOCUMENT)
        if table.empty:
            raise AnatomyError("no head of this model varies beside others of its layer, so none can be given by them")
        own = rating.spread.take(places)
        drawn = [one.replaced.spread.take(places) for one in subject.untrained if one.replaced.spread is not None]
        effect, low, high = share_above(own, _MOST_OF_IT, seed=subject.seed)
        numbers = {
            "heads": float(len(table)), **count_beyond(table, "replaceability", _MOST_OF_IT),
            **{name: float(table[name].mean()) for name in ("chance", "constant", "restored")},
            **_means(own, drawn),
            "untrained_chance": _mean_chance(subject.untrained),
            **_foremost(table),
            "removable": nan if subject.evidence is not None else _removable(subject),
            "distance": float(subject.judged_by.is_distance),
            "tokens": _tokens_per_dimension(subject),
        }  # fmt: skip
        return Measured(effect, subject.over, numbers, table, low, high)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        beyond = [0.0, *([] if isnan(words["chance"]) else [words["chance"]])]
        if words["mean_low"] > max(beyond):
            short = []
            if words["above"] < _FEWEST:
                short.append(Both("a part of each head", "各ヘッドの一部分だけ"))
            given = _percent(words["mean"])
            if words["more_high"] < 0:
                short.append(Both(f"others give {given}, less than untrained", f"再現は{given}で未学習より低い"))
            elif words["more_low"] <= 0:
                short.append(Both(f"others give {given}, untrained too", f"再現は{given}で未学習でも同程度"))
            if short:
                return in_part(joined(short, "; ", "、"))
            return HOLDS if not isnan(words["untrained"]) else undecided(_UNTRAINED)
        if words["mean_high"] <= max(beyond):
            return FAILS
        return undecided(Both("more text", "テキストが足りない"))

    def say(self, words: Mapping[str, float]) -> Both:
        mean, constant, restored = (_percent(words[name]) for name in ("mean", "constant", "restored"))
        above, across, below = (f"{words[name]:.3g}" for name in ("above", "across", "below"))
        heads, ends, chance = f"{words['heads']:g}", ends_of_mean(words), NOTHING
        if not isnan(words["chance"]):
            by_chance = _percent(words["chance"])
            chance = Both(
                f"; heads of other documents give {by_chance}",
                f"(別の文書でのヘッドからは{by_chance})",
            )
        given = Both(
            f"The others give {mean}{ends.en} of what varies in a head on average{chance.en}.",
            f"残りのヘッドから再現できるのは、変動の平均{mean}{ends.ja}です{chance.ja}。",
        )
        counted = Both(
            f"Of {heads} heads the whole interval lies above one half for {above}, below it for {below}, and spans it "
            f"for {across}.",
            f"{heads}個のヘッドのうち、区間全体が半分を超えるのは{above}個、下回るのは{below}個、"
            f"半分をまたぐのは{across}個です。",
        )
        together = Both(
            f"A constant alone gives {constant} of all that a head writes, constant and others together {restored}.",
            f"定数だけで各ヘッドの出力全体の{constant}、定数と残りのヘッドを合わせて{restored}が得られます。",
        )
        return joined([given, counted, given_most(words), together, amount_of_text(words)])

    def headline(self, words: Mapping[str, float]) -> Both:
        mean, ends, untrained = _percent(words["mean"]), ends_of_mean(words), NOTHING
        if not isnan(words["untrained"]):
            drawn = _percent(words["untrained"])
            untrained = Both(f", in untrained copies {drawn}", f"、未学習の複製では{drawn}")
        return Both(
            f"The others give {mean}{ends.en} of what varies in a head on average{untrained.en}.",
            f"残りのヘッドから再現できるのは、変動の平均{mean}{ends.ja}{untrained.ja}です。",
        )

    def tabled(self, table: pd.DataFrame) -> Both:
        columns = {
            "layer": Both("layer", "層"), "replaceability": Both("others give, mean head", "再現率(ヘッドの平均)"),
            "chance": Both("chance", "偶然の水準"), "untrained": Both("untrained copies", "未学習の複製"),
            "constant": Both("a constant gives", "定数で得られる割合"),
        }  # fmt: skip
        return joined([layer_table(table, columns, _percent), _above_copies(table)], "\n\n", "\n\n")

    def follow(self, words: Mapping[str, float]) -> Both:
        learnt, gone = NOTHING, NOTHING
        if not isnan(words["untrained"]):
            learnt = done_by_training(words)
        if not isnan(words["removable"]):
            share = _percent(words["removable"])
            cost = (
                Both("a drift of 0.01", "driftを0.01")
                if words["distance"]
                else Both("1% of the loss", "損失の増加を1%")
            )
            gone = Both(
                f"{share} of the heads can go together as they are at a cost of {cost.en}, on the text that ordered "
                "them.",
                f"調整なしで、{cost.ja}以内に抑えてまとめて除けるのは、"
                f"ヘッドの{share}です(順位を決めたテキストで測った値)。",
            )
        return joined([learnt, gone])

    def beside(self, sweep: Sweep) -> tuple[Both, Mapping[str, Figure]]:
        own = sweep.runs[sweep.runs["removable"].notna()]
        if own.empty:
            return NOTHING, {}
        kept = sweep.runs.assign(needed=sweep.runs["n_heads"] * (1 - sweep.runs["removable"]))
        table = mean_table(kept, "needed", lambda mean: f"{mean:.3g}")
        told = Both(
            "Heads of a layer that stay when as many are removed together as cost 1% of what that model learnt, by "
            "the number of heads that it was trained with. They are ordered on other rows than they are judged on; "
            "means over seeds:",
            "そのモデル自身が学習できた量の1%を失うまでヘッドをまとめて除いたとき、"
            "最後に残るヘッド数を示します(1層あたり、学習時のヘッド数ごと、学習シードの平均)。"
            "除く順番を決めるデータと評価するデータは別です。",
        )
        figures = {
            "cka": count_curves(
                sweep.runs, "cka", label="mean CKA of two heads", beside=("cka_untrained", "before training")
            ),
            "removable": count_curves(kept, "needed", label="heads that cannot go"),
            "removal": removal_curves(sweep.removal[sweep.removal["task"].isin(own["task"])]),
        }
        tables = joined([more_alike(own), quality(sweep.shapes), told], "\n\n", "\n\n")
        return joined([tables, table], "\n\n", "\n\n"), figures

    def draw(self, table: pd.DataFrame) -> Figure:
        beside = {"chance": "chance", "untrained": "untrained copies"}
        label = "share of what varies in the head\nthat the others of its layer give"
        return figure_of(sorted_dots(table, "replaceability", label=label, size=_MOST_OF_IT, beside=beside))


def _rows(subject: Subject, rating: Rating) -> tuple[pd.DataFrame, list[int]]:
    """A row a head that varies beside others of its layer, and their places among all heads."""
    columns, heads = rating.every_column(), subject.anatomy.apart.heads
    table = pd.DataFrame(
        {
            "layer": [head.layer for head in heads],
            "head": [head.head for head in heads],
            "replaceability": rating.score,
            "replaceability_low": rating.low,
            "replaceability_high": rating.high,
            **{name: columns[name] for name in ("chance", "constant", "restored")},
        }
    )
    drawn = [one.replaced.score for one in subject.untrained]
    alone = table["layer"].map(table["layer"].value_counts()) == 1  # nothing stands beside a layer's only head
    table["untrained"] = np.mean(drawn, axis=0) if drawn else nan
    table["untrained"] = table.groupby("layer")["untrained"].transform("mean")
    kept = table["replaceability"].notna() & ~alone
    return table[kept].reset_index(drop=True), [*np.flatnonzero(kept)]


def _means(own: Spread, drawn: list[Spread]) -> dict[str, float]:
    """The mean over heads with its interval, that of untrained copies, and how much more the first is than another one.

    What a further untrained copy would come to is what the model is held against: copies vary among themselves.
    """
    mean = _mean_head(own)
    low, high = (float(end) for end in mean.interval())
    found = {"mean": float(mean.centre), "mean_low": low, "mean_high": high}
    others = [_mean_head(one) for one in drawn]
    if len(others) < 2:
        return found | dict.fromkeys(("untrained", "more", "more_low", "more_high"), nan)
    middles = np.array([float(one.centre) for one in others])
    more, apart = found["mean"] - float(middles.mean()), float(middles.var(ddof=1)) * (1 + 1 / len(middles))
    text = [float(one.error) ** 2 for one in (mean, *others)]
    half = float(student.ppf((1 + LEVEL) / 2, len(middles) - 1)) * apart**0.5
    half = (half**2 + float(student.ppf((1 + LEVEL) / 2, mean.freedom)) ** 2 * (text[0] + np.mean(text[1:]))) ** 0.5
    return found | {"untrained": float(middles.mean()), "more": more, "more_low": more - half, "more_high": more + half}


def _mean_chance(copies: Sequence[Subject]) -> float:
    """Chance of the mean head of untrained copies: what too little text costs the fits there."""
    every = np.concatenate([[nan], *(one.replaced.every_column()["chance"] for one in copies)])
    return float(np.nanmean(every)) if np.isfinite(every).any() else nan


def _mean_head(spread: Spread) -> Spread:
    """The mean over the heads that have a number."""
    known = np.flatnonzero(~np.isnan(spread.centre))
    centre = np.asarray(spread.centre[known].mean())
    if spread.without is None or spread.sizes is None:
        return Spread(centre, np.asarray(nan), np.asarray(1.0))
    sizes = np.nanmax(spread.sizes[:, known], axis=1)
    return jackknife_spread(centre, [np.asarray(left[known].mean()) for left in spread.without], sizes.tolist())


def _foremost(table: pd.DataFrame) -> dict[str, float]:
    """The head that the others give most of."""
    first = table.loc[table["replaceability"].idxmax()]
    ends = {name: float(first[f"replaceability{end}"]) for name, end in (("top", ""), ("top_low", "_low"))}
    return {"which_layer": float(first["layer"]), "which_head": float(first["head"]), **ends}


def _tokens_per_dimension(subject: Subject) -> float:
    """Positions over the dimensions of a layer, the fewest of all layers: what fits are made of, in both halves."""
    wholes = [Moments.total(blocks) for blocks in subject.moments.values()]
    return min(whole.n / sum(whole.dims) for whole in wholes)


def _removable(subject: Subject) -> float:
    """Share of the heads that can be removed together at a cost of 1%, the least important first."""
    worth = subject.worth
    order = np.argsort(worth.score, kind="stable")[: int(np.isfinite(worth.score).sum())]  # NaN comes last
    ranked = [worth.heads[place] for place in order]
    most = Rise.read(Budget().max_loss_rise).above(subject.intact, subject.judged_by.is_distance)
    for size in range(1, len(ranked) + 1):
        gone = [ranked[:size]]
        effects = group_effects(subject.model, subject.sample, subject.judged_by, subject.anatomy, gone)
        if effects.values.mean() > most:
            return (size - 1) / len(ranked)
    return 1.0


def _above_copies(table: pd.DataFrame) -> Both:
    """Layers whose mean head the others give more of than in untrained copies, which the mean of all may hide."""
    if "untrained" not in table:
        return NOTHING
    means = table.groupby("layer")[["replaceability", "untrained"]].mean()
    above = [f"{layer}" for layer in means.index[means["replaceability"] > means["untrained"]]]
    if not 0 < len(above) < len(means):
        return NOTHING
    which = "layer" if len(above) == 1 else "layers"
    return Both(
        f"Not in every layer is it less than in untrained copies: in {which} {', '.join(above)} it is more. The rule "
        "goes by the mean head of the model.",
        f"すべての層で未学習の複製より低いわけではありません。層{'、'.join(above)}では複製より高い値です。"
        "判定はモデル全体の平均で行います。",
    )
