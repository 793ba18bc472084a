"""Similarity of heads: one layer's block, every layer's block, the whole matrix."""

from collections import Counter

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from headscope._support.formatting import fixed, number
from headscope.heads import HeadId
from headscope.reporting.figures.beside import mark_bar
from headscope.reporting.figures.maps import colour_bar, frame_cell, name_ticks
from headscope.reporting.figures.style import (
    ALIKE,
    BOTH_SIGNS,
    GRID,
    INK,
    PAPER,
    canvas,
    figure_of,
    frameless,
    room,
    styled,
)
from headscope.tables import PairTable

__all__ = ["blocks_width", "layer_block", "layer_blocks", "matrix_height", "whole_matrix"]

Floats = npt.NDArray[np.float64]

_CELL = 0.5  # inches: a cell need be no larger, however few there are
_NAMED, _FEW = 0.16, 40  # inches of a cell from which its row is named, and of how many at most
_WORDY = 0.34  # inches of a cell from which its number finds room
_LEFT, _RIGHT, _BELOW, _ABOVE = 0.26, 0.1, 0.24, 0.26  # inches round a block for its names, and above it its title
_BAR = 0.75  # inches that the bar of colours takes


@styled
def layer_block(pairs: PairTable, layer: int, *, ax: Axes | None = None) -> Axes:
    """The similarities of one layer's heads, the most alike two framed and named.

    Args:
        pairs: the similarities; a head's with itself is left empty, and so is NaN. Of two models: rows are the first
            one's heads of the layer, columns the second one's.
        layer: which layer.
        ax: where to draw; a new figure without it.
    """
    ax = canvas(3.4, min(3.6, _block_side(pairs) + 0.2)) if ax is None else ax
    _block(pairs, layer, ax, min(room(ax)))
    return ax


@styled
def layer_blocks(pairs: PairTable, *, width: float | None = None, label: str = "", ax: Axes | None = None) -> Axes:
    """Every layer's block as small multiples on one scale.

    Args:
        pairs: the similarities; of two models, the layers that both have are drawn.
        width: of a new figure, inches; as wide as the blocks need, and at most nine inches, without it.
        label: of the colour bar.
        ax: where to draw, as axes inside these, which are left blank; a new figure without it.
    """
    layers = sorted(set.intersection(*({head.layer for head in heads} for heads in _sides(pairs))))
    largest = _block_side(pairs)
    if ax is None:
        wished = min(3.3 if len(layers) <= 6 else 1.75 if len(layers) <= 24 else 1.5, largest)
        columns = min(len(layers), max(2 if wished > 2 else 3, round((width or 9.0) / wished)))
        side = min((width or 9.0) / columns, largest)
        rows = -(-len(layers) // columns)
        ax = canvas(width or max(columns * side + 0.2, 3.6), rows * _height(pairs, side) + _BAR)
    ax.set_axis_off()
    _bar(pairs, ax, label)
    across, down = _extent(ax)
    sides = {n: min(across / n, _width(pairs, down / -(-len(layers) // n))) for n in range(1, len(layers) + 1)}
    columns = max(sides, key=lambda n: (round(min(sides[n], largest), 3), n))
    side = min(sides[columns], largest)
    for place, layer in enumerate(layers):
        left, top = place % columns * side, down - place // columns * _height(pairs, side)
        high, wide = (sum(head.layer == layer for head in heads) for heads in _sides(pairs))
        cell = min(max(side - _LEFT - _RIGHT, 0.1) / max(high, wide, 1), _CELL)
        box = left + _LEFT, top - _ABOVE - cell * high, cell * wide, cell * high
        spot = (box[0] / across, box[1] / down, box[2] / across, box[3] / down)
        _block(pairs, layer, ax.inset_axes(spot), side)
    return ax


def blocks_width(pairs: PairTable) -> float:
    """How many inches the blocks of all layers take side by side, as large as they come."""
    return len({head.layer for head in pairs.heads}) * _block_side(pairs) + 0.2


@styled
def whole_matrix(pairs: PairTable, *, label: str = "", ax: Axes | None = None) -> Axes:
    """The similarity of every head with every other, layers set apart by lines.

    Args:
        pairs: the similarities; a head's with itself is left empty, and so is NaN.
        label: of the colour bar.
        ax: where to draw; a new figure without it.
    """
    ax = canvas(6.0, matrix_height(pairs, 6.0)) if ax is None else ax
    _draw(ax, _cells(pairs), _range(pairs))
    cell = room(ax)[0] / (len(pairs.column_heads) + 2)
    # where no engine lays figures out, names that stand upright would reach into the bar
    named = cell >= _NAMED and figure_of(ax).get_layout_engine() is not None
    if cell >= _WORDY:
        _write(ax, _cells(pairs), _range(pairs))
    for axis, line, heads in zip("yx", (ax.axhline, ax.axvline), _sides(pairs), strict=True):
        layer_of = np.array([head.layer for head in heads])
        starts = np.flatnonzero(np.diff(layer_of, prepend=-1))
        for start in starts[1:]:
            line(start, color=PAPER, linewidth=1.5 if len(starts) <= 12 else 0.7)
        model = "" if pairs.other is None else " of the first model" if axis == "y" else " of the second model"
        if named and len(heads) <= _FEW:
            getattr(ax, f"set_{axis}ticks")(np.arange(len(heads)) + 0.5, [*map(str, heads)])
            ax.tick_params(axis=axis, labelsize=7, labelrotation=90 if axis == "x" else 0)  # type: ignore[arg-type]
            getattr(ax, f"set_{axis}label")(f"head{model}")
            continue
        middles = (starts + np.append(starts[1:], len(layer_of))) / 2
        step = -(-len(starts) // 24)
        names = [str(layer_of[start]) for start in starts]
        getattr(ax, f"set_{axis}ticks")(middles[::step], names[::step])
        getattr(ax, f"set_{axis}label")(f"layer{model}")
    ax.tick_params(length=0)
    _bar(pairs, ax, label)
    return ax


def matrix_height(pairs: PairTable, width: float) -> float:
    """A height for the whole matrix on a figure of that width, in inches: its cells are bounded, however few."""
    rows, columns = (max(len(heads), 1) for heads in _sides(pairs))
    cell = min((width - 0.6) / columns, _CELL)
    return float(np.clip(rows * cell, 0.4, 1.5 * width) + 1.15)


def _block(pairs: PairTable, layer: int, ax: Axes, side: float) -> None:
    """One layer's block on axes that take about so many inches on each side."""
    rows, columns = ([i for i, head in enumerate(heads) if head.layer == layer] for heads in _sides(pairs))
    block = _cells(pairs)[np.ix_(rows, columns)]
    _draw(ax, block, _range(pairs))
    cell = min((side - _LEFT - _RIGHT) / max(*block.shape, 1), _CELL)
    line = float(np.clip(cell * 72 / 5, 0.5, 1.4))  # a frame that leaves its cell to be seen
    if cell >= _WORDY:
        _write(ax, block, _range(pairs))
    for axis, members, heads in zip("yx", (rows, columns), _sides(pairs), strict=True):
        name_ticks(ax, axis, [heads[i].head for i in members], "", most=max(int(4.5 * cell * len(members)), 2))  # type: ignore[arg-type]
    ax.tick_params(labelsize=7, pad=2.5)  # clear of a frame in the last row or the first column
    title = f"layer {layer}" if side > 1.0 else f"L{layer}"
    if np.isfinite(block).any():
        row, column = (int(i) for i in np.unravel_index(np.nanargmax(block), block.shape))
        if pairs.other is None and block[row, column] == block[column, row]:  # else only one of the two is the largest
            row, column = sorted((row, column))
            frame_cell(ax, column, row, line)
        frame_cell(ax, row, column, line)
        a, b = pairs.heads[rows[row]].head, pairs.column_heads[columns[column]].head
        if side > 1.7:
            title = f"{title}   H{a}, H{b}: {number(block[row, column], 2)}"
        elif side > 1.0:
            title = f"L{layer}: H{a}, H{b}"
    ax.set_title(title, fontsize=8.5, color=INK, pad=4, loc="left")


def _most(pairs: PairTable) -> int:
    """Heads of the layer that has most of them."""
    return max(max(Counter(head.layer for head in heads).values(), default=1) for heads in _sides(pairs))


def _block_side(pairs: PairTable) -> float:
    """The most that one layer's block, with its names and its title, need take across, inches."""
    return max(_most(pairs) * _CELL + _LEFT + _RIGHT, 1.75)


def _height(pairs: PairTable, side: float) -> float:
    """How high the largest block is, with its names and its title, where it may take so many inches across."""
    return min(max(side - _LEFT - _RIGHT, 0.1), _most(pairs) * _CELL) + _BELOW + _ABOVE


def _width(pairs: PairTable, height: float) -> float:
    """How many inches a block may take across where it may be so high; as many as wished where that bounds nothing."""
    block = max(height - _BELOW - _ABOVE, 0.1)
    return np.inf if block >= _most(pairs) * _CELL else block + _LEFT + _RIGHT


def _extent(ax: Axes) -> tuple[float, float]:
    """Width and height in inches that axes with a bar beneath them have, or will have once they are laid out."""
    if figure_of(ax).get_layout_engine() is None:
        place, (width, height) = ax.get_position(), figure_of(ax).get_size_inches()
        return float(place.width * width), float(place.height * height)
    width, height = room(ax)
    return width - 0.1, max(height - _BAR, 0.3)


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


def _bar(pairs: PairTable, ax: Axes, label: str) -> None:
    """The bar of colours, which says what it leaves out, and what the colours stand beside."""
    norm = _range(pairs)
    if norm.vmin and np.nanmin(pairs.matrix) < norm.vmin:
        label += f" (what is below {number(norm.vmin, 1)} as {number(norm.vmin, 1)})"
    mark_bar(pairs, colour_bar(_colours(norm), [ax], label), room(ax)[0])


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


def _write(ax: Axes, matrix: Floats, norm: Normalize) -> None:
    """The numbers into the cells, in whichever of black and white shows better."""
    colours = _colours(norm).to_rgba(matrix)
    for (row, column), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            red, green, blue, _ = colours[row, column]
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
            ax.text(
                column + 0.5, row + 0.5, fixed(value, 2), ha="center", va="center", fontsize=7,
                color="#ffffff" if dark else "#000000",
            )  # fmt: skip
