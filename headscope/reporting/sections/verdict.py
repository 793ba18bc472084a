"""The verdict: one sentence, the picture to remember, and what removing the chosen heads together costs."""

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Drawing

from headscope._support.formatting import MISSING, count, fixed, interval, number, quantity
from headscope.heads import HeadId
from headscope.reporting import figures
from headscope.reporting.blocks import Block, Column, Figure, Table, Text
from headscope.reporting.figures.beside import LOOKS, SAID, means_beside
from headscope.reporting.figures.quadrants import LEFT_EDGE
from headscope.reporting.reportable import Reportable
from headscope.reporting.sections import SECTIONS, Section

__all__ = ["Verdict"]

_SHARES = (0.64, 0.36)  # of the page, for the picture and the cost beside it
_HEIGHT = 5.4  # inches, of both, so that they stand level
_FEW = 10  # rows of the table of costs, about
_MEANINGS = {
    "redundant": "It costs less than the median head, and the others give most of what varies in it.",
    "idle": "It costs less than the median head, and the others give less than half of what varies in it.",
    "backed up": "It costs more than the median head, and the others give most of what varies in it.",
    "needed": "It costs more than the median head, and the others give less than half of what varies in it.",
}


@SECTIONS.register("verdict")
class Verdict(Section):
    """The sentence, importance against replaceability, and the joint cost beside that of random heads."""

    title: ClassVar[str] = "Verdict"
    order: ClassVar[int] = 10

    def blocks(self, analysis: Reportable) -> Iterator[Block]:
        verdict = analysis.verdict
        for warning in analysis.warnings:
            yield Text(warning, role="note")
        yield Text(verdict.found, role="lead")
        if "replaceability" in analysis.scores:
            yield _picture(analysis)
        yield _cost(analysis)
        yield _costs(analysis)
        if "replaceability" in analysis.scores:
            yield _quadrants(analysis)
        yield Text(_basis(analysis), role="note")


def _basis(analysis: Reportable) -> str:
    verdict = analysis.verdict
    # of pictures that are sorted into classes, a row is one thing that counts
    tokens = f" ({count(verdict.n_tokens)} tokens)" if verdict.n_tokens != verdict.n_documents else ""
    text = (
        f"Every number in the sentence was measured on {count(verdict.n_documents)} {verdict.text_unit}{tokens} that "
        "played no part in choosing the heads."
    )
    if verdict.intact:  # a distance to the untouched model is 0 there by definition
        text += f" The untouched model's {verdict.metric} there is {quantity(verdict.intact, verdict.unit)}."
    return text


def _in_units(analysis: Reportable) -> str:
    verdict = analysis.verdict
    return f"{verdict.metric}, {verdict.unit}" if verdict.unit else verdict.metric


def _picture(analysis: Reportable) -> Figure:
    verdict = analysis.verdict
    importance, replaceability = analysis.scores["ablation"], analysis.scores["replaceability"]
    lines = verdict.lines
    best_first = [*map(HeadId.parse, analysis.candidates["head"])]
    ringed, words = figures.to_mark(best_first, frozenset(verdict.chosen), "Ringed")

    def draw(width: float, narrow: bool) -> Drawing:
        ax = figures.canvas(width, 1.15 * width if narrow else _HEIGHT)
        label = f"importance: rise in {_in_units(analysis)}"
        figures.quadrant_plot(importance, replaceability, lines, chosen=ringed, label=label, ax=ax)
        return figures.figure_of(ax)

    top = [str(importance.heads[i]) for i in np.argsort(-np.nan_to_num(importance.score, nan=-np.inf))[:3]]
    undefined = int((np.isnan(importance.score) | np.isnan(replaceability.score)).sum())
    beyond = int((replaceability.score < LEFT_EDGE).sum())
    caption = (
        f"Each dot is a head. Upwards: how much the {verdict.metric} rises when that head alone is removed. To the "
        "right: the share of what varies in it that a linear map of the other heads of its layer gives, judged on text "
        f"that the fit did not see. The lines are at {quantity(lines.importance, verdict.unit)} and "
        f"{number(lines.replaceability, 2)}. {lines.why}"
    )
    if means := means_beside(replaceability):
        caption += f" {_mean_head(means)}"
    if words:
        caption += f" {words}."
    if beyond:
        caption += f" Triangles: {count(beyond, 'head')} left of {number(LEFT_EDGE, 2)}."
    if undefined:
        caption += f" Not drawn: {count(undefined, 'head')} without a number, whose output does not vary."
    alt = (
        f"Scatter plot of {count(len(importance.heads), 'head')}, importance against replaceability. "
        f"The most important are {', '.join(top)}. {count(len(verdict.chosen), 'head')} chosen for removal"
        + (f": {', '.join(map(str, analysis.removal.chosen[:20]))}." if verdict.chosen else ".")
    )
    return Figure("verdict", "What each head is worth, and who could do its work", alt, caption, draw, _SHARES[0])


def _mean_head(means: Mapping[str, float]) -> str:
    """Where the mean head is, and where its lines say that it would be."""
    lines = {name: LOOKS[name][1] if mean > LEFT_EDGE else "left of the edge" for name, mean in means.items()}
    told = [f"{SAID[name]} {fixed(means[name], 2)} ({line})" for name, line in lines.items() if name in SAID]
    return f"The mean head is at {fixed(means['value'], 2)}; upright lines: {', '.join(told)}."


def _cost(analysis: Reportable) -> Figure:
    verdict, removal = analysis.verdict, analysis.removal
    n = len(verdict.chosen)

    def draw(width: float, narrow: bool) -> Drawing:
        ax = figures.canvas(width, 1.1 * width if narrow else _HEIGHT)
        figures.joint_cost(removal, random=verdict.random, ax=ax)
        return figures.figure_of(ax)

    cost = removal.cost(n or 1)
    rise = quantity(cost.value, verdict.unit)
    rise += f" (95% interval {interval(cost.low, cost.high)})" if interval(cost.low, cost.high) else ""
    which = _which(analysis)
    caption = f"From left to right more heads are removed, the cheapest first. Removing {which} costs {rise}. "
    if n:
        caption += (
            f"As many were chosen as cost at most {quantity(verdict.max_loss_rise, verdict.unit)} on the documents "
            "that chose them, by the upper end of the interval. "
        )
        caption += _stable(verdict.stability) if n < len(removal.order) else ""
    if verdict.random:
        caption += "The random sets have as many heads of the same layers."
    return Figure(
        "removal",
        "Removed together",
        f"Curve of the {verdict.metric} against the number of heads removed. Removing {which} raises it by {rise}"
        + (f"; random sets from the same layers by {number(float(np.median(verdict.random)))} in the median."
           if verdict.random else "."),
        caption.strip(),
        draw,
        _SHARES[1],
    )  # fmt: skip


def _which(analysis: Reportable) -> str:
    """The heads that the cost is told of: the chosen ones, or the cheapest where none is."""
    n, there_are = len(analysis.verdict.chosen), analysis.anatomy.n_heads
    head = analysis.verdict.chosen[0] if n else analysis.verdict.cheapest.head
    if n > 1:
        return f"all {n} heads" if n == there_are else f"the {n} cheapest heads"
    return f"{head}, the only head" if there_are == 1 else f"{head}, the cheapest"


def _stable(share: float) -> str:
    if math.isnan(share):
        return ""
    return f"With a tenth of the documents left out, {share:.0%} of the chosen heads would have been chosen again. "


def _costs(analysis: Reportable) -> Table:
    unit, costs, chosen = analysis.removal.unit, analysis.removal.costs, len(analysis.verdict.chosen)
    measure = f", {unit}" if unit else ""
    columns = (
        Column(
            "Heads removed", lambda row: count(int(row.heads)) + (", chosen" if row.heads == chosen else ""),
            numeric=True, strong=True,
        ),
        Column(f"Costs{measure}", lambda row: number(row.cost), numeric=True),
        Column("95% interval", lambda row: interval(row.low, row.high) or MISSING, numeric=True),
        Column("On the documents that chose", lambda row: number(row.chosen_cost), numeric=True),
    )  # fmt: skip
    return Table(
        "removal",
        "What removing them together costs",
        costs,
        columns,
        caption="Each row removes as many heads as it says, from the top of the list of candidates. The cost and its "
        "interval were measured on documents that chose nothing. The last column is the same cost on the documents "
        "that put the heads in order: there it comes out too low, since the order fits them best. The command "
        "headscope plan reads these numbers.",
        telling=_telling(len(costs), bisect_left(analysis.removal.sizes, chosen)),
    )


def _telling(n_rows: int, place: int) -> list[int] | None:
    """Places of about ten rows: the first and the last, one place and its neighbours, and others evenly between.

    >>> _telling(24, 12), _telling(12, 3)
    ([0, 4, 8, 11, 12, 13, 15, 19, 23], None)
    """
    if n_rows <= _FEW + 2:  # not worth a fold
        return None
    spaced = np.linspace(0, n_rows - 1, _FEW - 3).round().astype(int).tolist()
    return sorted({*spaced, *range(max(place - 1, 0), min(place + 2, n_rows))})


def _quadrants(analysis: Reportable) -> Table:
    candidates = analysis.candidates
    rows = []
    for name, meaning in _MEANINGS.items():
        members = candidates[candidates["quadrant"] == name]["head"]
        rows.append({"quadrant": name, "heads": len(members), "meaning": meaning, "members": " ".join(members)})
    columns = (
        Column("Quadrant", lambda row: row.quadrant, strong=True),
        Column("Heads", lambda row: count(row.heads), numeric=True),
        Column("What it means", lambda row: row.meaning, long=True),
    )
    return Table("quadrants", "The four quadrants", pd.DataFrame(rows), columns)
