"""Where the important heads are, and which heads are the best candidates for removal."""

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure as Drawing

from headscope._support.formatting import MISSING, brief, count, fixed, power_of_ten, quantity, thousands
from headscope._support.grids import bend
from headscope.reporting import figures
from headscope.reporting.blocks import Block, Column, Figure, Table
from headscope.reporting.reportable import Reportable
from headscope.reporting.sections import SECTIONS, Section

__all__ = ["Importance"]

_SHOWN = 12


@SECTIONS.register("importance")
class Importance(Section):
    """The layer × head map of importance, and the candidates, best first."""

    title: ClassVar[str] = "Importance and candidates"
    order: ClassVar[int] = 20

    def blocks(self, analysis: Reportable) -> Iterator[Block]:
        yield _map(analysis)
        yield _candidates(analysis)


def _map(analysis: Reportable) -> Figure:
    table = analysis.scores["ablation"]
    framed, words = figures.to_mark(table.heads, frozenset(analysis.verdict.chosen), "Framed")
    layers, heads = ({getattr(head, axis) for head in table.heads} for axis in ("layer", "head"))

    def draw(width: float, narrow: bool) -> Drawing:
        across = not narrow and len(layers) > 1.5 * len(heads)  # few heads, many layers: lie down where there is room
        rows, columns = (len(heads), len(layers)) if across else (len(layers), len(heads))
        ax = figures.canvas(width, figures.map_height(rows, columns, width))
        label = "importance" + (f", {table.unit}" if table.unit else "")
        figures.head_map(table, chosen=framed, layers_across=across, label=label, ax=ax)
        return figures.figure_of(ax)

    known = np.flatnonzero(np.isfinite(table.score))
    order = known[np.argsort(-table.score[known])]
    top = ", ".join(f"{table.heads[i]} ({quantity(float(table.score[i]), table.unit)})" for i in order[:3])
    negative = int((table.score < 0).sum())
    total = float(np.clip(table.score[known], 0, None).sum())
    tenth = order[: max(1, round(len(order) / 10))]
    caption = (
        f"One cell a head: how much the {analysis.verdict.metric} rises when it alone is removed, on the documents "
        "that heads are chosen on. What the verdict says of a head was measured on others. "
    )
    if total > 0 and len(order) > 1:
        share = float(np.clip(table.score[tenth], 0, None).sum()) / total
        which = f"{table.heads[tenth[0]]} alone holds" if len(tenth) == 1 else f"The top {len(tenth)} heads hold"
        caption += f"{which} {share:.0%} of all importance. "
    if negative:
        caption += f"Red: {count(negative, 'head')} whose effect came out below zero. "
    if bend(table.score) is not None:
        caption += "The scale is even near zero and logarithmic above, so that small differences stay visible. "
    if words:
        caption += f"{words}."
    return Figure(
        "importance",
        "What removing each head costs",
        f"Heat map of {count(len(layers), 'layer')} by up to {count(len(heads), 'head')}. Highest: {top}.",
        caption.strip(),
        draw,
    )


def _candidates(analysis: Reportable) -> Table:
    candidates, unit = analysis.candidates, analysis.verdict.unit
    chosen = set(map(str, analysis.verdict.chosen))
    power = thousands(candidates["importance"])
    scale = 10.0**power
    measure = " ".join(filter(None, (power_of_ten(power) if power else "", unit)))
    columns = (
        Column("Head", lambda row: row.head, strong=True),
        Column(
            ", ".join(filter(None, ("Importance", measure))), lambda row: brief(row.importance / scale), numeric=True
        ),
        Column("95% interval", lambda row: _interval(row.low / scale, row.high / scale), numeric=True),
        Column("Replaceable", lambda row: fixed(row.replaceability, 2), numeric=True),
        Column("Restored", lambda row: fixed(row.restored, 2), numeric=True),
        Column("Stand-in", _stand_in),
        Column("Quadrant", lambda row: _words(row.quadrant) + (", chosen" if row.head in chosen else "")),
        Column("Why", lambda row: _words(row.reason), long=True),
    )
    return Table(
        "candidates",
        "Best candidates for removal",
        candidates,
        columns,
        _SHOWN,
        "In the order in which they go: the cheapest first, on the documents that heads are chosen on. "
        "Replaceable: share of what varies in the head that the others of its layer give (1 = all of it; below 0 = "
        "worse than a constant). Restored: what they and a constant give back of all that it writes. Stand-in: the one "
        f"head that alone gives most of what varies, and that share. {MISSING} stands where there is none, or where "
        "the head's output never varies. Chosen: as many as the budget allows. The file has every head, every score.",
    )


def _interval(low: float, high: float) -> str:
    return MISSING if math.isnan(low) or math.isnan(high) else f"{brief(low)} to {brief(high)}"


def _words(value: Any) -> str:
    return value if isinstance(value, str) and value else MISSING


def _stand_in(row: Any) -> str:
    name = _words(row.stand_in)
    return name if name == MISSING or math.isnan(row.stand_in_share) else f"{name}\u00a0({row.stand_in_share:.0%})"
