"""Shares: how many heads cost more than a size, for every size."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from headscope.reporting.figures.style import COLOURS, GRID, MUTED, frameless, styled

__all__ = ["share_curves"]

Floats = npt.NDArray[np.float64]


@styled
def share_curves(table: pd.DataFrame, *, unit: str, task: str = "") -> Figure:
    """Share of heads whose removal costs more than a size, against the size; noise of equal length beside it.

    Args:
        table: a row a head (and training_seed, if there are several), columns effect, effect_low, effect_high, size;
            noise where it was measured; task, task_low, task_high where a task was.
        unit: of the effect.
        task: what the task is called; "" for none.
    """
    figure = Figure(figsize=(8.4 if task else 5.6, 3.4), layout="constrained")
    axes = figure.subplots(1, 2 if task else 1, squeeze=False)[0]
    noise = table["noise"].to_numpy(np.float64) if "noise" in table else np.empty(0)
    _draw(
        axes[0], table, "effect", f"cost of removing the head, {unit}" if unit else "cost of removing the head", noise
    )
    if np.isfinite(noise).any():
        x, y = _exceeding(noise)
        axes[0].step(x, y, color=MUTED, linestyle="--", linewidth=1.4, where="pre", label="noise of its length")
    axes[0].axvline(float(table["size"].mean()), color=MUTED, linewidth=0.9, linestyle=":")
    axes[0].set_ylabel("share of heads that cost more")
    axes[0].legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2, fontsize=8.5)
    if task:
        _draw(axes[1], table, "task", f"rise in the share of pairs taken wrong\n({task})")
    return figure


def _draw(ax: Axes, table: pd.DataFrame, name: str, label: str, noise: Floats | tuple[()] = ()) -> None:
    values, low, high = (table[column].to_numpy(np.float64) for column in (name, f"{name}_low", f"{name}_high"))
    frameless(ax)
    ax.grid(color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    grid = _sizes(np.concatenate([values, noise]))
    least, most = (np.array([(own > size).mean() for size in grid]) for own in (low, high))
    ax.fill_between(grid, least, most, color=COLOURS["needed"], alpha=0.16, linewidth=0, step="pre")
    x, y = _exceeding(values)
    ax.step(x, y, color=COLOURS["needed"], linewidth=1.8, where="pre", label="removed")
    ax.set_xscale("log")
    ax.set_xlim(grid[0], grid[-1])
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_xlabel(label)
    ax.tick_params(length=0, which="both")


def _exceeding(values: Floats) -> tuple[Floats, Floats]:
    """Sizes, ascending, and the share of heads that cost at least as much; heads that cost nothing stand at no size."""
    ordered = np.sort(values[values > 0])
    share = (len(ordered) - np.arange(len(ordered))) / max(len(values), 1)
    return ordered, share


def _sizes(values: Floats) -> Floats:
    """Two hundred sizes from a little below the smallest cost to a little above the largest."""
    above = values[np.isfinite(values) & (values > 0)]
    if not len(above):
        return np.geomspace(1e-4, 1.0, 200)
    return np.geomspace(max(float(above.min()), float(above.max()) * 1e-4) / 1.5, float(above.max()) * 2, 200)
