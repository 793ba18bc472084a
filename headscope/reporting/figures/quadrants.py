"""The picture to remember: what each head is worth against how much of what varies in it the others give."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

from headscope.heads import HeadId
from headscope.planning.quadrants import Lines, quadrants
from headscope.reporting.figures.beside import LOOKS, means_beside
from headscope.reporting.figures.labels import label_points
from headscope.reporting.figures.scales import set_scale, short
from headscope.reporting.figures.style import COLOURS, GRID, INK, MUTED, canvas, figure_of, frameless, room, styled
from headscope.tables import NULLS, HeadTable

__all__ = ["LEFT_EDGE", "quadrant_plot"]

Floats = npt.NDArray[np.float64]

LEFT_EDGE = -0.25  # heads that the others give less of than this are drawn at the edge: how much worse says little
_MANY = 300  # heads past which the dots are small
_RINGS, _THIN = 60, 0.25  # rings from which they are thinner, and how thin they become, in points: dots must show
_QUADRANTS: Mapping[str, tuple[str, str]] = {  # a mark and a name each: told apart without colours too
    "needed": ("o", "needed"),
    "backed up": ("s", "needed, but backed up"),
    "idle": ("D", "idle"),
    "redundant": ("^", "redundant"),
}
_WIDE = 4.4  # inches that four names take side by side
_NAMED = 24  # chosen heads that are named where there is room; the table has them all


@styled
def quadrant_plot(
    importance: HeadTable,
    replaceability: HeadTable,
    lines: Lines,
    *,
    chosen: Collection[HeadId] = (),
    label: str = "importance",
    ax: Axes | None = None,
) -> Axes:
    """Importance against replaceability, a dot per head, a mark and a colour a quadrant.

    Upright lines without a number stand where the mean head is by chance, and in an untrained copy, where these are
    known and not left of -0.25.

    Args:
        importance: what removing each head costs; the same heads in the same order as `replaceability`.
        replaceability: share of what varies in each head that the others give; at most 1.
        lines: where the quadrants meet.
        chosen: heads to ring, in order of their naming.
        label: of the upright axis.
        ax: where to draw; a new figure without it.

    Returns:
        The axes. Heads with NaN in either table are not drawn; those left of -0.25 are triangles at the edge.
    """
    means = {name: mean for name, mean in means_beside(replaceability).items() if name in NULLS and mean > LEFT_EDGE}
    drawn = np.flatnonzero(np.isfinite(importance.score) & np.isfinite(replaceability.score))
    heads = [importance.heads[i] for i in drawn]
    y, x = importance.score[drawn], replaceability.score[drawn]
    points = np.stack([np.maximum(x, LEFT_EDGE), y], axis=1)
    ax = canvas(7.0, 5.2) if ax is None else ax
    _set_axes(ax, points, [lines.replaceability, *means.values()], lines.importance, label)
    size, ring = (30.0, 1.1) if len(heads) <= _MANY else (9.0, 0.5)
    _draw_dots(ax, points, x < LEFT_EDGE, quadrants(y, x, lines), size)
    ringed = [i for i, head in enumerate(heads) if head in chosen]
    ring = min(ring, max(_THIN, _RINGS / max(len(ringed), 1)))
    across, up = points[ringed].T
    ax.scatter(across, up, s=2.6 * size, facecolors="none", edgecolors=INK, linewidths=ring, zorder=4, clip_on=False)
    _draw_lines(ax, lines)
    for name, mean in means.items():
        ax.axvline(mean, color=INK, linewidth=1.1, linestyle=LOOKS[name][0], zorder=2)
    _name_quadrants(ax, means)
    figure_of(ax).draw_without_rendering()  # settles the layout that names are placed in
    edges = [ax.transData.transform((place, 0))[0] for place in (lines.replaceability, *means.values())]
    uprights = [Bbox.from_extents(edge - 1, -np.inf, edge + 1, np.inf) for edge in edges]
    labels = [(i, str(heads[i])) for i in _worth_naming(points, heads, chosen)]
    label_points(ax, points, labels, uprights, radius=0.8 * size**0.5)
    return ax


def _set_axes(ax: Axes, points: Floats, uprights: Sequence[float], level: float, label: str) -> None:
    bent = set_scale(ax, "y", np.append(points[:, 1], level))
    if points[:, 1].min(initial=0.0) >= 0:
        ax.set_ylim(bottom=0)  # what cannot be below zero has no room there
    ax.set_xlim(min(0.0, float(points[:, 0].min(initial=0.0)), *uprights) - 0.05, 1.03)
    ax.set_ylabel(f"{label}\n(log-like scale)" if bent else label)
    between = " " if room(ax)[0] >= _WIDE else "\n"
    ax.set_xlabel(f"replaceability\n(share of what varies in the head{between}that the others give)")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(round(value, 6))))
    frameless(ax)
    ax.tick_params(length=0)
    ax.grid(color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)


def _draw_dots(ax: Axes, points: Floats, beyond: npt.NDArray[np.bool_], where: list[str], size: float) -> None:
    for name, (marker, _) in _QUADRANTS.items():
        own = np.array([one == name for one in where], dtype=bool)
        for shape, these in ((marker, own & ~beyond), ("<", own & beyond)):
            x, y = points[these].T
            ax.scatter(
                x, y, s=size, color=COLOURS[name], marker=shape, linewidths=0, alpha=0.9, zorder=3, clip_on=False
            )


def _draw_lines(ax: Axes, lines: Lines) -> None:
    """The two lines and their values; outside the frame, where no dot can be."""
    importance, replaceability = lines.importance, lines.replaceability
    ax.axhline(importance, color=MUTED, linewidth=0.9, dashes=(5, 3), zorder=2)
    ax.axvline(replaceability, color=MUTED, linewidth=0.9, dashes=(5, 3), zorder=2)
    style: dict[str, Any] = {"textcoords": "offset points", "color": MUTED, "fontsize": 8}
    ax.annotate(short(importance), (1, importance), (3, 0), ("axes fraction", "data"), va="center", **style)
    ax.annotate(short(replaceability), (replaceability, 1), (0, 3), ("data", "axes fraction"), ha="center", **style)


def _name_quadrants(ax: Axes, means: Iterable[str]) -> None:
    """A legend above the frame, in as many lines as there is room for; names inside would stand on dots."""
    handles = [
        Line2D([], [], linestyle="", marker=marker, color=COLOURS[name], markersize=5.5, label=words)
        for name, (marker, words) in _QUADRANTS.items()
    ]
    handles += [
        Line2D([], [], linestyle=LOOKS[name][0], color=INK, linewidth=1.1, label=f"mean {NULLS[name]}")
        for name in means
    ]
    ax.legend(
        handles=handles, ncols=4 if room(ax)[0] >= _WIDE else 2, loc="lower left", bbox_to_anchor=(0, 1.03),
        frameon=False, borderaxespad=0.3, columnspacing=1.2, handletextpad=0.2, fontsize=8.5,
    )  # fmt: skip


def _worth_naming(points: Floats, heads: list[HeadId], chosen: Collection[HeadId]) -> list[int]:
    """Numbers of the dots to name, most telling first: the costliest, the chosen, the best removed, the rest."""
    by_cost = [int(i) for i in np.argsort(-points[:, 1])]
    place = {head: i for i, head in enumerate(heads)}
    order = [*by_cost[:5], *[place[head] for head in chosen if head in place][:_NAMED]]
    order += [i for i in reversed(by_cost[-3:]) if points[i, 1] < 0]
    return list(dict.fromkeys(order))
