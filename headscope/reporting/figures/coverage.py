"""Coverage of intervals: how often they hold the truth, against how many documents there are."""

from itertools import cycle

import pandas as pd
from matplotlib.axes import Axes

from headscope.reporting.figures.style import COLOURS, GRID, MUTED, canvas, frameless, room, styled

__all__ = ["coverage_plot"]

_MARKS = {"equal": "o", "unequal": "s"}


@styled
def coverage_plot(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """A dot for each case of a coverage study, with two standard errors, grouped by what was estimated.

    Args:
        table: columns name, lengths, documents, tokens_per_dimension, coverage, error; see
            `headscope.studies.coverage`.
        ax: where to draw; a new figure without it.
    """
    ax = canvas(9.0, 3.6) if ax is None else ax
    colours = dict(zip(table["name"].unique(), cycle(COLOURS.values()), strict=False))
    ax.axhspan(0.90, 0.98, color=GRID, zorder=0)
    ax.axhline(0.95, color=MUTED, linewidth=0.8)
    for place, row in enumerate(table.itertuples()):
        ax.errorbar(
            place, row.coverage, yerr=2 * row.error, fmt=_MARKS[str(row.lengths)], color=colours[row.name],
            markersize=4.5, linewidth=1,
        )  # fmt: skip
    middles = {name: own.index.to_series().mean() for name, own in table.reset_index(drop=True).groupby("name")}
    narrow = room(ax)[0] < 0.75 * len(middles)
    names = [name if narrow else name.replace(" ", "\n").replace("_", "\n") for name in middles]
    ax.set_xticks(list(middles.values()), names, rotation=90 if narrow else 0)
    ax.set_ylabel("share of intervals that hold the truth")
    legend = ("○ documents of equal length", "□ of unequal length; grey: 90 to 98%")
    ax.set_title(("\n" if narrow else "   ").join(legend), fontsize=8.5, loc="left")
    ax.tick_params(axis="x", length=0)
    frameless(ax, "left")
    return ax
