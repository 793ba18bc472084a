"""Ratios of a benchmark: what each arm took, beside the arm that it is measured against."""

import pandas as pd
from matplotlib.axes import Axes

from headscope._support.formatting import number
from headscope.reporting.figures.style import COLOURS, INK, MUTED, canvas, frameless, styled

__all__ = ["ratios"]


@styled
def ratios(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """A bar for each arm of a benchmark, as long as its ratio to the arm that it is measured against.

    Args:
        table: columns work, case, arm, ratio, goal; see `headscope.studies.benchmark`.
        ax: where to draw; a new figure without it.
    """
    ax = canvas(8.0, 0.32 * len(table) + 0.9) if ax is None else ax
    names = [f"{row.work}, {row.case}: {row.arm}" for row in table.itertuples()]
    colours = [COLOURS["idle"] if row.ratio == 1 else COLOURS["needed"] for row in table.itertuples()]
    places = range(len(table))
    ax.barh(places, table["ratio"], color=colours, height=0.6)
    for place, row in zip(places, table.itertuples(), strict=True):
        said = f" {number(row.ratio)}" + (f"   ({row.goal})" if row.goal else "")
        ax.text(row.ratio, place, said, va="center", color=INK if row.goal else MUTED, fontsize=8)
    ax.axvline(1, color=MUTED, linewidth=0.8, zorder=0)
    ax.set_yticks(list(places), names)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.45 * float(table["ratio"].max()))
    ax.set_xlabel("ratio")
    ax.tick_params(axis="y", length=0)
    frameless(ax, "bottom")
    return ax
