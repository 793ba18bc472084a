"""Numbers that come in pairs: each pair a line, what they differ by below, means with their intervals."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from headscope.reporting.figures.legends import legend_below
from headscope.reporting.figures.style import COLOURS, GRID, INK, MUTED, canvas, frameless, styled

__all__ = ["paired_dots"]

_SPREAD = 0.16  # of dots, up and down, so that equal ones can be counted
_BELOW = 0.34  # of a row's dots: where its mean stands


@styled
def paired_dots(
    table: pd.DataFrame,
    rows: Mapping[str, str],
    means: Mapping[str, Sequence[Sequence[float]]],
    *,
    sizes: Mapping[str, float],
    label: str,
    noun: str,
    ax: Axes | None = None,
) -> Axes:
    """A row of dots for each kind of number, one below the other; the first two belong together, pair by pair.

    Args:
        table: columns as of `rows`.
        rows: what each kind is called, from above; a line joins each dot of the first to its own of the second.
        means: of each kind, a diamond each with its interval: mean, low end, high end.
        sizes: what the mean of a kind is held against, a dotted mark on either side of 0.
        label: of the horizontal axis.
        noun: what a dot is, in the singular.
        ax: where to draw; a new figure without it.
    """
    ax = canvas(6.2, 4.0) if ax is None else ax
    frameless(ax, "bottom")
    ax.grid(color=GRID, linewidth=0.6, axis="x")
    ax.set_axisbelow(True)
    ax.axvline(0, color=MUTED, linewidth=0.8)
    rng = np.random.default_rng(0)
    places = {name: -float(row) for row, name in enumerate(rows)}
    heights = {name: place + rng.uniform(-_SPREAD, _SPREAD, len(table)) for name, place in places.items()}
    first, second, *_ = rows
    pairs = [[table[name].to_numpy(np.float64) for name in (first, second)], [heights[first], heights[second]]]
    ax.plot(*pairs, color=MUTED, linewidth=0.4, alpha=0.35)
    for name, place in places.items():
        ax.plot(table[name], heights[name], "o", color=COLOURS["needed"], markersize=3.2, alpha=0.5, markeredgewidth=0)
        for number, (middle, low, high) in enumerate(means[name]):
            below = place - _BELOW - 0.3 * number / len(means[name])
            ax.hlines(below, low, high, color=INK, linewidth=1.5)
            ax.plot(middle, below, "D", color=INK, markersize=4.5)
        for end in (-sizes[name], sizes[name]) if name in sizes else ():
            ax.vlines(end, place - 0.7, place + 0.25, color=COLOURS["redundant"], linewidth=1.3, linestyle=":")
    ax.set_yticks(list(places.values()), list(rows.values()))
    ax.set_ylim(-len(rows) + 0.25, 0.35)
    ax.set_xlabel(label)
    ax.tick_params(length=0)
    marks = [
        Line2D([], [], color=COLOURS["needed"], marker="o", markersize=3.5, linewidth=0, label=f"one {noun}"),
        Line2D([], [], color=INK, marker="D", markersize=4.5, linewidth=1.5, label="mean and 95% interval"),
        Line2D([], [], color=COLOURS["redundant"], linestyle=":", linewidth=1.3, label="the size it is held against"),
    ]
    legend_below(ax, marks, 2.0)
    return ax
