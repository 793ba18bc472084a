"""C7: too many heads make each head too small to express what it needs."""

from collections.abc import Mapping
from typing import ClassVar

import pandas as pd
from matplotlib.figure import Figure

from headscope.reporting.figures import count_curves, figure_of, map_bound
from headscope.studies.claims import CLAIMS, DEPENDS, NOT_SUPPORTED, SUPPORTED, Measured, SweepClaim
from headscope.studies.headcount.results import Sweep
from headscope.studies.headcount.shapes import pooled

__all__ = ["TooSmall"]


@CLAIMS.register("C7")
class TooSmall(SweepClaim):
    """Error with the most heads against the best number of them: at fixed width, and with heads of fixed size."""

    about: ClassVar[str] = "heads too small"
    about_ja: ClassVar[str] = "ヘッドの次元が小さすぎる"
    says: ClassVar[str] = (
        "With too many heads each has too few dimensions (512 wide, 32 heads: 16) to capture features that are complex"
        " enough."
    )
    says_ja: ClassVar[str] = (
        "ヘッド数を増やすと各ヘッドの次元が小さくなり(512次元・32ヘッドなら16次元)、表現力が制限される。"
    )
    measured: ClassVar[str] = (
        "The same small transformer is trained with 1 to 64 heads, once with the width shared among them and once with"
        " heads of fixed size, on several tasks, with learning rates chosen for each. If small heads are to blame, "
        "error rises with the most heads in the first arm and not in the second. For attention maps theory says where:"
        " scores of head_dim dimensions have that rank, and a softmax forgives one (Bhojanapalli et al. 2020, "
        "arXiv:2002.07028)."
    )
    unit: ClassVar[str] = "error of the most heads beyond the best, share of what is learnt, mean over tasks"
    rule: ClassVar[str] = (
        "supported if, on every task, the most heads err more than the best at fixed width (by over 1% of what is "
        "learnt, with the interval above 0) and do not at fixed head_dim; not supported if on none; else it depends on"
        " the task"
    )
    limits: ClassVar[str] = "Small models (64 wide) and short training; 64 heads have one dimension each."

    def measure(self, sweep: Sweep) -> Measured:
        spread = pooled(sweep.runs, "width", -1)
        low, high = spread.interval()
        shapes = sweep.shapes.pivot(index="task", columns="arm", values="many_is")
        falls, rises = shapes["width"] == "worse", shapes["head_dim"] == "worse"
        numbers = {
            "tasks": float(len(shapes)), "fall": float((falls & ~rises).sum()), "other_arm": float(rises.sum()),
            "wide": float(pooled(sweep.runs, "head_dim", -1).centre),
        }  # fmt: skip
        return Measured(float(spread.centre), float(low), float(high), sweep.over, numbers, sweep.runs)

    def decide(self, words: Mapping[str, float]) -> str:
        if words["fall"] == words["tasks"]:
            return SUPPORTED
        return DEPENDS if words["fall"] else NOT_SUPPORTED

    def say(self, words: Mapping[str, float]) -> str:
        return (
            f"On {words['fall']:g} of {words['tasks']:g} tasks the most heads err more than the best number at fixed "
            f"width and not at fixed head_dim; on average they lose {words['effect']:.0%} of what is learnt, against "
            f"{words['wide']:.1%} at fixed head_dim."
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        return count_curves(table)

    def beside(self, sweep: Sweep) -> tuple[str, Mapping[str, Figure]]:
        figures = {"score_rank": count_curves(sweep.runs, "score_rank", label="rank of scores")}
        maps = sweep.runs[sweep.runs["task"].str.startswith("maps-")]
        if maps.empty:
            return "", figures
        length = maps["task"].str.removeprefix("maps-").astype(int)
        share = maps["error"] / maps["chance"]
        enough, half = share[maps["head_dim"] >= length], share[maps["head_dim"] == length // 2]
        sentence = (
            "Attention maps drawn at random are matched where head_dim reaches their length (a divergence of at most "
            f"{enough.max():.2%} of a uniform map's) and are not at half of it ({half.min():.1%} to {half.max():.1%})."
        )
        return sentence, {**figures, "bound": figure_of(map_bound(sweep.runs))}
