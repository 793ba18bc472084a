"""Costs: time, memory and operations against length or the number of heads, on doubly logarithmic axes."""

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from headscope.reporting.figures.style import ARM_NAMES, COLOURS, GRID, INK, MUTED, canvas, frameless, styled
from headscope.uncertainty.intervals import mean_spread

__all__ = ["cost_curve", "cost_curves", "cost_terms", "cost_times"]

_COLOURS = {"eager": COLOURS["redundant"], "sdpa": COLOURS["needed"]}
_WIDTHS = {"eager": 3.2}  # so that one line shows under another that is the same
_KERNELS: dict[str, Any] = {"eager": "-", "sdpa": "--"}
_LOOKS = {
    "parameters": (COLOURS["backed up"], "D"), "operations": (INK, "o"), "memory": (COLOURS["redundant"], "s"),
    "time": (COLOURS["needed"], "^"),
}  # fmt: skip
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
    _logarithmic(ax, x, quantity)
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


@styled
def cost_terms(
    costs: pd.DataFrame,
    part: str,
    fitted: Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]],
    crossings: Mapping[tuple[str, str], float],
) -> Figure:
    """Operations, memory and time of inference against length: what was measured, and what was fitted through it.

    Args:
        costs: see `headscope.studies.scaling.scale_costs`; of time all rounds are drawn.
        part: "attention", "block", or "model".
        fitted: lengths and their costs, by kernel and quantity; drawn as lines.
        crossings: tokens from which on what grows with the square is most of what grows, by kernel and quantity; drawn
            as dotted lines, what lies beyond the axis not.
    """
    own = costs[(costs["part"] == part) & (costs["against"] == "length") & (costs["mode"] == "inference")]
    figure = Figure(figsize=(9.6, 3.5), layout="constrained")
    axes = dict(zip(("flops", "bytes", "seconds"), figure.subplots(1, 3), strict=True))
    lengths = np.sort(own["length"].unique()).astype(np.float64)
    for quantity, ax in axes.items():
        for kernel, points in own.groupby("kernel", sort=False):
            stroke = _kernel(str(kernel))
            look: Any = {"color": stroke.get_color(), "linestyle": stroke.get_linestyle()}
            shown = points if quantity == "seconds" else points.drop_duplicates("length")
            size, face = stroke.get_markersize(), stroke.get_markerfacecolor()
            ax.plot(shown["length"], shown[quantity], "o", color=look["color"], markersize=size, markerfacecolor=face)
            if (curve := fitted.get((str(kernel), quantity))) is not None:
                ax.plot(*curve, linewidth=1.6, **look)
            elif quantity == "seconds":
                middle = points.groupby("length")[quantity].median()
                ax.plot(middle.index, middle, linewidth=1.2, **look)
        _logarithmic(ax, lengths, quantity)
        ax.set_xlabel("tokens")
        ax.set_title(_QUANTITIES[quantity], loc="left", fontsize=10, color=INK)
        places: dict[int, list[str]] = {}
        for (kernel, of), at in crossings.items():
            if of == quantity and lengths[0] <= at <= lengths[-1]:
                places.setdefault(round(at), []).append(str(kernel))
        for at, named in places.items():
            _overtaking(ax, at, named, late=at > (lengths[0] * lengths[-1]) ** 0.5)
    kernels = own["kernel"].unique().tolist()
    figure.legend([_kernel(name) for name in kernels], kernels, loc="outside upper left", ncols=2, frameon=False)
    return figure


@styled
def cost_times(costs: pd.DataFrame) -> Figure:
    """How many times as much so many heads cost as the fewest do: a panel for each kind of run (downwards) and arm.

    Args:
        costs: columns run, arm, quantity, n_heads, times, low, high; quantities as "operations", "memory, eager". Bands
            run from low to high.
    """
    runs, arms = costs["run"].unique().tolist(), costs["arm"].unique().tolist()
    quantities = costs["quantity"].unique().tolist()
    figure = Figure(figsize=(4.0 * len(arms) + 0.4, 3.0 * len(runs) + 0.7), layout="constrained")
    axes = figure.subplots(len(runs), len(arms), squeeze=False, sharex=True, sharey=True)
    for (row, run), (column, arm) in product(enumerate(runs), enumerate(arms)):
        ax = axes[row, column]
        for quantity in quantities:
            own = costs[(costs["run"] == run) & (costs["arm"] == arm) & (costs["quantity"] == quantity)]
            look = _look(quantity)
            ax.fill_between(own["n_heads"], own["low"], own["high"], color=look["color"], alpha=0.16, linewidth=0)
            ax.plot(own["n_heads"], own["times"], linewidth=1.5, label=quantity, **look)
        heads = sorted(costs["n_heads"].unique())
        _logarithmic(ax, heads)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"× {value:g}"))
        ax.set_title(", ".join(filter(None, (ARM_NAMES[arm], run))), loc="left", fontsize=10, color=INK)
        ax.set_xlabel("heads" if row == len(runs) - 1 else "")
        ax.set_ylabel(f"of what {heads[0]} head takes" if not column else "")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(len(labels), 5), frameon=False, fontsize=9)
    return figure


def _look(quantity: str) -> dict[str, Any]:
    """Colour, marker and line of a quantity: those of a kernel that writes no maps are hollow and dashed."""
    what, _, kernel = quantity.partition(", ")
    colour, marker = _LOOKS[what]
    hollow = {"markerfacecolor": "none", "linestyle": "--"} if kernel == "sdpa" else {}
    return {"color": colour, "marker": marker, "markersize": 5.0, **hollow}


def _overtaking(ax: Axes, at: float, kernels: list[str], *, late: bool) -> None:
    """A dotted line at a number of tokens, named where no curve is: late on the axis below them, early on it above."""
    ax.axvline(at, color=MUTED, linewidth=0.9, linestyle=":")
    ax.annotate(
        f"T² overtakes T\nat {at:,.0f} ({', '.join(kernels)})", (at, 0.04 if late else 0.96), (-4 if late else 4, 0),
        xycoords=ax.get_xaxis_transform(), textcoords="offset points", color=MUTED, fontsize=8,
        ha="right" if late else "left", va="bottom" if late else "top",
    )  # fmt: skip


def _kernel(name: str) -> Line2D:
    """As it stands in the legend of points and what was fitted through them."""
    colour = _COLOURS.get(name, COLOURS["backed up"])
    size, face = (4.0, colour) if name == "eager" else (8.0, "none")
    return Line2D([], [], color=colour, linestyle=_KERNELS[name], marker="o", markersize=size, markerfacecolor=face)


def _stroke(kernel: str, arm: str) -> Line2D:
    """As it stands in the legend."""
    colour = _COLOURS.get(kernel, COLOURS["backed up"])
    return Line2D([], [], color=colour, linestyle=_STYLES[arm], linewidth=_WIDTHS.get(kernel, 1.3))


def _logarithmic(ax: Axes, sizes: Iterable[float], quantity: str = "") -> None:
    """Doubly logarithmic axes without a frame: sizes across, a quantity with its unit, if it has one, upwards."""
    frameless(ax)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=10)
    places = list(sizes)
    ax.set_xticks(places, [f"{value:g}" for value in places])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _scaled(value, _UNITS.get(quantity, ""))))
    bottom, ceiling = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(10, _ticks(ceiling / bottom)))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, which="both")


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
