"""Layer × head maps of a score."""

from collections.abc import Callable, Collection, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke

from headscope._support.formatting import brief, number, power_of_ten, thousands
from headscope._support.grids import bend
from headscope.heads import HeadId
from headscope.reporting.figures.beside import mark_bar, means_beside
from headscope.reporting.figures.scales import colours, short, ticks
from headscope.reporting.figures.style import BOTH_SIGNS, MUTED, ONE_SIGN, PAPER, canvas, figure_of, room, styled
from headscope.tables import HeadTable

__all__ = [
    "CELL",
    "bound_cells",
    "colour_bar",
    "frame_cell",
    "head_map",
    "map_canvas",
    "map_height",
    "name_ticks",
    "thin_bar",
]

Floats = npt.NDArray[np.float64]

CELL = 0.75  # inches: cells of a map need be no larger, however few there are
_ROUND = 1.35  # inches that the names below a map, and its bar, take
_MANY = 400  # cells past which the SVG holds a picture of them: thousands of vector squares slow a browser down


@styled
def head_map(
    table: HeadTable,
    *,
    chosen: Collection[HeadId] = (),
    words: str = "",
    layers_across: bool = False,
    label: str = "",
    ax: Axes | None = None,
) -> Axes:
    """A score of every head, layer by layer; lines on the bar of colours for what it stands beside.

    Args:
        table: the score; NaN is drawn as a dash, a head that its layer lacks is left empty.
        chosen: heads to frame.
        words: what they are, a line beneath the label; see `headscope.reporting.figures.to_mark`.
        layers_across: layers along the horizontal axis, for models of many layers with few heads each.
        label: of the colour bar.
        ax: where to draw; a new figure without it.
    """
    layers, heads = (sorted({getattr(head, axis) for head in table.heads}) for axis in ("layer", "head"))
    place = {head: (layers.index(head.layer), heads.index(head.head)) for head in table.heads}
    if layers_across:
        place = {head: spot[::-1] for head, spot in place.items()}
    cells = np.full((len(heads), len(layers)) if layers_across else (len(layers), len(heads)), np.nan)
    for head, score in zip(table.heads, table.score, strict=True):
        cells[place[head]] = score
    ax = map_canvas(*cells.shape) if ax is None else ax
    bound_cells(ax, *cells.shape)
    # to be reached by the bar, but for means below zero: they alone would give the map colours of both signs
    reached = np.append(cells, [mean for mean in means_beside(table).values() if mean > 0])
    norm = colours(reached)
    width, _ = room(ax)
    roomy = width / (cells.shape[1] + 1) >= 0.5
    power = thousands(cells.ravel())
    sns.heatmap(
        cells, ax=ax, norm=norm, vmin=norm.vmin, vmax=norm.vmax, cmap=BOTH_SIGNS if norm.vmin else ONE_SIGN, cbar=False,
        rasterized=cells.size > _MANY, linewidths=1.5 if cells.size <= _MANY else 0, linecolor=PAPER,
        annot=np.vectorize(lambda value: brief(value / 10.0**power))(cells) if roomy else None, fmt="",
        annot_kws={"fontsize": 8}, xticklabels=False, yticklabels=False,
    )  # fmt: skip
    for head, score in zip(table.heads, table.score, strict=True):
        row, column = place[head]
        if not np.isfinite(score):
            ax.text(column + 0.5, row + 0.5, number(score), ha="center", va="center", color=MUTED)
        if head in chosen:
            frame_cell(ax, row, column, 1.4 if cells.size <= _MANY else 0.7)
    name_ticks(ax, "y", heads if layers_across else layers, "head" if layers_across else "layer")
    name_ticks(ax, "x", layers if layers_across else heads, "layer" if layers_across else "head", most=int(4 * width))
    if roomy and power:
        label += f"{' ' if width >= 4 else chr(10)}(numbers in the cells: {power_of_ten(power)})"
    bar = colour_bar(ax.collections[0], [ax], "\n".join(filter(None, (label, words))), knee=bend(reached))
    mark_bar(table, bar, width)
    return ax


def map_height(rows: int, columns: int, width: float) -> float:
    """A height for a map of that shape, in inches: rows that can be read, no taller than a page."""
    cell = np.clip(width / max(columns, 1), 0.16, 0.4)
    return float(np.clip(rows * cell, 0.4, 9.0) + _ROUND)


def map_canvas(rows: int, columns: int, below: float = 0.0) -> Axes:
    """Empty axes for a map of that shape: as wide as its cells need, and as the bar and the page allow.

    Args:
        rows, columns: of the map.
        below: inches more that stand beneath it.
    """
    width = float(np.clip(columns * CELL + 1.0, 4.4, 8.0))
    return canvas(width, map_height(rows, columns, width) + below)


def bound_cells(ax: Axes, rows: int, columns: int) -> None:
    """Make the axes of a map narrower than their room where its cells would be much wider than high."""
    width, height = room(ax)
    high = min(max(height - 0.95, 0.1) / rows, CELL)  # as high as they come where a bar has one line of words
    if width / columns > CELL:
        ax.set_box_aspect(rows * high / (columns * CELL))


def frame_cell(ax: Axes, row: int, column: int, linewidth: float = 1.4) -> None:
    """Put a frame round a cell that shows on any colour, on light and on dark screens: black on a white edge."""
    edge = [Stroke(linewidth=linewidth * 2.3, foreground="#ffffff"), Normal()]
    ax.add_patch(
        Rectangle(
            (column, row), 1, 1, fill=False, edgecolor="#000000", linewidth=linewidth, clip_on=False, zorder=3,
            path_effects=edge,
        )
    )  # fmt: skip


def name_ticks(ax: Axes, which: Literal["x", "y"], numbers: Sequence[int], noun: str, most: int = 24) -> None:
    """Number the rows or columns of a map; every second, third … where there are too many."""
    step = next(step for step in (1, 2, 3, 4, 5, 10, 20, 50, 100) if len(numbers) <= step * most or step == 100)
    shown = range(0, len(numbers), step)
    getattr(ax, f"set_{which}ticks")([i + 0.5 for i in shown], [str(numbers[i]) for i in shown], rotation=0)
    getattr(ax, f"set_{which}label")(noun)
    ax.tick_params(axis=which, length=0, labelsize=8.5)


def colour_bar(mappable: ScalarMappable, axes: list[Axes], label: str, knee: float | None = None) -> Colorbar:
    """A thin bar beneath some axes that tells the values of their colours."""
    least, most = mappable.get_clim()
    many = 5 if _bar_width(axes) >= 2.5 else 3
    bar = thin_bar(mappable, axes, label, ticks(least or 0.0, most or 1.0, knee, many), lambda value, _: short(value))
    bar.ax.tick_params(length=2)
    return bar


def thin_bar(
    mappable: ScalarMappable,
    axes: list[Axes],
    label: str,
    shown: Sequence[float],
    words: Callable[[float, int], str] | None = None,
) -> Colorbar:
    """A bar of colours beneath some axes, four inches long where there is room.

    Args:
        mappable: the colours.
        axes: beneath which; several take one bar.
        label: below the bar.
        shown: values that are named.
        words: how they are written, from the value and its place; as numbers without it.
    """
    figure, length = figure_of(axes[0]), _bar_width(axes)
    # without an engine that makes room, the bar has to stand clear of the axes' own label: half an inch below them
    height = figure.get_figheight() * axes[0].get_position().height
    pad = 0.02 if figure.get_layout_engine() is not None else 0.55 / height
    bar = figure.colorbar(
        mappable, ax=axes, location="bottom", shrink=length / _width(axes),
        aspect=length / 0.12, pad=pad, ticks=shown, format=words,
    )  # fmt: skip
    bar.ax.minorticks_off()
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)
    bar.set_label(label)
    return bar


def _width(axes: list[Axes]) -> float:
    return room(axes[0])[0] if len(axes) == 1 else float(figure_of(axes[0]).get_figwidth())


def _bar_width(axes: list[Axes]) -> float:
    return min(_width(axes), 4.0)
