"""Legends above or beneath some axes, where no line or dot can be."""

from collections.abc import Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes

from headscope.reporting.figures.style import figure_of, room

__all__ = ["legend_above", "legend_below"]

_HANDLE, _LETTER = 0.3, 0.07  # inches that a mark and a letter of an entry take


def legend_above(ax: Axes, columns: int, **settings: Any) -> None:
    """Write a legend above the axes, from their left edge.

    Args:
        ax: the axes; what is told are their labelled lines.
        columns: how many entries stand side by side, where there is room for the longest of them so often.
        settings: more for `matplotlib.axes.Axes.legend`.
    """
    longest = max((len(label) for label in ax.get_legend_handles_labels()[1]), default=0)
    columns = max(1, min(columns, int(room(ax)[0] / (_HANDLE + _LETTER * longest))))
    ax.legend(
        frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, borderaxespad=0.2, columnspacing=1.2,
        **{"handletextpad": 0.4, "fontsize": 8.5, **settings},
    )  # fmt: skip


def legend_below(ax: Axes, handles: Sequence[Artist], each: float, **settings: Any) -> None:
    """Write a legend beneath the axes and their label, and make room for it where nothing else does.

    Args:
        ax: the axes.
        handles: what is told, each with its label.
        each: inches that one of them takes; as many stand side by side as find room.
        settings: more for `matplotlib.axes.Axes.legend`.
    """
    columns = max(1, min(int(room(ax)[0] / each), len(handles)))
    ax.legend(
        handles=handles, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, 0.0), borderaxespad=3.6,
        frameon=False, **{"fontsize": 8.5, **settings},
    )  # fmt: skip
    if figure_of(ax).get_layout_engine() is None:
        place, lines = ax.get_position(), -(-len(handles) // columns)
        below = min((0.4 + 0.17 * lines) / figure_of(ax).get_figheight(), 0.6 * place.height)
        ax.set_position((place.x0, place.y0 + below, place.width, place.height - below))
