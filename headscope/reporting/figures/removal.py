"""The cost of removing some heads together, beside the cost of removing as many at random."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from headscope._support.formatting import number
from headscope.reporting.figures.scales import set_scale
from headscope.reporting.figures.style import COLOURS, GRID, INK, MUTED, canvas, frameless, styled

__all__ = ["removal"]


@styled
def removal(
    joint: float,
    interval: tuple[float, float],
    random: Sequence[float],
    *,
    subject: str = "these heads\ntogether",
    label: str = "cost",
    ax: Axes | None = None,
) -> Axes:
    """Joint cost of the chosen heads against random draws of as many.

    Args:
        joint: cost of removing the chosen heads together.
        interval: its 95% interval; NaN where there is none.
        random: one cost for each random draw.
        subject: what is removed, as it stands beneath its dot.
        label: what the cost is, with its unit.
        ax: where to draw; a new figure without it.
    """
    ax = canvas(3.4, 3.4) if ax is None else ax
    draws = np.asarray(random, dtype=np.float64)
    set_scale(ax, "y", np.array([joint, *interval, *draws]), most=5)
    frameless(ax)
    ax.tick_params(length=0)
    ax.grid(axis="y", color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.axhline(0, color=MUTED, linewidth=0.8)
    # spread over a fixed width by rank: repeats without a draw of its own, and equal values do not hide each other
    place = 1 + 0.28 * (np.argsort(np.argsort(-draws, kind="stable")) / max(len(draws) - 1, 1) - 0.5)
    ax.scatter(place, draws, s=34, facecolors="none", edgecolors=MUTED, linewidths=1.3, zorder=3)
    if draws.size:
        ax.hlines(draws.mean(), 0.76, 1.24, colors=MUTED, linewidths=1.6, zorder=2)
        ax.text(0.72, draws.mean(), number(float(draws.mean())), ha="right", va="center", color=MUTED)
    colour = COLOURS["redundant"]
    ax.vlines(0, *interval, colors=colour, linewidths=2.4, zorder=3)
    ax.scatter([0], [joint], s=62, c=colour, edgecolors=INK, linewidths=1.1, zorder=4)
    ax.text(0.12, joint, number(joint), va="center", color=colour, fontweight="bold")
    ax.set_xlim(-0.55, 1.55)
    ax.set_xticks([0, 1], [subject, "as many\nat random"])
    ax.tick_params(axis="x", labelsize=9.5, labelcolor=INK)
    ax.set_ylabel(label)
    return ax
