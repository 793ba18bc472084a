"""The verdict: one sentence, the picture to remember, and what removing the chosen heads together costs."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Drawing

from headscope._support.formatting import MISSING, count, interval, number, quantity
from headscope.heads import HeadId
from headscope.reporting import figures
from headscope.reporting.blocks import Block, Column, Figure, Table, Text
from headscope.reporting.figures.quadrants import LEFT_EDGE
from headscope.reporting.reportable import Reportable
from headscope.reporting.sections import SECTIONS, Section

__all__ = ["Verdict"]

_SHARES = (0.64, 0.36)  # of the page, for the picture and the cost beside it
_HEIGHT = 5.4  # inches, of both, so that they stand level
_MEANINGS = {
    "redundant": "Removing one costs little, and the others rebuild most of it: cut these first, but not all "
    "where they rebuild each other.",
    "idle": "Removing one costs little, though the others could not rebuild it: what it does is hardly used here.",
    "backed up": "Removing one costs something, but the others hold most of what is needed to make up for it.",
    "needed": "Removing one costs something, and nothing else in its layer does its work: keep these.",
}


@SECTIONS.register("verdict")
class Verdict(Section):
    """The sentence, importance against replaceability, and the joint cost beside that of random heads."""

    title: ClassVar[str] = "Verdict"
    order: ClassVar[int] = 10

    def blocks(self, analysis: Reportable) -> Iterator[Block]:
        verdict = analysis.verdict
        yield Text(verdict.sentence, role="lead")
        yield _picture(analysis)
        if verdict.chosen:
            yield _cost(analysis)
        yield _quadrants(analysis)
        yield Text(_basis(analysis), role="note")


def _basis(analysis: Reportable) -> str:
    verdict = analysis.verdict
    text = (
        f"Every number in the sentence was measured on {count(verdict.n_documents)} {verdict.text_unit} "
        f"({count(verdict.n_tokens)} tokens) that played no part in choosing the heads."
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
    picked = frozenset(verdict.chosen)
    best_first = [head for head in map(HeadId.parse, analysis.candidates["head"]) if head in picked]

    def draw(width: float, narrow: bool) -> Drawing:
        ax = figures.canvas(width, 1.15 * width if narrow else _HEIGHT)
        label = f"importance: rise in {_in_units(analysis)}"
        figures.quadrant_plot(importance, replaceability, lines, chosen=best_first, label=label, ax=ax)
        return figures.figure_of(ax)

    top = [str(importance.heads[i]) for i in np.argsort(-np.nan_to_num(importance.score, nan=-np.inf))[:3]]
    undefined = int((np.isnan(importance.score) | np.isnan(replaceability.score)).sum())
    beyond = int((replaceability.score < LEFT_EDGE).sum())
    caption = (
        f"Each dot is a head. Upwards: how much the {verdict.metric} rises when that head alone is removed. To the "
        "right: the share of what it writes that the other heads of its layer can rebuild, judged on text that the "
        f"fit did not see. The lines are at {quantity(lines.importance, verdict.unit)} and "
        f"{number(lines.replaceability, 2)}. {lines.why}"
    )
    if verdict.chosen:
        caption += f" Ringed: the {count(len(verdict.chosen), 'head')} chosen for removal."
    if beyond:
        caption += f" Triangles: {count(beyond, 'head')} left of {number(LEFT_EDGE, 2)}."
    if undefined:
        caption += f" Not drawn: {count(undefined, 'head')} without a number, for lack of any output that varies."
    alt = (
        f"Scatter plot of {count(len(importance.heads), 'head')}, importance against replaceability. "
        f"The most important are {', '.join(top)}. {count(len(verdict.chosen), 'head')} chosen for removal"
        + (f": {', '.join(map(str, best_first[:20]))}." if verdict.chosen else ".")
    )
    return Figure("verdict", "What each head is worth, and who could do its work", alt, caption, draw, _SHARES[0])


def _cost(analysis: Reportable) -> Figure:
    verdict = analysis.verdict
    alone = str(verdict.chosen[0]) if len(verdict.chosen) == 1 else ""
    ends = (verdict.joint_low, verdict.joint_high)

    def draw(width: float, narrow: bool) -> Drawing:
        ax = figures.canvas(width, 0.8 * width if narrow else _HEIGHT)
        subject = f"{alone}\nalone" if alone else "these heads\ntogether"
        label = f"rise in {_in_units(analysis)}"
        figures.removal(verdict.joint, ends, verdict.random, subject=subject, label=label, ax=ax)
        return figures.figure_of(ax)

    rise = quantity(verdict.joint, verdict.unit)
    rise += f" (95% interval {interval(*ends)})" if interval(*ends) else ""
    average = quantity(float(np.mean(verdict.random)), verdict.unit) if verdict.random else MISSING
    draws = count(len(verdict.random), "random draw")
    which = alone or f"the {len(verdict.chosen)} chosen heads together"
    return Figure(
        "removal",
        "Removed, against chance",
        f"Removing {which} raises the {verdict.metric} by {rise}; {draws} of as many heads raise it by {average} on "
        "average.",
        f"What it costs to remove {which}, without any repair: {rise}. As many redundant heads were chosen, from the "
        f"least important on, as cost at most {quantity(verdict.max_loss_rise, verdict.unit)} where they were chosen. "
        f"Open circles: {draws} of as many heads; their mean, the bar, is {average}.",
        draw,
        _SHARES[1],
    )


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
