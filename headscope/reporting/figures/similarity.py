"""Similarity of heads: one layer's block, every layer's block, the whole matrix."""

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from headscope._support.formatting import number
from headscope.heads import HeadId
from headscope.reporting.figures.maps import colour_bar, frame_cell, name_ticks
from headscope.reporting.figures.style import ALIKE, BOTH_SIGNS, GRID, INK, PAPER, canvas, frameless, room, styled
from headscope.tables import PairTable

__all__ = ["layer_block", "layer_blocks", "whole_matrix"]

Floats = npt.NDArray[np.float64]


@styled
def layer_block(pairs: PairTable, layer: int, *, ax: Axes | None = None) -> Axes:
    """The similarities of one layer's heads, the most alike two framed and named.

    Args:
        pairs: the similarities; a head's with itself is left empty, and so is NaN. Of two models: rows are the first
            one's heads of the layer, columns the second one's.
        layer: which layer.
        ax: where to draw; a new figure without it.
    """
    ax = canvas(3.4, 3.6) if ax is None else ax
    rows, columns = ([i for i, head in enumerate(heads) if head.layer == layer] for heads in _sides(pairs))
    block = _cells(pairs)[np.ix_(rows, columns)]
    _draw(ax, block, _range(pairs))
    side, _ = room(ax)
    for axis, members, heads in zip("yx", (rows, columns), _sides(pairs), strict=True):
        name_ticks(ax, axis, [heads[i].head for i in members], "", most=max(int(4.5 * side), 4))  # type: ignore[arg-type]
    ax.tick_params(labelsize=7, pad=2.5)  # clear of a frame in the last row or the first column
    title = f"layer {layer}"
    if np.isfinite(block).any():
        row, column = (int(i) for i in np.unravel_index(np.nanargmax(block), block.shape))
        if pairs.other is None:
            row, column = sorted((row, column))
            frame_cell(ax, column, row)
        frame_cell(ax, row, column)
        a, b = pairs.heads[rows[row]].head, pairs.column_heads[columns[column]].head
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
    layers = sorted({head.layer for heads in _sides(pairs) for head in heads})
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
    _draw(ax, _cells(pairs), _range(pairs))
    for axis, line, heads in zip("yx", (ax.axhline, ax.axvline), _sides(pairs), strict=True):
        layer_of = np.array([head.layer for head in heads])
        starts = np.flatnonzero(np.diff(layer_of, prepend=-1))
        for start in starts[1:]:
            line(start, color=PAPER, linewidth=1.5)
        middles = (starts + np.append(starts[1:], len(layer_of))) / 2
        step = -(-len(starts) // 24)
        names = [str(layer_of[start]) for start in starts]
        getattr(ax, f"set_{axis}ticks")(middles[::step], names[::step])
        model = "" if pairs.other is None else " of the first model" if axis == "y" else " of the second model"
        getattr(ax, f"set_{axis}label")(f"layer{model}")
    ax.tick_params(length=0)
    colour_bar(_colours(_range(pairs)), [ax], label)
    return ax


def _sides(pairs: PairTable) -> tuple[tuple[HeadId, ...], tuple[HeadId, ...]]:
    """The heads of the rows, and of the columns."""
    return pairs.heads, pairs.column_heads


def _cells(pairs: PairTable) -> Floats:
    """The matrix, without what a head is to itself."""
    cells = pairs.matrix.copy()
    if pairs.other is None:
        np.fill_diagonal(cells, np.nan)
    return cells


def _range(pairs: PairTable) -> Normalize:
    """From 0 (-1 where some pairs are clearly opposed) to 1: a fixed scale, so that two reports can be compared."""
    apart = pairs.matrix[np.isfinite(pairs.matrix)]
    return Normalize(-1.0 if apart.size and apart.min() < -0.1 else 0.0, 1.0)


def _colours(norm: Normalize) -> ScalarMappable:
    return ScalarMappable(norm, BOTH_SIGNS if norm.vmin else ALIKE)


def _draw(ax: Axes, matrix: Floats, norm: Normalize) -> None:
    """A picture of a matrix, cell i from i to i + 1, first row on top."""
    height, width = matrix.shape
    ax.imshow(
        np.ma.masked_invalid(matrix), cmap=BOTH_SIGNS if norm.vmin else ALIKE, norm=norm, interpolation="none",
        extent=(0, width, height, 0),
    )  # fmt: skip
    frameless(ax)
    ax.set_facecolor(GRID)
