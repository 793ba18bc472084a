"""C10: the number of heads must be balanced with the width and the task, by experiment."""

from collections.abc import Mapping
from typing import ClassVar

import pandas as pd
from matplotlib.figure import Figure

from headscope.errors import InputError
from headscope.reporting.figures import count_curves
from headscope.studies.bilingual import Both
from headscope.studies.claims import CLAIMS, CURVES_DRAWN, FAILS, HOLDS, Measured, SweepClaim, Verdict, in_part
from headscope.studies.headcount.results import Sweep
from headscope.studies.headcount.shapes import MARGIN, lost_with_one_for_all

__all__ = ["Balance"]


@CLAIMS.register("C10")
class Balance(SweepClaim):
    """What tasks lose when all are given one number of heads."""

    kind: ClassVar[str] = "experiment"
    about: ClassVar[Both] = Both("balance with width and task", "埋め込み次元・タスクとのバランス")
    says: ClassVar[Both] = Both(
        "The number of heads must be balanced with the width and suit the task; find it by experiment.",
        "埋め込み次元とのバランスを考慮し、タスクに応じてヘッド数を選定する。実験的な調整が推奨される。",
    )
    where_ja: ClassVar[str] = "結論"
    means: ClassVar[Both] = Both("", "")
    measured: ClassVar[Both] = Both(
        "At fixed width, every task is given the number of heads that is best for all together, and held against its "
        "own best. Kinds of task count equally, maps of several lengths as one kind. Which numbers are the best is "
        "chosen, for each seed, by the other seeds: were there one number for all, nothing would be lost on average.",
        "",
    )
    unit: ClassVar[Both] = Both(
        "lost with one number for all tasks, share of what is learnt, mean over kinds of task",
        "全タスク共通のヘッド数にしたときの性能の低下(学習できた量に対する割合、タスクの種類の平均)",
    )
    interval: ClassVar[Both] = Both("95%, over training seeds", "")
    rule: ClassVar[Both] = Both(
        "supported if more than 1% of what is learnt, by the low end; not supported if less, by the high end; else "
        "depends",
        "",
    )
    drawn: ClassVar[Both] = CURVES_DRAWN
    limits: ClassVar[Both] = Both(
        "One width, so balance with the width shows only through head_dim. Learning rates are chosen at three numbers "
        "of heads and taken over by those between.",
        "",
    )

    def measure(self, sweep: Sweep) -> Measured:
        runs = sweep.runs[sweep.runs["arm"] == "width"]
        if runs["task"].nunique() < 2:
            raise InputError("one task alone says nothing of whether the best number depends on the task")
        common, spread = lost_with_one_for_all(runs)
        low, high = spread.interval()
        shapes = sweep.shapes[sweep.shapes["arm"] == "width"]
        fewest = shapes["good"].str.split().str[0].astype(int)
        numbers = {
            "tasks": float(len(shapes)), "common": float(common),
            "least": float(fewest.min()), "most": float(fewest.max()),
        }  # fmt: skip
        return Measured(float(spread.centre), sweep.over, numbers, runs, float(low), float(high))

    def decide(self, words: Mapping[str, float]) -> Verdict:
        if words["low"] > MARGIN:
            return HOLDS
        return FAILS if words["high"] < MARGIN else in_part(Both("", ""))

    def say(self, words: Mapping[str, float]) -> Both:
        return Both(
            f"The fewest heads within 1% of the best run from {words['least']:g} to {words['most']:g} over "
            f"{words['tasks']:g} tasks. "
            f"With one number for all, {words['common']:g}, {words['effect']:.1%} of what is learnt is lost on "
            "average.",
            "",
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        return count_curves(table)
