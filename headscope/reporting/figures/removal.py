"""The curve of cost against heads removed: what the first so many heads of one order cost together."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from headscope._support.formatting import number
from headscope.planning.removal import Removal
from headscope.reporting.figures.scales import set_scale
from headscope.reporting.figures.style import COLOURS, GRID, INK, MUTED, canvas, frameless, styled

__all__ = ["joint_cost"]

_BEYOND = 3  # times as many heads as were chosen are shown, a quarter of all at the least
_LEAST = 4


@styled
def joint_cost(
    removal: Removal,
    *,
    chosen: int = 0,
    random: Sequence[float] = (),
    most: float | None = None,
    label: str = "cost",
    whole: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Joint cost of removing the first heads of an order, on documents that chose nothing, with its 95% band.

    Args:
        removal: its costs; the thin line is what the same heads cost where they were chosen.
        chosen: how many heads were chosen; 0 for none.
        random: costs of other sets of as many heads.
        most: the budget, a dashed line.
        label: what the cost is, with its unit.
        whole: draw all numbers of heads; else those around the chosen number.
        ax: where to draw; a new figure without it.
    """
    ax = canvas(5.0, 3.8) if ax is None else ax
    costs = removal.costs if whole else removal.costs[removal.costs["heads"] <= _last(removal, chosen)]
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
    ax.fill_between(heads, low, high, color=colour, alpha=0.16, linewidth=0)
    ax.plot(heads, where, color=MUTED, linewidth=0.9, dashes=(1, 1.5))
    ax.plot(heads, cost, color=colour, linewidth=1.5, marker="o", markersize=3.0)
    if most is not None:
        ax.axhline(most, color=MUTED, linewidth=0.9, dashes=(5, 3))
        ax.annotate(
            f"allowed: {number(most)}", (1, most), (0, 2), ("axes fraction", "data"), "offset points", ha="right",
            va="bottom", color=MUTED, fontsize=8,
        )  # fmt: skip
    if len(random):
        ax.scatter(np.full(len(random), chosen), random, s=22, facecolors="none", edgecolors=MUTED, linewidths=0.9)
    if chosen:
        ax.scatter([chosen], [removal.cost(chosen).value], s=62, c=colour, edgecolors=INK, linewidths=1.1, zorder=4)
    ax.set_xlim(-0.02 * heads[-1], 1.02 * heads[-1] + 0.2)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_xlabel("heads removed, the cheapest first")
    ax.set_ylabel(label)
    return ax


def _last(removal: Removal, chosen: int) -> int:
    """The largest number of heads that is drawn around the chosen number."""
    least = max(_LEAST, len(removal.order) // 4, _BEYOND * chosen)
    return next((size for size in removal.sizes if size >= least), removal.sizes[-1])
