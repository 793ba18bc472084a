"""Curves: how much of a layer's output its best few heads give back."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from headscope.reporting.figures.claims import layer_dots
from headscope.reporting.figures.clusters import layer_bar, layer_colours
from headscope.reporting.figures.style import GRID, MUTED, canvas, frameless, room, styled
from headscope.surplus.layers import WHOLE, Redundancy

__all__ = ["effective_dots", "redundancy_curve"]

_FLOOR = -0.25  # shares below it leave the picture: worse than nothing says little about by how much


@styled
def redundancy_curve(redundancy: Redundancy, *, ax: Axes | None = None) -> Axes:
    """Share of each layer's output energy that its best k heads give back on held-out documents, a line a layer.

    Args:
        redundancy: its `curve`; bands are the 95% intervals for endless text, left out where there are none. A line
            below its band says that documents were too few.
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
        ax.plot(k, share, color=colour, linewidth=1.5, marker="o", markersize=3.2, label=f"layer {layer}")
    ends = curve[["share", "low"]].to_numpy(np.float64)
    least = float(ends[np.isfinite(ends)].min(initial=0.0))
    ax.set_ylim(max(least - 0.02, _FLOOR), 1.02)
    lowest = float(curve["share"].min(skipna=True))
    if lowest < _FLOOR:
        ax.text(0, 0.01, f"▼ down to {lowest:.0%}", transform=ax.transAxes, va="bottom", color=MUTED, fontsize=8)
    ax.set_xlim(-0.15, float(curve["k"].max()) + 0.15)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    width, height = room(ax)
    ax.set_xlabel("heads kept, best first" + (" (0 = a constant alone)" if width >= 4 else ""))
    ax.set_ylabel("share of the layer's output\ngiven back on unseen documents" if height >= 4 else "share given back")
    frameless(ax)
    ax.tick_params(length=0)
    ax.grid(color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    layer_bar(ax, layers)
    return ax


@styled
def effective_dots(redundancy: Redundancy, *, ax: Axes | None = None) -> Axes:
    """How many heads each layer has, and how many unrelated ones they amount to, with 95% intervals.

    Args:
        redundancy: its `effective`; the row of the whole model is left out.
        ax: where to draw; a new figure without it.
    """
    own = redundancy.effective[redundancy.effective["layer"] != WHOLE]
    table = own.assign(layer=own["layer"].astype(str).astype(int), effective_low=own["low"], effective_high=own["high"])
    ax = layer_dots(table, {"effective": "effective", "n_heads": "in all"}, label="heads", ax=ax)
    ax.set_xlim(-0.6, len(table) - 0.4)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return ax
