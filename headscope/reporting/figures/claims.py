"""Figures of claims: numbers of each layer or each head, as dots with intervals."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from headscope.reporting.figures.legends import legend_above
from headscope.reporting.figures.style import COLOURS, GRID, MUTED, canvas, frameless, styled

__all__ = ["layer_dots", "layer_panels", "sorted_dots"]

_SERIES = (COLOURS["needed"], COLOURS["redundant"], COLOURS["backed up"], "#7a5ac2")
_MARKS = "osD^"


@styled
def layer_dots(
    table: pd.DataFrame,
    series: Mapping[str, str],
    *,
    label: str,
    log: bool = False,
    lines: Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Numbers of each layer, a mark a series; over several seeds the mean, each seed a faint mark.

    Args:
        table: a row a layer (and seed), columns layer and those of `series`; NAME_low and NAME_high are drawn where
            they are there.
        series: what each column is called in the legend.
        label: of the vertical axis.
        log: on a logarithmic axis; zeros then stand on its floor.
        lines: heights to compare with, by what they are called.
        ax: where to draw; a new figure without it.
    """
    ax = canvas(5.6, 3.4) if ax is None else ax
    frameless(ax)
    ax.grid(color=GRID, linewidth=0.6, axis="y")
    ax.set_axisbelow(True)
    layers = sorted(table["layer"].unique())
    step = 0.5 / max(len(series), 1)
    floor = _floor(table[list(series)].to_numpy(np.float64)) if log else 0.0
    for number, (name, words) in enumerate(series.items()):
        colour, mark = _SERIES[number % len(_SERIES)], _MARKS[number % len(_MARKS)]
        places = np.arange(len(layers)) + (number - (len(series) - 1) / 2) * step
        own = table.groupby("layer")[name]
        middles = own.mean().reindex(layers).to_numpy(np.float64)
        if own.size().max() > 1:
            each = places[np.searchsorted(layers, table["layer"])]
            ax.plot(each, np.maximum(table[name], floor), mark, color=colour, alpha=0.3, markersize=3.5)
        elif {f"{name}_low", f"{name}_high"} <= set(table):
            ordered = table.set_index("layer").reindex(layers)
            low, high = (ordered[f"{name}_{end}"].to_numpy(np.float64) for end in ("low", "high"))
            ax.vlines(places, low, high, color=colour, linewidth=1.3)
        ax.plot(places, np.maximum(middles, floor), mark, color=colour, markersize=5.2, label=words)
    for words, height in (lines or {}).items():
        ax.axhline(height, color=MUTED, linewidth=0.9, linestyle=":")
        ax.annotate(words, (1.01, height), xycoords=ax.get_yaxis_transform(), va="center", color=MUTED, fontsize=8)
    if log:
        ax.set_yscale("log")
    ax.set_xticks(np.arange(len(layers)), [str(layer) for layer in layers])
    if len(layers) > 20:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    ax.set_xlabel("layer")
    ax.set_ylabel(label)
    ax.margins(y=0.12)
    if all(pd.api.types.is_integer_dtype(table[name]) for name in series):
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    if not log and table[list(series)].min(axis=None) >= 0:
        ax.set_ylim(-0.03 * ax.get_ylim()[1], None)
    ax.tick_params(length=0, which="both")
    if len(series) > 1:
        legend_above(ax, len(series), handletextpad=0.1)
    return ax


@styled
def layer_panels(table: pd.DataFrame, panels: Mapping[str, tuple[Mapping[str, str], float]], *, label: str) -> Figure:
    """`layer_dots` side by side, on one axis from 0 to 1.

    Args:
        table: see there.
        panels: by title, the series of a panel and the height of its rule; series that are all NaN are left out.
        label: of the vertical axis.
    """
    figure = Figure(figsize=(4.4 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for ax, (title, (series, rule)) in zip(axes, panels.items(), strict=True):
        known = {name: words for name, words in series.items() if table[name].notna().any()}
        layer_dots(table, known, label=label if ax is axes[0] else "", lines={"rule": rule}, ax=ax)
        ax.set_ylim(0, 1.04)
        ax.set_xlabel(f"layer ({title})")
    return figure


@styled
def sorted_dots(
    table: pd.DataFrame,
    name: str,
    *,
    label: str,
    size: float | None = None,
    log: bool = False,
    beside: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A number of each head from low to high, with its interval; what lies beyond a size has a mark of its own.

    Args:
        table: a row a head (and training_seed, if there are several), columns NAME, NAME_low, NAME_high.
        name: of the number.
        label: of the vertical axis.
        size: the size.
        log: draw sizes on an axis that is logarithmic on either side of zero.
        beside: columns of what each head is compared with, by what they are called; those that are all NaN are left
            out.
        ax: where to draw; a new figure without it.
    """
    ax = canvas(5.6, 3.4) if ax is None else ax
    frameless(ax)
    ordered = table.sort_values(name, kind="stable", ignore_index=True)
    values, low, high = (ordered[column].to_numpy(np.float64) for column in (name, f"{name}_low", f"{name}_high"))
    threshold = 0.0 if size is None else size
    groups = {
        "redundant": high < threshold,
        "idle": (low <= threshold) & (high >= threshold),
        "needed": low > threshold,
    }
    line = "0" if size is None else f"{size:.2g}"
    words = {"redundant": f"below {line}", "idle": "cannot be told", "needed": f"above {line}"}
    x = np.arange(len(values))
    for mark, (key, members) in zip("sDo", groups.items(), strict=True):
        if not members.any():
            continue
        ax.vlines(x[members], low[members], high[members], color=COLOURS[key], linewidth=1.1, alpha=0.75)
        ax.plot(x[members], values[members], mark, color=COLOURS[key], markersize=3.6, label=words[key])
    for mark, (column, called) in zip("x+", (beside or {}).items(), strict=False):
        if ordered[column].notna().any():
            ax.plot(x, ordered[column], mark, color=MUTED, markersize=4, markeredgewidth=0.9, label=called)
    ax.axhline(0, color=MUTED, linewidth=0.8)
    if size is not None:
        ax.axhline(size, color=MUTED, linewidth=0.9, linestyle=":")
    if log:
        most = max(float(np.nanmax(np.abs(values))), 1e-10)
        ax.set_yscale("symlog", linthresh=10.0 ** np.floor(np.log10(most) - 2))  # a decade: its marks are apart
    ax.set_xticks([])
    seeds = table["training_seed"].nunique() if "training_seed" in table else 1
    amount = f"{seeds} × {len(values) // seeds}" if seeds > 1 else f"{len(values)}"
    ax.set_xlabel(f"{amount} heads, from low to high")
    ax.set_ylabel(label)
    ax.grid(color=GRID, linewidth=0.6, axis="y")
    ax.set_axisbelow(True)
    ax.tick_params(length=0, which="both")
    legend_above(ax, 3, handletextpad=0.1)
    return ax


def _floor(values: np.ndarray) -> float:
    above = values[np.isfinite(values) & (values > 0)]
    return float(above.min()) / 3 if above.size else 1e-12
