"""Similarity of heads: one layer's block, every layer's block, the whole matrix."""

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from headscope.formatting import number
from headscope.reporting.figures.maps import colour_bar, frame_cell, name_ticks
from headscope.reporting.figures.style import ALIKE, BOTH_SIGNS, GRID, INK, PAPER, canvas, figure_of, frameless, styled
from headscope.tables import PairTable

__all__ = ["layer_block", "layer_blocks", "whole_matrix"]

Floats = npt.NDArray[np.float64]


@styled
def layer_block(pairs: PairTable, layer: int, *, ax: Axes | None = None) -> Axes:
    """The similarities of one layer's heads, the most alike two framed and named.

    Args:
        pairs: the similarities; a head's with itself is left empty, and so is NaN.
        layer: which layer.
        ax: where to draw; a new figure without it.
    """
    ax = canvas(3.4, 3.6) if ax is None else ax
    members = [i for i, head in enumerate(pairs.heads) if head.layer == layer]
    block = pairs.matrix[np.ix_(members, members)].copy()
    np.fill_diagonal(block, np.nan)
    _draw(ax, block, _range(pairs))
    grid = ax.get_gridspec()
    side = figure_of(ax).get_figwidth() / (1 if grid is None else grid.ncols)
    for axis in ("x", "y"):
        name_ticks(ax, axis, [pairs.heads[i].head for i in members], "", most=max(int(4.5 * side), 4))
    ax.tick_params(labelsize=7, pad=1)
    title = f"layer {layer}"
    if np.isfinite(block).any():
        row, column = sorted(int(i) for i in np.unravel_index(np.nanargmax(block), block.shape))
        a, b = (pairs.heads[members[i]].head for i in (row, column))
        frame_cell(ax, row, column)
        frame_cell(ax, column, row)
        title = f"{title}   H{a}, H{b}: {number(block[row, column], 2)}" if side > 1.6 else f"L{layer}: H{a}, H{b}"
    ax.set_title(title, fontsize=8.5, color=INK, pad=4, loc="left")
    return ax


@styled
def layer_blocks(pairs: PairTable, width: float, *, label: str = "") -> Figure:
    """Every layer's block as small multiples on one scale.

    Args:
        pairs: the similarities.
        width: of the figure, inches; it settles how many stand in a row.
        label: of the colour bar.
    """
    layers = sorted({head.layer for head in pairs.heads})
    side = 3.3 if len(layers) <= 6 else 1.75 if len(layers) <= 24 else 1.2
    columns = min(len(layers), max(2 if side > 2 else 3, round(width / side)))
    rows = -(-len(layers) // columns)
    side = width / columns
    figure = Figure(figsize=(width, rows * (side + 0.12) + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for layer, ax in zip(layers, axes, strict=False):
        layer_block(pairs, layer, ax=ax)
    for ax in axes[len(layers) :]:
        ax.set_axis_off()
    colour_bar(_colours(_range(pairs)), list(axes), label)
    return figure


@styled
def whole_matrix(pairs: PairTable, *, label: str = "", ax: Axes | None = None) -> Axes:
    """The similarity of every head with every other, layers set apart by lines.

    Args:
        pairs: the similarities; a head's with itself is left empty, and so is NaN.
        label: of the colour bar.
        ax: where to draw; a new figure without it.
    """
    ax = canvas(6.0, 6.4) if ax is None else ax
    matrix = pairs.matrix.copy()
    np.fill_diagonal(matrix, np.nan)
    _draw(ax, matrix, _range(pairs))
    layer_of = np.array([head.layer for head in pairs.heads])
    starts = np.flatnonzero(np.diff(layer_of, prepend=-1))
    for start in starts[1:]:
        ax.axhline(start, color=PAPER, linewidth=1.5)
        ax.axvline(start, color=PAPER, linewidth=1.5)
    middles = (starts + np.append(starts[1:], len(layer_of))) / 2
    step = -(-len(starts) // 24)
    names = [str(layer_of[start]) for start in starts]
    ax.set_xticks(middles[::step], names[::step])
    ax.set_yticks(middles[::step], names[::step])
    ax.set_xlabel("layer")
    ax.set_ylabel("layer")
    ax.tick_params(length=0)
    colour_bar(_colours(_range(pairs)), [ax], label)
    return ax


def _range(pairs: PairTable) -> Normalize:
    """From 0 (-1 where some pairs are clearly opposed) to 1: a fixed scale, so that two reports can be compared."""
    apart = pairs.matrix[np.isfinite(pairs.matrix)]
    return Normalize(-1.0 if apart.size and apart.min() < -0.1 else 0.0, 1.0)


def _colours(norm: Normalize) -> ScalarMappable:
    return ScalarMappable(norm, BOTH_SIGNS if norm.vmin else ALIKE)


def _draw(ax: Axes, matrix: Floats, norm: Normalize) -> None:
    """A square picture of a matrix, cell i from i to i + 1, first row on top."""
    size = len(matrix)
    ax.imshow(
        np.ma.masked_invalid(matrix), cmap=BOTH_SIGNS if norm.vmin else ALIKE, norm=norm, interpolation="none",
        extent=(0, size, size, 0),
    )  # fmt: skip
    frameless(ax)
    ax.set_facecolor(GRID)
