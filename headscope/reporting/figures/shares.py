"""Shares: how many heads cost more than a size, for every size."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from headscope.reporting.figures.legends import legend_above
from headscope.reporting.figures.scales import short
from headscope.reporting.figures.style import COLOURS, GRID, INK, MUTED, frameless, styled

__all__ = ["share_curves"]

Floats = npt.NDArray[np.float64]


@styled
def share_curves(table: pd.DataFrame, *, unit: str, task: tuple[str, float] | None = None) -> Figure:
    """Share of heads whose removal costs more than a size, against the size; noise of equal length beside it.

    Args:
        table: a row a head (and training_seed, if there are several), columns effect, effect_low, effect_high, size;
            noise where it was measured; task, task_low, task_high where a task was. The size is a dotted line.
        unit: of the effect.
        task: what the task is called, and the size that counts in it; None for none.
    """
    figure = Figure(figsize=(8.8 if task else 5.6, 3.5), layout="constrained")
    axes = figure.subplots(1, 2 if task else 1, squeeze=False)[0]
    noise = table["noise"].to_numpy(np.float64) if "noise" in table else np.empty(0)
    words = "cost of removing the head" + (f", {unit}" if unit else "")
    _draw(axes[0], table, "effect", words, float(table["size"].mean()), noise)
    axes[0].set_ylabel("share of heads that cost more")
    if task:
        name, size = task
        _draw(axes[1], table, "task", f"rise in the share of pairs taken wrong\n({name})", size, np.empty(0))
    return figure


def _draw(ax: Axes, table: pd.DataFrame, name: str, label: str, size: float, noise: Floats) -> None:
    values, low, high = (table[column].to_numpy(np.float64) for column in (name, f"{name}_low", f"{name}_high"))
    frameless(ax)
    ax.grid(color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    grid = _sizes(np.concatenate([values, noise, [size]]))
    least, most = (np.array([(own > one).mean() for one in grid]) for own in (low, high))
    ax.fill_between(grid, least, most, color=COLOURS["needed"], alpha=0.16, linewidth=0, step="pre")
    ax.plot(*_exceeding(values, grid), color=COLOURS["needed"], linewidth=1.8, label="removed")
    if np.isfinite(noise).any():
        ax.plot(*_exceeding(noise, grid), color=MUTED, linestyle="--", linewidth=1.4, label="noise of its length")
    ax.axvline(size, color=INK, linewidth=1.1, linestyle=":", label=f"the size that counts, {short(size)}")
    ax.set_xscale("log")
    ax.set_xlim(grid[0], grid[-1])
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_xlabel(label)
    ax.tick_params(length=0, which="both")
    legend_above(ax, 2)


def _exceeding(values: Floats, grid: Floats) -> tuple[Floats, Floats]:
    """Corners of the line of the share of heads that cost more than a size, from one end of the axis to the other."""
    steps = np.sort(values[(values > grid[0]) & (values < grid[-1])])
    share = np.array([(values > size).mean() for size in (grid[0], *steps)])
    return np.array([grid[0], *np.repeat(steps, 2), grid[-1]]), np.repeat(share, 2)


def _sizes(values: Floats) -> Floats:
    """Two hundred sizes from a little below the smallest to a little above the largest, over four decades at most."""
    above = values[np.isfinite(values) & (values > 0)]
    above = above[above >= 1e-4 * above.max(initial=0.0)]  # what rounding leaves of 0 has no place
    if not len(above):
        return np.geomspace(1e-4, 1.0, 200)
    return np.geomspace(float(above.min()) / 1.5, float(above.max()) * 2, 200)
