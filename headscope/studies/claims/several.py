"""C11: several heads see more than one."""

from collections.abc import Mapping
from typing import ClassVar

import pandas as pd
from matplotlib.figure import Figure

from headscope.errors import InputError
from headscope.reporting.figures import count_curves
from headscope.studies.claims import CLAIMS, DEPENDS, NOT_SUPPORTED, SUPPORTED, Measured, SweepClaim
from headscope.studies.headcount.results import Sweep
from headscope.studies.headcount.shapes import pooled

__all__ = ["Several"]


@CLAIMS.register("C11")
class Several(SweepClaim):
    """One head against the best number of them, at equal parameters and equal tokens."""

    about: ClassVar[str] = "several better than one"
    about_ja: ClassVar[str] = "複数ヘッドの利点"
    says: ClassVar[str] = "Several heads see the same sequence from several viewpoints, and that is better than one."
    says_ja: ClassVar[str] = "複数のヘッドは同じシーケンスを異なる視点で評価でき、表現力を大幅に向上させる。"
    measured: ClassVar[str] = (
        "In the arm where heads share the width, parameters, operations and tokens are the same for every number of "
        "heads: what one head errs more than the best number is what several viewpoints are worth. Tasks on which "
        "heads do nothing but look (maps) are left out."
    )
    unit: ClassVar[str] = "error of one head beyond the best, share of what is learnt, mean over tasks"
    rule: ClassVar[str] = (
        "supported if, on every task, one head errs more than the best number (by over 1% of what is learnt, with the "
        "interval above 0); not supported if on none; else it depends on the task"
    )
    limits: ClassVar[str] = "Small models and short training; with more layers one head a layer has several looks too."

    def measure(self, sweep: Sweep) -> Measured:
        runs = sweep.runs[~sweep.runs["task"].str.startswith("maps")]
        if runs.empty:
            raise InputError("on maps alone heads do nothing but look, so that one head cannot be held against several")
        spread = pooled(runs, "width", 0)
        low, high = spread.interval()
        shapes = sweep.shapes[(sweep.shapes["arm"] == "width") & sweep.shapes["task"].isin(runs["task"])]
        numbers = {"tasks": float(len(shapes)), "better": float((shapes["few_is"] == "worse").sum())}
        return Measured(float(spread.centre), float(low), float(high), sweep.over, numbers, runs)

    def decide(self, words: Mapping[str, float]) -> str:
        if words["better"] == words["tasks"]:
            return SUPPORTED
        return DEPENDS if words["better"] else NOT_SUPPORTED

    def say(self, words: Mapping[str, float]) -> str:
        return (
            f"On {words['better']:g} of {words['tasks']:g} tasks one head errs more than the best number of heads with "
            f"as many parameters; on average it learns {words['effect']:.0%} less."
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        return count_curves(table[table["arm"] == "width"])
