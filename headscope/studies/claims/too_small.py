"""C7: too many heads make each head too small to express what it needs."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pandas as pd
from matplotlib.figure import Figure

from headscope.formatting import markdown_table, number
from headscope.reporting.figures import count_curves, figure_of, map_bound
from headscope.studies.claims import (
    CLAIMS,
    CURVES_DRAWN,
    DEPENDS,
    NOT_SUPPORTED,
    SUPPORTED,
    UNDECIDED,
    Measured,
    SweepClaim,
)
from headscope.studies.headcount.results import Sweep
from headscope.studies.headcount.shapes import pooled

__all__ = ["TooSmall"]


@CLAIMS.register("C7")
class TooSmall(SweepClaim):
    """Error with the most heads against the best number of them: at fixed width, and with heads of fixed size."""

    about: ClassVar[str] = "heads too small"
    about_ja: ClassVar[str] = "ヘッドの次元が小さすぎる"
    says: ClassVar[str] = (
        "With too many heads each may have too few dimensions (512 wide, 32 heads: 16) to capture features that are "
        "complex enough."
    )
    says_ja: ClassVar[str] = (
        "ヘッド数を増やすと各ヘッドの次元が小さくなり(512次元・32ヘッドなら16次元)、十分に複雑な特徴を捉えられなく"
        "なる可能性がある。"
    )
    where_ja: ClassVar[str] = "ヘッド数が多すぎる場合の問題点"
    measured: ClassVar[str] = (
        "The same small transformer is trained with 1 to 64 heads, once with the width shared among them and once with"
        " heads of fixed size, on several tasks. Learning rates are chosen for each task and arm at the fewest, the "
        "middle and the most heads, on data and a seed of their own, and taken over by the numbers between. If small "
        "heads are to blame, error rises with the most heads in the first arm and not in the second. For attention "
        "maps theory says where: scores of head_dim dimensions have that rank at the most, and one less than the "
        "length is enough, as softmax ignores what is added to a whole row (Bhojanapalli et al. 2020, "
        "arXiv:2002.07028)."
    )
    unit: ClassVar[str] = (
        "error of the most heads beyond the best other number, share of what is learnt, mean over tasks"
    )
    unit_ja: ClassVar[str] = "最多ヘッドの誤差が最良を上回る分(学習できた量に対する割合、タスクの平均)"
    interval: ClassVar[str] = "95%, over training seeds"
    rule: ClassVar[str] = (
        "supported if, on every task, the most heads err more than the best at fixed width (by over 1% of what is "
        "learnt, with the interval above 0) and as little as the best at fixed head_dim (the interval below 1%); not "
        "supported if every task shows the contrary of either; depends where tasks differ, or where some cannot be "
        "told"
    )
    drawn: ClassVar[str] = CURVES_DRAWN
    limits: ClassVar[str] = (
        "Small models (64 wide) and short training. The most heads, 64, have one dimension each, not the paper's 16; "
        "what lies between is in the figure."
    )

    def measure(self, sweep: Sweep) -> Measured:
        spread = pooled(sweep.runs, "width", -1)
        low, high = spread.interval()
        shapes = sweep.shapes.pivot(index="task", columns="arm", values="many_is")
        small, wide = shapes["width"], shapes["head_dim"]
        contrary = (small == "as good") | (wide == "worse")
        numbers = {
            "tasks": float(len(shapes)), "contrary": float(contrary.sum()),
            "fall": float(((small == "worse") & (wide == "as good")).sum()),
            "wide": float(pooled(sweep.runs, "head_dim", -1).centre),
        }  # fmt: skip
        return Measured(float(spread.centre), sweep.over, numbers, sweep.runs, float(low), float(high))

    def decide(self, words: Mapping[str, float]) -> str:
        if words["fall"] == words["tasks"]:
            return SUPPORTED
        if words["contrary"] == words["tasks"]:
            return NOT_SUPPORTED
        return DEPENDS if words["fall"] or words["contrary"] else UNDECIDED

    def say(self, words: Mapping[str, float]) -> str:
        return (
            f"On {words['fall']:g} of {words['tasks']:g} tasks the most heads err more than the best number at fixed "
            f"width and not at fixed head_dim; on {words['contrary']:g} they do not at fixed width, or do at fixed "
            f"head_dim too; on {words['tasks'] - words['fall'] - words['contrary']:g} it cannot be told. On average "
            f"they lose {words['effect']:.0%} of what is learnt, against {words['wide']:.1%} at fixed head_dim."
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        return count_curves(table)

    def beside(self, sweep: Sweep) -> tuple[str, Mapping[str, Figure]]:
        figures = {"score_rank": count_curves(sweep.runs, "score_rank", label="rank of scores")}
        shapes = _told(sweep.shapes)
        maps = sweep.runs[sweep.runs["task"].str.startswith("maps-")]
        if maps.empty:
            return shapes, figures
        length = maps["task"].str.removeprefix("maps-").astype(int)
        share = maps["error"] / maps["chance"]
        enough, half = share[maps["head_dim"] >= length], share[maps["head_dim"] == length // 2]
        parts = {"where head_dim reaches their length": enough, "at half of it": half}
        found = [f"{max(own.min(), 0):.2%} to {own.max():.2%} {where}" for where, own in parts.items() if len(own)]
        sentence = (
            "How far attention maps drawn at random are from being matched, as a share of a uniform map's divergence: "
            f"{'; '.join(found)}."
        )
        return f"{shapes}\n\n{sentence}", {**figures, "bound": figure_of(map_bound(sweep.runs))}


def _told(shapes: pd.DataFrame) -> str:
    """A row for each task and arm, in Markdown."""
    head = ("task", "arm", "best", "as good (within 1%)", "error there", "fewest heads, beyond", "most heads, beyond")
    rows = [
        (row["task"], "fixed width" if row["arm"] == "width" else "fixed head_dim", str(row["best"]), row["good"],
         f"{number(row['best_error'])} {row['unit']}", _beyond(row, "few"), _beyond(row, "many"))
        for row in shapes.to_dict("records")
    ]  # fmt: skip
    words = (
        "How much more the fewest and the most heads err than the best other number, in percent of what the best "
        "learns over chance, with intervals that hold for all tasks of an arm together (95%):"
    )
    return f"{words}\n\n{markdown_table(head, rows)}"


def _beyond(row: dict[str, Any], end: str) -> str:
    middle, low, high = (f"{100 * row[name]:.1f}".replace("-", "−") for name in (end, f"{end}_low", f"{end}_high"))
    return f"{middle} ({low} to {high}): {row[f'{end}_is']}"
