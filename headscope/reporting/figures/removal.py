"""The curve of cost against heads removed: what the first so many heads of one order cost together."""

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from headscope._support.formatting import count, number
from headscope.planning.removal import Removal
from headscope.reporting.figures.legends import legend_below
from headscope.reporting.figures.scales import set_scale
from headscope.reporting.figures.style import COLOURS, GRID, INK, MUTED, canvas, frameless, styled

__all__ = ["joint_cost"]

_BEYOND = 3  # times as many heads as were chosen are shown, a quarter of all at the least
_LEAST = 4
_ENTRY = 2.4  # inches that an entry of the legend takes


@styled
def joint_cost(removal: Removal, *, random: Sequence[float] = (), ax: Axes | None = None) -> Axes:
    """Joint cost of removing the first heads of an order, on documents that chose nothing, with its 95% band.

    Those numbers of heads are drawn that stand about the chosen one; all of them where there is no budget.

    Args:
        removal: its costs, its budget as a dashed line, and the chosen number as a large dot; the dotted line is what
            the same heads cost where they were chosen.
        random: costs of other sets with as many heads as were chosen.
        ax: where to draw; a new figure without it.
    """
    ax = canvas(5.0, 4.2) if ax is None else ax
    costs, most = removal.costs[removal.costs["heads"] <= _last(removal)], removal.budget
    heads = np.append(0, costs["heads"].to_numpy(np.float64))
    cost, low, high, where = (
        np.append(0.0, costs[name].to_numpy(np.float64)) for name in ("cost", "low", "high", "chosen_cost")
    )
    colour, line = COLOURS["redundant"], [] if most is None else [most]
    set_scale(ax, "y", np.array([*cost, *low, *high, *random, *line]), most=5)
    frameless(ax)
    ax.tick_params(length=0)
    ax.grid(axis="y", color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    band = ax.fill_between(heads, low, high, color=colour, alpha=0.16, linewidth=0, label="95% interval")
    (there,) = ax.plot(heads, where, color=MUTED, linewidth=0.9, dashes=(1, 1.5), label="on those that chose the heads")
    (elsewhere,) = ax.plot(
        heads, cost, color=colour, linewidth=1.5, marker="o", markersize=3.0, label="on documents that chose nothing"
    )
    known = [band] if np.isfinite(high[1:]).any() else []
    told = [elsewhere, *known, there, *_draw_marks(ax, removal, random)]
    if most is not None:
        _draw_budget(ax, most)
    ax.set_xlim(-0.02 * heads[-1], 1.02 * heads[-1] + 0.2)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_xlabel("heads removed, the cheapest first")
    ax.set_ylabel(", ".join(filter(None, (f"rise in {removal.metric}", removal.unit))))
    legend_below(ax, told, _ENTRY, fontsize=8)
    return ax


def _draw_marks(ax: Axes, removal: Removal, random: Sequence[float]) -> list[Artist]:
    """The chosen number of heads, and what other sets of as many cost."""
    marks: list[Artist] = []
    if chosen := len(removal.chosen):
        cost = [removal.cost(chosen).value]
        words = f"the {chosen} chosen heads" if chosen > 1 else f"the chosen head, {removal.order[0]}"
        marks.append(
            ax.scatter(
                [chosen], cost, s=62, c=COLOURS["redundant"], edgecolors=INK, linewidths=1.1, zorder=4, label=words
            )
        )
    if len(random):
        spots, words = np.full(len(random), chosen), f"{count(len(random), 'random set')} of as many heads"
        marks.append(ax.scatter(spots, random, s=22, facecolors="none", edgecolors=MUTED, linewidths=0.9, label=words))
    return marks


def _draw_budget(ax: Axes, most: float) -> None:
    ax.axhline(most, color=MUTED, linewidth=0.9, dashes=(5, 3))
    ax.annotate(
        f"allowed: {number(most)}", (1, most), (0, 2), ("axes fraction", "data"), "offset points", ha="right",
        va="bottom", color=MUTED, fontsize=8,
    )  # fmt: skip


def _last(removal: Removal) -> int:
    """The largest number of heads that is drawn."""
    least = max(_LEAST, len(removal.order) // 4, _BEYOND * len(removal.chosen))
    if removal.budget is None:
        least = len(removal.order)
    return next((size for size in removal.sizes if size >= least), removal.sizes[-1])
