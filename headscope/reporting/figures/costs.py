"""Costs: time, memory and operations against length or the number of heads, on doubly logarithmic axes."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from headscope.reporting.figures.style import ARM_NAMES, COLOURS, GRID, INK, MUTED, canvas, frameless, styled
from headscope.uncertainty.intervals import mean_spread

__all__ = ["cost_curve", "cost_curves"]

_COLOURS = {"eager": COLOURS["redundant"], "sdpa": COLOURS["needed"]}
_WIDTHS = {"eager": 3.2}  # so that one line shows under another that is the same
_STYLES: dict[str, Any] = {"width": "-", "head_dim": "--"}
_QUANTITIES = {"seconds": "time", "bytes": "memory", "flops": "operations"}
_UNITS = {"seconds": "s", "bytes": "B", "flops": ""}
_PREFIXES = {-3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T"}


@styled
def cost_curve(
    costs: pd.DataFrame,
    part: str,
    against: str,
    mode: str,
    quantity: str = "seconds",
    *,
    ax: Axes | None = None,
) -> Axes:
    """One quantity of one part in one mode, a line for each kernel and arm; bands are 95% intervals over rounds.

    Args:
        costs: see `headscope.studies.scaling.scale_costs`.
        part: "attention", "block", or "model".
        against: "length" or "heads".
        mode: "inference" or "training".
        quantity: "seconds", "bytes" or "flops".
        ax: where to draw; a new figure without it.

    Against length, a dotted line beneath shows what grows with its square.
    """
    ax = canvas(4.0, 3.2) if ax is None else ax
    own = costs[(costs["part"] == part) & (costs["against"] == against) & (costs["mode"] == mode)]
    size = "length" if against == "length" else "n_heads"
    frameless(ax)
    least = np.inf  # of what curves are over the square of the size: beneath it a square crosses none
    for (arm, kernel), line in own.groupby(["arm", "kernel"], sort=False):
        table = line.pivot(index="round", columns=size, values=quantity)
        x, logs = table.columns.to_numpy(np.float64), np.log(table.to_numpy(np.float64))
        spread = mean_spread(logs.T, np.arange(len(logs)))
        low, high = (np.exp(end) for end in spread.interval())
        y = np.exp(spread.centre)
        colour = _COLOURS.get(str(kernel), COLOURS["backed up"])
        ax.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
        wide = _WIDTHS.get(str(kernel), 1.3)
        ax.plot(x, y, color=colour, linestyle=_STYLES[str(arm)], marker="o", markersize=1.3 + wide, linewidth=wide)
        least = min(least, float((y[-3:] / (x[-3:] / x[-1]) ** 2).min()))
    if against == "length":
        below = 0.5 * least * (x[-3:] / x[-1]) ** 2
        ax.plot(x[-3:], below, color=MUTED, linewidth=0.9, linestyle=":")
        foot = x[-3], below[0]
        ax.annotate("∝ T²", foot, (6, 0), textcoords="offset points", color=MUTED, fontsize=8, va="center")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=10)
    ax.set_xticks(list(x), [f"{value:g}" for value in x])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _scaled(value, _UNITS[quantity])))
    bottom, ceiling = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(10, _ticks(ceiling / bottom)))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, which="both")
    ax.set_xlabel("tokens" if against == "length" else "heads")
    ax.set_ylabel(_QUANTITIES[quantity])
    return ax


@styled
def cost_curves(costs: pd.DataFrame, part: str, against: str) -> Figure:
    """`cost_curve` of time, memory and operations (downwards), in inference and in training (across).

    Args:
        costs, part, against: see `cost_curve`.
    """
    own = costs[(costs["part"] == part) & (costs["against"] == against)]
    modes = own["mode"].unique().tolist()
    figure = Figure(figsize=(3.4 * len(modes) + 0.4, 7.4), layout="constrained")
    axes = figure.subplots(len(_QUANTITIES), len(modes), squeeze=False, sharey="row")
    for row, quantity in enumerate(_QUANTITIES):
        for column, mode in enumerate(modes):
            ax = cost_curve(costs, part, against, mode, quantity, ax=axes[row, column])
            if column:
                ax.set_ylabel("")
            if row < len(_QUANTITIES) - 1:
                ax.set_xlabel("")
    for ax, mode in zip(axes[0], modes, strict=True):
        ax.set_title(mode, loc="left", fontsize=10, color=INK)
    lines = own[["kernel", "arm"]].drop_duplicates().to_dict("records")
    several = own["arm"].nunique() > 1
    handles = [_stroke(line["kernel"], line["arm"]) for line in lines]
    names = [line["kernel"] + (f", {ARM_NAMES[line['arm']]}" if several else "") for line in lines]
    figure.legend(handles, names, loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return figure


def _stroke(kernel: str, arm: str) -> Line2D:
    """As it stands in the legend."""
    colour = _COLOURS.get(kernel, COLOURS["backed up"])
    return Line2D([], [], color=colour, linestyle=_STYLES[arm], linewidth=_WIDTHS.get(kernel, 1.3))


def _ticks(times: float) -> tuple[float, ...]:
    """Where a decade is marked on an axis that spans so many times."""
    if times > 3000:
        return (1.0,)
    return (1.0, 3.0) if times > 60 else (1.0, 2.0, 5.0)


def _scaled(value: float, unit: str) -> str:
    """With the prefix that fits: 2 ms, 30 MB."""
    if value <= 0:
        return ""
    power = int(np.clip(np.floor(np.log10(value) / 3 + 1e-9), -3, 4))
    return f"{value / 1000.0**power:g} {_PREFIXES[power]}{unit}".strip()
