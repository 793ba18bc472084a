"""Head counts: what was measured of learners with few heads and with many, with bands over seeds."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, NullFormatter, PercentFormatter

from headscope.reporting.figures.style import ARM_NAMES, COLOURS, GRID, INK, MUTED, canvas, frameless, styled
from headscope.uncertainty.intervals import mean_spread

__all__ = ["count_curve", "count_curves", "map_bound", "regret_curves", "removal_curves"]

ARM_COLOURS = {"width": COLOURS["redundant"], "head_dim": COLOURS["needed"]}
_MANY_MARKS = "osD^vP*X<>hd"  # of lines that are many: told apart without colours
_MARKS = {"width": "o", "head_dim": "s"}
_UNITS = {"parameters": "", "flops": "", "memory": "B", "seconds": "s"}  # of what spans many sizes
_BESIDE: dict[str, Any] = {"linestyle": ":", "linewidth": 1.4, "markersize": 4.0, "markerfacecolor": "none"}
_SIDE, _ROW = 3.1, 2.7  # inches of a panel
_MOST_COLUMNS = 3


@styled
def count_curve(
    runs: pd.DataFrame, task: str, value: str = "error", *, beside: str | None = None, ax: Axes | None = None
) -> Axes:
    """One value of the learners of a task against their number of heads: means over seeds, a line an arm.

    Args:
        runs: columns task, arm, n_heads, seed, chance, unit and the value; see `headscope.studies.headcount.Sweep`.
        task: whose runs.
        value: the column; of "error" chance is drawn too, where it is near.
        beside: a further column, drawn dotted in the same colours.
        ax: where to draw; a new figure without it.

    Bands are 95% intervals of the mean over seeds.
    """
    ax = canvas(4.2, 3.2) if ax is None else ax
    own = runs[runs["task"] == task]
    frameless(ax)
    ax.grid(color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    counts: set[int] = set()
    for arm, part in own.groupby("arm", sort=False):
        table = part.pivot(index="seed", columns="n_heads", values=value).dropna(axis=1, how="all")
        if table.empty:
            continue
        counts |= {int(n) for n in table.columns}
        heads, values = table.columns.to_numpy(), table.to_numpy(np.float64)
        spread = mean_spread(values.T, np.arange(len(values)))
        low, high = spread.interval()
        if np.nanmin(values) >= 0:
            low = np.maximum(low, 0)
        colour = ARM_COLOURS[str(arm)]
        ax.fill_between(heads, low, high, color=colour, alpha=0.16, linewidth=0)
        ax.plot(heads, spread.centre, color=colour, marker=_MARKS[str(arm)], markersize=4.5, linewidth=1.6)
        if beside is not None:
            means = part.groupby("n_heads")[beside].mean().dropna()
            ax.plot(means.index, means, color=colour, marker=_MARKS[str(arm)], **_BESIDE)
    if value == "error":
        _draw_chance(ax, float(own["chance"].iloc[0]))
    _doublings(ax, sorted(counts))
    if value in _UNITS:
        ax.yaxis.set_major_formatter(EngFormatter(_UNITS[value]))
    ax.set_title(task, loc="left", fontsize=10, color=INK)
    ax.set_xlabel("heads")
    ax.set_ylabel(str(own["unit"].iloc[0]) if value == "error" else value.replace("_", " "))
    ax.tick_params(length=0, which="both")
    return ax


@styled
def count_curves(
    runs: pd.DataFrame, value: str = "error", *, label: str | None = None, beside: tuple[str, str] | None = None
) -> Figure:
    """`count_curve` of every task that has the value, as small multiples.

    Args:
        runs: see `count_curve`.
        value: the column.
        label: of the vertical axes; the task's unit, or the column's name, without it.
        beside: a further column, drawn dotted, and what it is called; left out where no run has it.
    """
    tasks = [task for task, own in runs.groupby("task", sort=False) if own[value].notna().any()]
    if beside is not None and not (beside[0] in runs and runs[beside[0]].notna().any()):
        beside = None
    columns = min(len(tasks), _MOST_COLUMNS)
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(columns * _SIDE, rows * _ROW + 0.45), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for place, ax in enumerate(axes.ravel()):
        if place >= len(tasks):
            ax.set_axis_off()
            continue
        count_curve(runs, tasks[place], value, beside=None if beside is None else beside[0], ax=ax)
        if label is not None:
            ax.set_ylabel(label)
        if place % columns and label is not None:
            ax.set_ylabel("")
        if place + columns < len(tasks):
            ax.set_xlabel("")
    _arm_legend(figure, runs, None if beside is None else beside[1])
    return figure


@styled
def removal_curves(removal: pd.DataFrame) -> Figure:
    """Error with a share of the heads removed, the least important first: a panel a task, a line a number of heads.

    Args:
        removal: columns task, arm, n_heads, seed, share, error; see `headscope.studies.headcount.Sweep`. Learners whose
            heads share the width are drawn.
    """
    own = removal[removal["arm"] == "width"]
    counts, tasks = sorted(own["n_heads"].unique()), list(own["task"].unique())
    palette = colormaps["viridis"]
    figure = Figure(figsize=(max(len(tasks), 1) * _SIDE, _ROW + 0.45), layout="constrained")
    axes = figure.subplots(1, max(len(tasks), 1), squeeze=False)[0]
    for ax, task in zip(axes, tasks, strict=False):
        frameless(ax)
        ax.grid(color=GRID, linewidth=0.6)
        ax.set_axisbelow(True)
        for place, (n_heads, mark) in enumerate(zip(counts, cycle(_MANY_MARKS), strict=False)):
            part = own[(own["task"] == task) & (own["n_heads"] == n_heads)]
            means = part.groupby("share")["error"].mean()
            colour = palette(0.92 * (1 - place / max(len(counts) - 1, 1)))
            ax.plot(means.index, means, color=colour, marker=mark, markersize=4.5, linewidth=1.2, label=str(n_heads))
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.set_title(str(task), loc="left", fontsize=10, color=INK)
        ax.set_xlabel("heads removed")
        ax.tick_params(length=0, which="both")
    axes[0].set_ylabel("error, in the task's unit")
    handles, labels = axes[0].get_legend_handles_labels()
    title = f"heads, {ARM_NAMES['width']}"
    figure.legend(handles, labels, title=title, loc="outside right center", frameon=False, fontsize=9, title_fontsize=9)
    return figure


@styled
def map_bound(runs: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Error of matched maps against head_dim over length, a line a length; where theory puts the bound.

    Args:
        runs: as of `count_curve`; tasks "maps-LENGTH" are drawn.
        ax: where to draw; a new figure without it.
    """
    ax = canvas(5.4, 3.9) if ax is None else ax
    maps = runs[runs["task"].str.startswith("maps-")]
    lengths = sorted({int(task.removeprefix("maps-")) for task in maps["task"]})
    colours = _shades(len(lengths))
    frameless(ax)
    ax.axvspan(1.0, 12, color=GRID, alpha=0.55, zorder=0, linewidth=0)
    ax.axvline(1.0, color=MUTED, linewidth=0.9)
    for colour, mark, length in zip(colours, cycle(_MANY_MARKS), lengths, strict=False):
        own = maps[maps["task"] == f"maps-{length}"].drop_duplicates(["head_dim", "seed", "n_heads"])
        table = own.groupby(["head_dim", "seed"])["error"].mean().unstack("seed")
        share = table / float(own["chance"].iloc[0])
        spread = mean_spread(share.to_numpy(np.float64), np.arange(share.shape[1]))
        low, high = spread.interval()
        x = table.index.to_numpy() / length
        ax.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
        ax.plot(x, spread.centre, color=colour, marker=mark, markersize=4.2, linewidth=1.5, label=f"{length} tokens")
    ax.set_xscale("log", base=2)
    ticks = [2.0**power for power in range(-6, 4)]
    least, most = (float(maps["head_dim"].min()) / max(lengths), float(maps["head_dim"].max()) / min(lengths))
    ticks = [tick for tick in ticks if least <= tick <= most]
    ax.set_xticks(ticks, [f"1/{round(1 / tick)}" if tick < 1 else f"{tick:g}" for tick in ticks])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(least * 0.85, most * 1.18)
    ax.set_ylim(-0.02, None)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_xlabel("head_dim / length")
    ax.set_ylabel("divergence from the wanted maps,\nas a share of a uniform map's")
    ax.text(
        1.06, 0.97, "every map can\nbe matched", transform=ax.get_xaxis_transform(), va="top", color=MUTED, fontsize=8.5
    )
    ax.grid(color=GRID, linewidth=0.6, axis="y")
    ax.set_axisbelow(True)
    ax.tick_params(length=0, which="both")
    ax.legend(frameon=False, loc="upper right", bbox_to_anchor=(1.0, 0.8))
    return ax


@styled
def regret_curves(costs: pd.DataFrame, best: int, *, ax: Axes | None = None) -> Axes:
    """What each number of heads costs each task, a line a task; the thick line is the task that it suits worst.

    Args:
        costs: see `headscope.studies.headcount.regret.regrets`.
        best: the number of heads that costs least on the task that it suits worst.
        ax: where to draw; a new figure without it.
    """
    ax = canvas(6.4, 4.0) if ax is None else ax
    worst = costs.max(axis=1)
    ax.plot(worst.index, worst, color=GRID, linewidth=9, solid_capstyle="round", label="the worst")
    for marker, colour, (task, line) in zip(cycle(_MANY_MARKS), _shades(costs.shape[1]), costs.items(), strict=False):
        ax.plot(line.index, line, color=colour, marker=marker, markersize=5.5, linewidth=1.4, label=str(task))
    ring: Any = {"color": "none", "markeredgecolor": INK, "markersize": 14, "markeredgewidth": 1.3}
    ax.plot(best, worst[best], "o", label=f"least at its worst:\n{best} heads, {worst[best]:.1%}", **ring)
    frameless(ax)
    ax.grid(color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    _doublings(ax, list(costs.index))
    if worst.max() > 1:  # errors above chance, where training failed: what is below would lie flat
        ax.set_ylim(top=1.05)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_xlabel("heads, the same for every task")
    ax.set_ylabel("cost beside the task's own best number,\nas a share of what is learnt")
    ax.tick_params(length=0, which="both")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), labelspacing=0.7)
    return ax


def _draw_chance(ax: Axes, chance: float) -> None:
    """A dotted line, where it does not press the curves flat."""
    top = ax.get_ylim()[1]
    if chance < 1.8 * top:
        ax.axhline(chance, color=MUTED, linewidth=0.9, linestyle=":")
        ax.annotate(
            "chance",
            (0.99, chance),
            xycoords=ax.get_yaxis_transform(),
            ha="right",
            va="bottom",
            color=MUTED,
            fontsize=8,
        )
        ax.set_ylim(None, max(top, chance * 1.09))
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, -0.02 * high) if low < 0.25 * high else low, high)


def _doublings(ax: Axes, heads: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(heads), [str(n) for n in heads])
    ax.xaxis.set_minor_formatter(NullFormatter())


def _arm_legend(figure: Figure, runs: pd.DataFrame, beside: str | None) -> None:
    """What the arms' lines are called, with the dimensions of a head where they are fixed; and the dotted ones."""
    arms, names = runs["arm"].unique().tolist(), dict(ARM_NAMES)
    sizes = runs.loc[runs["arm"] == "head_dim", "head_dim"].unique()
    if len(sizes) == 1:
        names["head_dim"] = f"{names['head_dim']}, {sizes[0]}"
    handles = [
        Line2D([], [], color=ARM_COLOURS[arm], marker=_MARKS[arm], markersize=4.5, linewidth=1.6) for arm in arms
    ]
    labels = [names[arm] for arm in arms]
    if beside is not None:
        handles.append(Line2D([], [], color=MUTED, marker="o", **_BESIDE))
        labels.append(beside)
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False, fontsize=9)


def _shades(n: int) -> list[str]:
    every = [
        COLOURS["needed"],
        COLOURS["backed up"],
        COLOURS["redundant"],
        COLOURS["idle"],
        "#7a5ac2",
        "#c0407e",
        "#8f8a6a",
        "#2f95d0",
    ]
    return [every[place % len(every)] for place in range(n)]
