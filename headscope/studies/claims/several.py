"""C11: several heads see more than one."""

from collections.abc import Mapping
from typing import ClassVar

import pandas as pd
from matplotlib.figure import Figure

from headscope._support.formatting import percent
from headscope.errors import InputError
from headscope.reporting.figures import count_curves
from headscope.studies.bilingual import Both, joined, tables
from headscope.studies.claims import (
    CLAIMS,
    CURVES_DRAWN,
    FAILS,
    HOLDS,
    Measured,
    SweepClaim,
    Verdict,
    in_part,
    undecided,
)
from headscope.studies.headcount.outcomes import (
    AS_THE_PAPER,
    CONTRARY,
    OPEN,
    grouped,
    more_seeds,
    named,
    numbers_of,
    of_tasks,
    tasks_that,
    untold,
)
from headscope.studies.headcount.results import Sweep
from headscope.studies.headcount.shapes import most_against_one, pooled, shapes
from headscope.studies.headcount.telling import BONFERRONI, amount

__all__ = ["Several"]

_LOST, _FEWEST, _MOST = "lost on", "fewest on", "most heads on"  # before the name of a task
_SAYS = {"worse": AS_THE_PAPER, "as good": CONTRARY, "undecided": OPEN}


@CLAIMS.register("C11")
class Several(SweepClaim):
    """One head against the best number of them, at equal parameters and equal tokens."""

    kind: ClassVar[str] = "experiment"
    about: ClassVar[Both] = Both("several viewpoints", "複数ヘッドの利点")
    says: ClassVar[Both] = Both(
        "Each head computes attention over the whole sequence and extracts varied features, which greatly raises what "
        "the model can express. The same input is given different viewpoints.",
        "各ヘッドがシーケンス全体に対してアテンションを計算し、多様な特徴を抽出することで、モデルの表現力を大幅に向上"
        "させる。同じ入力に対して異なる視点を提供する。",
    )
    where_ja: ClassVar[str] = "結論"
    means: ClassVar[Both] = Both(
        "The question is how much a model loses if it has one head a layer in place of the best number of them, with "
        "as many parameters. What is lost is what several viewpoints are worth to a task.",
        "ここで問うのは、パラメータ数を変えずに、1層のヘッドを最良の個数から1個に減らすと、"
        "どれだけ性能が失われるかです。失われた分が、そのタスクにとって複数の視点が持つ価値です。",
    )
    measured: ClassVar[Both] = Both(
        "In the arm where heads share the width, parameters, operations and tokens are the same for every number of "
        "heads. On each task one head is held against the best of the other numbers; for each seed the best is chosen "
        "by the other seeds. What is learnt, the tasks and the learning rates are those of C7; maps are among them, "
        "on which heads do nothing but look. Kinds of task count equally in the mean, maps of several lengths as one "
        "kind.",
        "幅をヘッドで分け合う条件では、ヘッド数によらずパラメータ数・演算量・トークン数が同じです。タスクごとに、"
        "1ヘッドの誤差を、他のヘッド数のうち最良のものの誤差と比べます。あるシードを評価するときの最良のヘッド数は、"
        "そのシード以外の結果から選びます。「学習できた量」、タスク、学習率はC7と同じです。マップを作るだけで、"
        "バリューも出力も使わないタスク(maps)も含みます。平均ではタスクの種類を等しく扱い、"
        "長さの異なるmapsは1種類と数えます。",
    )
    unit: ClassVar[Both] = Both(
        "error of one head beyond the best other number, share of what is learnt, mean over kinds of task",
        "1ヘッドの誤差が、他のヘッド数のうち最良の誤差を上回る分(学習できた量に対する割合、タスクの種類の平均)",
    )
    interval: ClassVar[Both] = Both("95%, over training seeds", "95%(学習シードについて)")
    rule: ClassVar[Both] = Both(
        "it holds if, on every task, one head errs more than the best number (by over 1% of what is learnt, with the "
        "interval above 0); it does not hold if on every task one head errs as little (the interval below 1%); it "
        "holds "
        'in part on the tasks where one head errs more; else it is not decided. How much of it is "greatly" the '
        "amounts tell: the rule has no line for that",
        "どのタスクでも1ヘッドの誤差が最良のヘッド数より大きければ(学習できた量の1%を超え、区間が0より上)成り立つ。"
        "どのタスクでも同等なら(区間が1%未満)成り立たない。一部のタスクでだけ大きければ、"
        "そのタスクについて一部で成り立つ。それ以外は未判定。「大幅に」の程度は差の大きさで示し、基準値は設けない",
    )
    drawn: ClassVar[Both] = CURVES_DRAWN
    follows: ClassVar[Both] = Both(
        "Readers infer that several heads are better than one. That follows for tasks that need several looks at "
        "once, and up to the number at which heads get too small (C7). It is no rule for all tasks.",
        "「ヘッドは1個より複数の方が良い」と読まれがちです。これは、同時に複数の箇所を見る必要があるタスクについて、"
        "ヘッドが小さくなりすぎない個数まで(C7)でなら言えます。すべてのタスクに当てはまる規則ではありません。",
    )
    limits: ClassVar[Both] = Both(
        "Small models and short training; with more layers one head a layer has several looks too. The mean is moved "
        "most by the look-ups, a task that asks for four looks at once. Of a map that was drawn at random one head "
        "with enough dimensions can do all; prose and digits are nearer to what models are used for.",
        "小さなモデルを短く学習させた結果です。層が多ければ、1層に1ヘッドでも複数の箇所を見られます。"
        "平均に最も影響するのはlookupsで、同時に4か所を見る必要があるタスクです。ランダムに作ったマップは、"
        "次元が足りていれば1個のヘッドで表せます。実際の用途に近いのはlanguageとdigitsです。",
    )

    def measure(self, sweep: Sweep) -> Measured:
        runs = sweep.runs[sweep.runs["arm"] == "width"]
        if (fewest := int(runs["n_heads"].min())) > 1:
            raise InputError(
                f"one head a layer is not among those trained, which have {fewest} or more; train 1 head too"
            )
        spread = pooled(runs, "width", 0)
        found = shapes(runs).set_index("task")
        numbers = {
            "most": float(runs["n_heads"].max()),
            **numbers_of(found["few_is"].map(_SAYS).to_dict(), found["seeds"].to_dict()),
            **{f"{_LOST} {task}": float(lost) for task, lost in found["few"].items()},
            **{f"{_FEWEST} {task}": float(good.split()[0]) for task, good in found["good"].items() if good},
            **{f"{_MOST} {task}": float(told == "worse") for task, told in most_against_one(runs).items()},
        }
        low, high = (float(end) for end in spread.interval())
        return Measured(float(spread.centre), sweep.over, numbers, runs, low, high)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        better, as_good, left = (tasks_that(words, sign) for sign in (AS_THE_PAPER, CONTRARY, OPEN))
        if better and not as_good + left:
            return HOLDS
        if better:
            amounts = _amounts(words, better)
            return in_part(Both(f"one head loses {amounts.en}", f"1ヘッドで失う割合:{amounts.ja}"))
        return undecided(more_seeds(words)) if left else FAILS

    def say(self, words: Mapping[str, float]) -> Both:
        middle, low, high = (percent(words[name]) for name in ("effect", "low", "high"))
        better, as_good = (tasks_that(words, sign) for sign in (AS_THE_PAPER, CONTRARY))
        parts = [
            Both(
                f"With one head a layer error is {middle} ({low} to {high}) of what is learnt above that of the best "
                "other number of heads, with as many parameters (the mean over kinds of task).",
                "1ヘッドの誤差は、パラメータ数が同じ他のヘッド数のうち最良のものより、"
                f"学習できた量の{middle}({low}〜{high})だけ大きくなります(タスクの種類の平均)。",
            )
        ]
        if better:
            told = _amounts(words, better)
            parts.append(Both(f"By task it is above by: {told.en}.", f"タスク別の差は、{told.ja}です。"))
        if as_good:
            told = named(as_good)
            parts.append(
                Both(f"On {told.en} one head is as good or better.", f"{told.ja}では1ヘッドでも同等かそれ以上です。")
            )
        if told := untold(words):
            parts.append(Both(f"It is not decided on {told.en}.", f"{told.ja}については判定できません。"))
        return joined(parts)

    def follow(self, words: Mapping[str, float]) -> Both:
        fewest = grouped(of_tasks(words, _FEWEST))
        most, worse = f"{words['most']:g}", [task for task, told in of_tasks(words, _MOST).items() if told]
        parts = [
            Both(
                f"The fewest heads whose mean error is within 1% of the best: {fewest.en}.",
                f"誤差の平均が最良から1%以内に収まる最少のヘッド数は、{fewest.ja}です。",
            )
        ]
        if worse:
            told = named(worse)
            parts.append(
                Both(f"With {most} heads more is lost than with one on {told.en}.",
                     f"{told.ja}では、{most}ヘッドにすると1ヘッドより悪くなります。")
            )  # fmt: skip
        return joined(parts)

    def draw(self, table: pd.DataFrame) -> Figure:
        return count_curves(table)

    def tabled(self, table: pd.DataFrame) -> Both:
        rows = [
            (row["task"], amount(row, "few"), str(row["good"]), str(row["seeds"]))
            for row in shapes(table).to_dict("records")
        ]
        head = [
            Both("task", "タスク"), Both("one head loses", "1ヘッドでの悪化分"),
            Both("heads within 1% of the best", "最良から1%以内のヘッド数"), Both("seeds", "シード"),
        ]  # fmt: skip
        return joined([tables(head, rows), BONFERRONI], "\n\n", "\n\n")


def _amounts(words: Mapping[str, float], tasks: list[str]) -> Both:
    """Tasks with what one head loses on them."""
    lost = of_tasks(words, _LOST)
    return named(f"{task} {percent(lost[task])}" for task in tasks)
