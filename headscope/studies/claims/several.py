"""C11: several heads see more than one."""

from collections.abc import Mapping
from typing import ClassVar

import pandas as pd
from matplotlib.figure import Figure

from headscope.errors import InputError
from headscope.reporting.figures import count_curves
from headscope.studies.bilingual import Both
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
from headscope.studies.headcount.results import Sweep
from headscope.studies.headcount.shapes import pooled

__all__ = ["Several"]


_OF = "lost in "  # before the name of a task, in names of numbers


@CLAIMS.register("C11")
class Several(SweepClaim):
    """One head against the best number of them, at equal parameters and equal tokens."""

    kind: ClassVar[str] = "experiment"
    about: ClassVar[Both] = Both("several better than one", "複数ヘッドの利点")
    says: ClassVar[Both] = Both(
        "Several heads see the same input from different viewpoints and extract varied features, which greatly raises "
        "what the model can express. [So several are better than one.]",
        "各ヘッドが同じ入力に異なる視点を提供して多様な特徴を抽出し、モデルの表現力を大幅に向上させる。"
        "[したがって複数の"
        "ヘッドは1つより良い。]",
    )
    where_ja: ClassVar[str] = "結論"
    means: ClassVar[Both] = Both("", "")
    measured: ClassVar[Both] = Both(
        "In the arm where heads share the width, parameters, operations and tokens are the same for every number of "
        "heads: what one head errs more than the best number is what several viewpoints are worth. Tasks on which "
        "heads do nothing but look (maps) are left out. Learning rates are chosen as for C7.",
        "",
    )
    unit: ClassVar[Both] = Both(
        "error of one head beyond the best other number, share of what is learnt, mean over tasks",
        "1ヘッドの誤差が他のヘッド数のうち最良の誤差を上回る分(学習できた量に対する割合、タスクの平均)",
    )
    interval: ClassVar[Both] = Both("95%, over training seeds", "")
    rule: ClassVar[Both] = Both(
        "supported if, on every task, one head errs more than the best number (by over 1% of what is learnt, with the "
        "interval above 0); not supported if on every task it errs as little (the interval below 1%); depends where "
        "tasks differ, or where some cannot be told",
        "",
    )
    drawn: ClassVar[Both] = CURVES_DRAWN
    limits: ClassVar[Both] = Both(
        "Small models and short training; with more layers one head a layer has several looks too. The mean is moved "
        "most by the look-ups, a task that asks for four looks at once. Of maps one head is as good as several, where "
        "it has enough dimensions (C7).",
        "",
    )

    def measure(self, sweep: Sweep) -> Measured:
        runs = sweep.runs[~sweep.runs["task"].str.startswith("maps")]
        if runs.empty:
            raise InputError("on maps alone heads do nothing but look, so that one head cannot be held against several")
        spread = pooled(runs, "width", 0)
        low, high = spread.interval()
        shapes = sweep.shapes[(sweep.shapes["arm"] == "width") & sweep.shapes["task"].isin(runs["task"])]
        numbers = {"tasks": float(len(shapes)), "better": float((shapes["few_is"] == "worse").sum())}
        numbers["as_good"] = float((shapes["few_is"] == "as good").sum())
        numbers |= {f"{_OF}{task}": float(few) for task, few in zip(shapes["task"], shapes["few"], strict=True)}
        return Measured(float(spread.centre), sweep.over, numbers, runs, float(low), float(high))

    def decide(self, words: Mapping[str, float]) -> Verdict:
        if words["better"] == words["tasks"]:
            return HOLDS
        if words["as_good"] == words["tasks"]:
            return FAILS
        return in_part(Both("", "")) if words["better"] or words["as_good"] else undecided(Both("", ""))

    def say(self, words: Mapping[str, float]) -> Both:
        each = ", ".join(f"{name.removeprefix(_OF)} {more:.1%}" for name, more in words.items() if name.startswith(_OF))
        return Both(
            f"On {words['better']:g} of {words['tasks']:g} tasks one head errs more than the best number of heads with "
            f"as many parameters, on {words['as_good']:g} as little; on average it learns {words['effect']:.0%} less "
            f"({each}).",
            "",
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        return count_curves(table[table["arm"] == "width"])
