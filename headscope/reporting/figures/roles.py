"""What every head does, on one map: a colour for each role."""

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from headscope._support.formatting import MISSING, fixed
from headscope.head_roles.tables import MIXED, ROLES, RoleTable
from headscope.reporting.figures.legends import legend_below
from headscope.reporting.figures.maps import bound_cells, map_canvas, name_ticks
from headscope.reporting.figures.style import INK, MUTED, PAPER, ROLE_COLOURS, frameless, room, styled

__all__ = ["role_map"]

Floats = npt.NDArray[np.float64]

_MANY = 400  # cells past which the SVG holds a picture of them: thousands of vector squares slow a browser down
_SHORT = {"previous": "prev", "duplicate": "dup", "induction": "induct", "delimiter": "delim"}
_STRONG = 0.7  # strength of a colour from which letters on it are light


@styled
def role_map(table: RoleTable, *, layers_across: bool = False, ax: Axes | None = None) -> Axes:
    """The role of every head, layer by layer; the stronger the colour, the higher the score of that role.

    Args:
        table: the roles; a mixed head is pale, with a dash, a head that its layer lacks is left empty.
        layers_across: layers along the horizontal axis, for models of many layers with few heads each.
        ax: where to draw; a new figure without it.
    """
    layers, numbers = (sorted({getattr(head, axis) for head in table.heads}) for axis in ("layer", "head"))
    place = {head: (layers.index(head.layer), numbers.index(head.head)) for head in table.heads}
    if layers_across:
        place = {head: spot[::-1] for head, spot in place.items()}
    cells = np.zeros((len(numbers), len(layers), 4) if layers_across else (len(layers), len(numbers), 4))
    strength = np.nan_to_num(np.clip(table.score, 0, 1), nan=1.0)
    for head, role, score in zip(table.heads, table.role, strength, strict=True):
        cells[place[head]] = (*to_rgb(ROLE_COLOURS[role]), score)
    rows, columns, _ = cells.shape
    ax = map_canvas(rows, columns, 0.2 if len({*table.role}) > 4 else -0.15) if ax is None else ax
    bound_cells(ax, rows, columns)
    many = rows * columns > _MANY
    ax.pcolormesh(
        np.arange(columns + 1), np.arange(rows + 1), cells, rasterized=many,
        edgecolors="none" if many else PAPER, linewidth=0 if many else 1.5,
    )  # fmt: skip
    ax.invert_yaxis()
    frameless(ax)
    width, height = room(ax)
    cell = width / (columns + 1), height / (rows + 4)
    for head, role, score in zip(table.heads, table.role, table.score, strict=True):
        _letter(ax, place[head], role, score, cell)
    name_ticks(ax, "y", numbers if layers_across else layers, "head" if layers_across else "layer")
    name_ticks(ax, "x", layers if layers_across else numbers, "layer" if layers_across else "head", most=int(4 * width))
    _legend(ax, table)
    return ax


def _letter(ax: Axes, spot: tuple[int, int], role: str, score: float, cell: tuple[float, float]) -> None:
    """Write into a cell of that width and height, in inches, what its colour says: as much as finds room."""
    row, column = spot
    width, height = cell
    text, colour = MISSING, MUTED
    if role != MIXED:
        name, colour = _SHORT.get(role, role), PAPER if score >= _STRONG else INK
        if width >= 0.4 and height >= 0.28:
            text = f"{name}\n{fixed(score, 2)}"
        elif width >= 0.75:
            text = f"{name} {fixed(score, 2)}"
        else:
            text = role[:2] if width >= 0.17 and height >= 0.12 else ""
    ax.text(
        column + 0.5, row + 0.5, text, ha="center", va="center", color=colour, linespacing=1.1,
        fontsize=8.5 if role == MIXED and width >= 0.17 else 6.5,
    )  # fmt: skip


def _legend(ax: Axes, table: RoleTable) -> None:
    """The roles that there are, with how many heads have them, beneath the axes."""
    counts = {role: table.role.count(role) for role in (*ROLES, MIXED)}
    handles = [Patch(color=ROLE_COLOURS[role], label=f"{role} ({count})") for role, count in counts.items() if count]
    legend_below(ax, handles, 1.3, handlelength=1.0, handleheight=1.0, columnspacing=1.4)
