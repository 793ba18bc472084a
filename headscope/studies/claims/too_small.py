"""C7: too many heads make each head too small to express what it needs."""

from collections.abc import Mapping
from math import isnan, nan
from typing import ClassVar

import pandas as pd
from matplotlib.figure import Figure

from headscope._support.formatting import count, percent
from headscope.reporting.figures import count_curves, figure_of, map_bound
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
from headscope.studies.headcount.telling import shape_table

__all__ = ["TooSmall"]

_PAPER = 16  # dimensions of a head that the paper calls too few
_OF_THE_PAPER = ("paper_heads", "paper", "paper_from", "paper_to")
_TOLD = "told of "  # before the name of a task, in names of numbers: 1 as the paper says, −1 the contrary, 0 neither


@CLAIMS.register("C7")
class TooSmall(SweepClaim):
    """Error with the most heads against the best number of them: at fixed width, and with heads of fixed size."""

    kind: ClassVar[str] = "experiment"
    about: ClassVar[Both] = Both("heads too small", "ヘッドの次元が小さすぎる")
    says: ClassVar[Both] = Both(
        "With too many heads each may have too few dimensions (512 wide, 32 heads: 16) to capture features that are "
        "complex enough.",
        "ヘッド数を増やすと各ヘッドの次元が小さくなり(512次元・32ヘッドなら16次元)、十分に複雑な特徴を捉えられなく"
        "なる可能性がある。",
    )
    where_ja: ClassVar[str] = "ヘッド数が多すぎる場合の問題点"
    means: ClassVar[Both] = Both("", "")
    measured: ClassVar[Both] = Both(
        "The same small transformer, 64 wide, is trained with 1 to 64 heads, once with the width shared among them and"
        " once with heads of fixed size, on several tasks: four look-ups at once (lookups), attention maps of 8 to 64 "
        "tokens (maps), the next byte of prose (language), handwritten digits (digits). What is learnt is how far "
        "below chance the best number of heads errs; kinds of task count equally, maps of several lengths as one kind."
        " Learning rates are chosen for each task and arm at the fewest, the middle and the most heads, on data and a "
        "seed of their own, and taken over by the numbers between. If small heads are to blame, error rises with the "
        "most heads in the first arm and not in the second. For attention maps theory says where: scores of head_dim "
        "dimensions have that rank at the most, and a head_dim no less than the length is enough for any map "
        "(Bhojanapalli et al. 2020, arXiv:2002.07028); one less is too, as softmax ignores what is added to a whole "
        "row.",
        "",
    )
    unit: ClassVar[Both] = Both(
        "error with the most heads beyond that with the best other number, share of what is learnt, mean over kinds of "
        "task",
        "最多ヘッドの誤差が他のヘッド数のうち最良の誤差を上回る分(学習できた量に対する割合、タスクの種類の平均)",
    )
    interval: ClassVar[Both] = Both("95%, over training seeds", "")
    rule: ClassVar[Both] = Both(
        "supported if, on every task, the most heads err more than the best number at fixed width (by over 1% of what "
        "is learnt, with the interval above 0) and no more than the best at fixed head_dim (the interval below 1%); "
        "not supported if every task shows the contrary of either; depends where tasks differ, or where some cannot be"
        " told",
        "",
    )
    drawn: ClassVar[Both] = CURVES_DRAWN
    limits: ClassVar[Both] = Both(
        "Small models (64 wide) and short training. The most heads, 64, have one dimension each; the paper's example, "
        "32 heads of 16 dimensions, is of a width of 512. With 8 dimensions a head maps of 32 and 64 tokens err much "
        "with every number of heads: more heads do not make up for their size.",
        "",
    )

    def measure(self, sweep: Sweep) -> Measured:
        spread = pooled(sweep.runs, "width", -1)
        low, high = spread.interval()
        shapes = sweep.shapes.pivot(index="task", columns="arm", values="many_is")
        small, wide = shapes["width"], shapes["head_dim"]
        fall, contrary = (small == "worse") & (wide == "as good"), (small == "as good") | (wide == "worse")
        control = pooled(sweep.runs, "head_dim", -1)
        ends = [float(end) for end in control.interval()]
        numbers = {
            "tasks": float(len(shapes)), "contrary": float(contrary.sum()), "fall": float(fall.sum()),
            "wide": float(control.centre), "wide_from": ends[0], "wide_to": ends[1],
            **_at(sweep, _PAPER),
            **{f"{_TOLD}{task}": float(fall[task]) - float(contrary[task]) for task in sweep.shapes["task"].unique()},
        }  # fmt: skip
        return Measured(float(spread.centre), sweep.over, numbers, sweep.runs, float(low), float(high))

    def decide(self, words: Mapping[str, float]) -> Verdict:
        if words["fall"] == words["tasks"]:
            return HOLDS
        if words["contrary"] == words["tasks"]:
            return FAILS
        return in_part(Both("", "")) if words["fall"] or words["contrary"] else undecided(Both("", ""))

    def say(self, words: Mapping[str, float]) -> Both:
        fall, contrary, untold = (_named(words, sign) for sign in (1.0, -1.0, 0.0))
        paper = ""
        if not isnan(words["paper"]):
            heads = count(int(words["paper_heads"]), "head")
            ends = f"{percent(words['paper_from'])} to {percent(words['paper_to'])}"
            paper = f" At fixed width {heads} of {_PAPER} dimensions lose {words['paper']:.1%} ({ends})."
        return Both(
            f"On {words['fall']:g} of {words['tasks']:g} tasks{fall} the most heads err more than the best number at "
            f"fixed width and not at fixed head_dim; on {words['contrary']:g}{contrary} they do not at fixed width, or "
            f"do at fixed head_dim too; on {words['tasks'] - words['fall'] - words['contrary']:g}{untold} it cannot be "
            f"told. On average they lose {words['effect']:.0%} of what is learnt, against {words['wide']:.1%} "
            f"({percent(words['wide_from'])} to {percent(words['wide_to'])}) at fixed head_dim.{paper}",
            "",
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        return count_curves(table)

    def beside(self, sweep: Sweep) -> tuple[Both, Mapping[str, Figure]]:
        figures = {"score_rank": count_curves(sweep.runs, "score_rank", label="rank of scores")}
        words = (
            "How much more the fewest and the most heads err than the best other number, as shares of what the best "
            "learns over chance, with intervals that hold for all tasks of an arm together (95%):"
        )
        shapes = f"{words}\n\n{shape_table(sweep.shapes)}"
        maps = sweep.runs[sweep.runs["task"].str.startswith("maps-")]
        if maps.empty:
            return Both(shapes, ""), figures
        length = maps["task"].str.removeprefix("maps-").astype(int)
        share = maps["error"] / maps["chance"]
        enough, half = share[maps["head_dim"] >= length], share[maps["head_dim"] == length // 2]
        parts = {"where head_dim reaches their length": enough, "at half of it": half}
        found = [f"{max(own.min(), 0):.2%} to {own.max():.2%} {where}" for where, own in parts.items() if len(own)]
        sentence = (
            "How far attention maps drawn at random are from being matched, as a share of a uniform map's divergence: "
            f"{'; '.join(found)}."
        )
        return Both(f"{shapes}\n\n{sentence}", ""), {**figures, "bound": figure_of(map_bound(sweep.runs))}


def _named(words: Mapping[str, float], sign: float) -> str:
    """Tasks by what they tell, in brackets."""
    tasks = [name.removeprefix(_TOLD) for name, told in words.items() if name.startswith(_TOLD) and told == sign]
    return f" ({', '.join(tasks)})" if tasks else ""


def _at(sweep: Sweep, head_dim: int) -> dict[str, float]:
    """How many heads have a size at fixed width, and what they lose, as a share of what is learnt; NaN if none."""
    own = sweep.runs[sweep.runs["arm"] == "width"]
    sizes = own.groupby("n_heads")["head_dim"].first()
    if head_dim not in sizes.tolist():
        return dict.fromkeys(_OF_THE_PAPER, nan)
    place = sizes.tolist().index(head_dim)
    spread = pooled(own, "width", place)
    low, high = (float(end) for end in spread.interval())
    return dict(zip(_OF_THE_PAPER, (float(sizes.index[place]), float(spread.centre), low, high), strict=True))
