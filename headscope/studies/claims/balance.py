"""C10: the number of heads must be balanced with the width and the task, by experiment."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from headscope.errors import InputError
from headscope.intervals import mean_spread
from headscope.reporting.figures import count_curves
from headscope.studies.claims import CLAIMS, DEPENDS, NOT_SUPPORTED, SUPPORTED, Measured, SweepClaim
from headscope.studies.headcount.results import Sweep
from headscope.studies.headcount.shapes import MARGIN, errors_of, learnt

__all__ = ["Balance"]


@CLAIMS.register("C10")
class Balance(SweepClaim):
    """What a task loses with the number of heads that is best for another."""

    about: ClassVar[str] = "balance with width and task"
    about_ja: ClassVar[str] = "埋め込み次元・タスクとのバランス"
    says: ClassVar[str] = (
        "The number of heads must be balanced with the width and suit the task; find it by experiment."
    )
    says_ja: ClassVar[str] = (
        "埋め込み次元とのバランスを考慮し、タスクに応じてヘッド数を選定する。実験的な調整が推奨される。"
    )
    measured: ClassVar[str] = (
        "At fixed width, the best number of heads is found for every task (by the other seeds), and every task is then "
        "given the best number of every other. Were there one number for all, nothing would be lost."
    )
    unit: ClassVar[str] = "lost with another task's best number, share of what is learnt, mean over pairs of tasks"
    rule: ClassVar[str] = (
        "supported if more than 1% of what is learnt, with the interval; not supported if less, with it; else depends"
    )
    limits: ClassVar[str] = (
        "One width, so balance with the width shows only through head_dim. Maps of several lengths count as one task "
        "each: they want head_dim of their length."
    )

    def measure(self, sweep: Sweep) -> Measured:
        runs = sweep.runs[sweep.runs["arm"] == "width"]
        curves = {str(task): errors_of(own)[1] for task, own in runs.groupby("task", sort=False)}
        if len(curves) < 2:
            raise InputError("one task alone says nothing of whether the best number depends on the task")
        spans = {str(task): learnt(own) for task, own in runs.groupby("task", sort=False)}
        # for each seed, the best number by the other seeds, as against_best
        best = {task: (errors.sum(0) - errors).argmin(1) for task, errors in curves.items()}
        seeds = np.arange(sweep.runs["seed"].nunique())
        lost = [
            (curves[task][seeds, best[other]] - curves[task][seeds, best[task]]) / spans[task]
            for task in curves
            for other in curves
            if other != task
        ]
        spread = mean_spread(np.mean(lost, axis=0), seeds)
        low, high = spread.interval()
        shapes = sweep.shapes[sweep.shapes["arm"] == "width"]
        numbers = {
            "tasks": float(len(curves)),
            "least": float(shapes["best"].min()),
            "most": float(shapes["best"].max()),
        }
        return Measured(float(spread.centre), float(low), float(high), sweep.over, numbers, runs)

    def decide(self, words: Mapping[str, float]) -> str:
        if words["low"] > MARGIN:
            return SUPPORTED
        return NOT_SUPPORTED if words["high"] < MARGIN else DEPENDS

    def say(self, words: Mapping[str, float]) -> str:
        return (
            f"The best number runs from {words['least']:g} to {words['most']:g} heads over {words['tasks']:g} tasks; a "
            f"task given another's loses {words['effect']:.0%} of what it learns on average."
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        return count_curves(table)
