"""Names beside points, placed so that none covers another; a name that finds no room is left out."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from headscope._support.formatting import brief_list
from headscope.reporting.figures.style import INK, MUTED, figure_of

__all__ = ["label_points"]

Floats = npt.NDArray[np.float64]

_NEAR = 6  # past this distance a thin line leads from the dot to its name
# where a name may stand, best first: (x, y) in points from the dot, and the alignment that makes it point away
_PLACES = [
    (distance * x, distance * y, ("right", "center", "left")[x + 1], ("top", "center", "bottom")[y + 1])
    for distance in (_NEAR, 12, 19, 30, 44, 60)
    for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
]


def label_points(
    ax: Axes,
    points: Floats,
    names: Sequence[tuple[int, str]],
    obstacles: Sequence[Bbox] = (),
    radius: float = 4.0,
) -> list[str]:
    """Write names beside points; dots that cannot be told apart share one.

    Args:
        ax: axes whose limits and layout are final.
        points: (point, 2) in data coordinates, every dot that no name may cover.
        names: (number of the point, its name), most important first.
        obstacles: boxes in display coordinates that must stay free as well.
        radius: of the dots, in points.

    Returns:
        The names that found room, as they were written.
    """
    pixel = figure_of(ax).dpi / 72
    spots = ax.transData.transform(points)
    taken = np.array([box.extents for box in obstacles]).reshape(-1, 4)
    dots = np.hstack([spots - radius * pixel, spots + radius * pixel])
    one_dot = np.linalg.norm(spots[:, None] - spots, axis=-1) < radius * pixel / 2
    written: list[str] = []
    done: set[int] = set()
    for index, _ in names:
        if index in done:
            continue
        together = [(other, own) for other, own in names if one_dot[index, other] and other not in done]
        done |= {other for other, _ in together}
        name = brief_list([own for _, own in together], most=3)
        label = ax.annotate(name, points[index], (_NEAR, 0), textcoords="offset points", fontsize=8, color=INK)
        label.set_zorder(5)
        label.set_in_layout(False)
        box = _free_place(ax, label, spots[index], np.vstack([taken, dots[~one_dot[index]]]))
        if box is None:
            label.remove()
            continue
        taken = np.vstack([taken, box])
        written.append(name)
        if max(map(abs, label.get_position())) > _NEAR:
            lead = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": radius}
            ax.annotate("", points[index], label.get_position(), textcoords="offset points", arrowprops=lead)
    return written


def _free_place(ax: Axes, label: Annotation, spot: Floats, taken: Floats) -> Floats | None:
    """Move a label to the first place where neither it nor its line touches anything, or else where it does not.

    A thin line may pass a dot rather than a name be left out.

    Args:
        ax: its axes, which it must not leave.
        label: the label.
        spot: its dot in display coordinates.
        taken: (box, 4) what it must not touch: left, bottom, right, top.

    Returns:
        (4,) the box of the label where it now stands; None where there is no room for it at all.
    """
    inside = ax.get_window_extent()
    second: tuple[Floats, tuple[int, int, str, str]] | None = None
    for place in _PLACES:
        x, y, horizontal, vertical = place
        label.set(position=(x, y), ha=horizontal, va=vertical)
        box = label.get_window_extent().padded(1)
        within = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
        if not within or _touch(np.asarray(box.extents)[None], taken).any():
            continue
        nearest = np.clip(spot, (box.x0, box.y0), (box.x1, box.y1))
        line = spot + np.linspace(0, 1, 9)[:, None] * (nearest - spot)
        if not _touch(np.hstack([line, line]), taken).any():
            return np.asarray(box.extents)
        second = second or (np.asarray(box.extents), place)
    if second is None:
        return None
    x, y, horizontal, vertical = second[1]
    label.set(position=(x, y), ha=horizontal, va=vertical)
    return second[0]


def _touch(a: Floats, b: Floats) -> npt.NDArray[np.bool_]:
    """(box of a, box of b): whether the two overlap."""
    apart = (a[:, None, :2] > b[None, :, 2:]) | (b[None, :, :2] > a[:, None, 2:])
    return np.asarray(~apart.any(axis=2))
