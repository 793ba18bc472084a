"""Curves: how much of what varies in a layer's output its best few heads give back."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator, PercentFormatter

from headscope._support.formatting import percent
from headscope.reporting.figures.beside import LOOKS, SAID
from headscope.reporting.figures.claims import layer_dots
from headscope.reporting.figures.clusters import layer_bar, layer_colours
from headscope.reporting.figures.legends import legend_above
from headscope.reporting.figures.style import GRID, INK, MUTED, PAPER, canvas, frameless, room, styled
from headscope.surplus.layers import WHOLE, Redundancy
from headscope.tables import NULLS

__all__ = ["effective_dots", "redundancy_curve"]

_FLOOR = -0.25  # shares below it leave the picture: worse than nothing says little about by how much


@styled
def redundancy_curve(redundancy: Redundancy, *, ax: Axes | None = None) -> Axes:
    """Share of what varies in each layer's output that its best k heads give back on unseen documents, a line a layer.

    Args:
        redundancy: its `curve`; bands are the 95% intervals for endless text, left out where there are none. A line
            below its band says that documents were too few. Lines without digits are means over layers of what the
            shares stand beside: chance, and an untrained copy.
        ax: where to draw; a new figure without it.
    """
    ax = canvas(6.4, 5.0) if ax is None else ax
    curve = redundancy.curve
    layers = sorted(curve["layer"].unique().tolist())
    palette, norm = layer_colours(layers)
    for layer in layers:
        own = curve[curve["layer"] == layer]
        colour = palette(norm(layer))
        k, share, low, high = (own[name].to_numpy(np.float64) for name in ("k", "share", "low", "high"))
        ax.fill_between(k, low, high, color=colour, alpha=0.13, linewidth=0)
        digits: Any = {"marker": f"${layer}$", "markersize": 4 + 2.5 * len(str(layer))}  # told apart without colours
        halo = [Stroke(linewidth=2.8, foreground=PAPER), Normal()]
        ax.plot(
            k, share, color=colour, linewidth=1.2, markeredgewidth=0.4, label=f"layer {layer}", path_effects=halo,
            **digits,
        )  # fmt: skip
    _draw_beside(ax, curve)
    ends = curve[["share", "low"]].to_numpy(np.float64)
    least = float(ends[np.isfinite(ends)].min(initial=0.0))
    ax.set_ylim(max(least - 0.02, _FLOOR), 1.02)
    lowest = float(curve["share"].min(skipna=True))
    if lowest < _FLOOR:
        ax.text(
            0, 0.01, f"▼ down to {percent(lowest, 0)}", transform=ax.transAxes, va="bottom", color=MUTED, fontsize=8
        )
    ax.set_xlim(-0.15, float(curve["k"].max()) + 0.15)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    width, height = room(ax)
    ax.set_xlabel("heads kept, best first" + (" (0 = a constant alone)" if width >= 4 else ""))
    long = "share of what varies in the layer's output\nthat they give back on unseen documents"
    ax.set_ylabel(long if height >= 4 else "share given back")
    frameless(ax)
    ax.tick_params(length=0)
    ax.grid(color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    layer_bar(ax, layers)
    return ax


def _draw_beside(ax: Axes, curve: pd.DataFrame) -> None:
    lines = []
    for name in (name for name in NULLS if name in curve and curve[name].notna().any()):
        mean = curve.groupby("k")[name].mean()
        lines += ax.plot(
            mean.index, mean, color=INK, linewidth=1.4, linestyle=LOOKS[name][0], label=f"{SAID[name]}, mean layer"
        )
    if lines:
        legend_above(ax, len(lines), handles=lines)


@styled
def effective_dots(redundancy: Redundancy, *, ax: Axes | None = None) -> Axes:
    """How many heads each layer has, and how many unrelated ones they amount to, with 95% intervals.

    Args:
        redundancy: its `effective`; the row of the whole model is left out. What the number stands beside has a mark of
            its own: chance, and an untrained copy.
        ax: where to draw; a new figure without it.
    """
    own = redundancy.effective[redundancy.effective["layer"] != WHOLE]
    table = own.assign(layer=own["layer"].astype(str).astype(int), effective_low=own["low"], effective_high=own["high"])
    beside = {name: SAID[name] for name in NULLS if name in own and own[name].notna().any()}
    ax = layer_dots(table, {"effective": "effective", "n_heads": "in all", **beside}, label="heads", ax=ax)
    ax.set_xlim(-0.6, len(table) - 0.4)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return ax
