"""Heads by likeness: the similarity matrix in the order of its clusters, and the map of heads in the plane."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, Normalize
from matplotlib.text import Text
from scipy.cluster import hierarchy

from headscope.likeness.geometry import Clusters, HeadMap
from headscope.reporting.figures.labels import label_points
from headscope.reporting.figures.maps import colour_bar, thin_bar
from headscope.reporting.figures.style import ALIKE, INK, MUTED, PAPER, canvas, figure_of, frameless, room, styled
from headscope.tables import PairTable

__all__ = ["cluster_matrix", "head_scatter", "layer_bar", "layer_colours"]

Floats = npt.NDArray[np.float64]

_NAMED = 80  # heads up to which each row is named
_LAYERS = "viridis"  # first to last: even in lightness, and told apart from the colours of similarity
_MANY = 300  # dots past which they are small


@styled
def cluster_matrix(pairs: PairTable, clusters: Clusters, *, label: str = "", ax: Axes | None = None) -> Axes:
    """Similarity of every two heads, rows and columns in the order of the clusters, with the tree above.

    Args:
        pairs: the similarities that the clusters were made of, or others of the same heads.
        clusters: the order, the tree and where it was cut; clusters of two heads and more are framed.
        label: of the colour bar; without it the measure's name.
        ax: where to draw; a new figure without it.
    """
    ax = canvas(7.2, 8.2) if ax is None else ax
    place = {head: i for i, head in enumerate(pairs.heads)}
    rows = [place[clusters.heads[i]] for i in clusters.order]
    size = len(rows)
    cells = pairs.matrix[np.ix_(rows, rows)].copy()
    np.fill_diagonal(cells, np.nan)
    norm = Normalize(min(0.0, float(np.nanmin(cells, initial=0.0))), 1.0)
    ax.imshow(np.ma.masked_invalid(cells), cmap=ALIKE, norm=norm, interpolation="none", extent=(0, size, size, 0))
    frameless(ax)
    heads = [clusters.heads[i] for i in clusters.order]
    _frame_clusters(ax, clusters.labels[clusters.order])
    _name_rows(ax, [str(head) for head in heads])
    _layer_strip(ax, [head.layer for head in heads])
    _tree(ax, clusters)
    colour_bar(ScalarMappable(norm, ALIKE), [ax], label or f"{pairs.name} of {pairs.of}")
    figure_of(ax).draw_without_rendering()  # tree, strip and two bars settle only when they are laid out twice
    return ax


@styled
def head_scatter(heads: HeadMap, *, ax: Axes | None = None) -> Axes:
    """Heads in the plane, coloured by layer; those that stand apart are named first, where there is room.

    Names are placed for the size that the axes have now: on a grid, draw this figure last.

    Args:
        heads: the map; its stress is written beside it.
        ax: where to draw; a new figure without it.
    """
    ax = canvas(6.4, 6.0) if ax is None else ax
    layers = [head.layer for head in heads.heads]
    size = 34.0 if len(layers) <= _MANY else 10.0
    palette, norm = layer_colours(layers)
    x, y = heads.points.T
    ax.scatter(x, y, c=layers, cmap=palette, norm=norm, s=size, linewidths=0.6, edgecolors=INK, zorder=3)
    frameless(ax)
    ax.set_aspect("equal", adjustable="box")  # the limits stay as they are: names are placed in them
    ax.margins(0.08)
    ax.set_xticks([])
    ax.set_yticks([])
    layer_bar(ax, layers)
    figure_of(ax).draw_without_rendering()  # settles the layout and the limits that names are placed in
    words = _write_scale(ax, heads)
    apart = np.linalg.norm(heads.points[:, None] - heads.points, axis=-1)
    np.fill_diagonal(apart, np.inf)
    order = np.argsort(-apart.min(1), kind="stable")
    names = [(int(i), str(heads.heads[i])) for i in order]
    label_points(ax, heads.points, names, [word.get_window_extent() for word in words], radius=0.6 * size**0.5)
    return ax


def layer_colours(layers: list[int]) -> tuple[Colormap, BoundaryNorm]:
    """A colour for each layer number, early ones dark, and the norm that picks it."""
    least, most = min(layers), max(layers)
    count = most - least + 1
    palette = ListedColormap(sns.color_palette(_LAYERS, count))
    return palette, BoundaryNorm(np.arange(least, most + 2) - 0.5, count)


def layer_bar(ax: Axes, layers: list[int]) -> None:
    """A thin bar beneath some axes that tells the colours of layers."""
    palette, norm = layer_colours(layers)
    shown = sorted(set(layers))
    thin_bar(ScalarMappable(norm, palette), [ax], "layer", shown[:: -(-len(shown) // 12)])


def _frame_clusters(ax: Axes, labels: npt.NDArray[np.int64]) -> None:
    """Lines between clusters that can be seen on any colour, round those of two heads and more."""
    edges = np.flatnonzero(np.diff(labels, prepend=0, append=0))
    corners = [[(a, a), (b, a), (b, b), (a, b), (a, a)] for a, b in pairwise(edges) if b - a > 1]
    for colour, width in ((PAPER, 2.2), (INK, 0.9)):
        ax.add_collection(LineCollection(corners, colors=colour, linewidths=width, zorder=3, clip_on=False))


def _name_rows(ax: Axes, names: list[str]) -> None:
    middles = np.arange(len(names)) + 0.5
    height = room(ax)[1] * 72 * 0.62 / len(names)  # points of a row
    if len(names) <= _NAMED and height >= 3.6:
        ax.set_yticks(middles, names)
        ax.yaxis.tick_right()
        ax.tick_params(axis="y", labelsize=min(height * 1.05, 7.5), pad=1)
    else:
        ax.set_yticks([])
    ax.set_xticks([])
    ax.tick_params(length=0)


def _layer_strip(ax: Axes, layers: list[int]) -> None:
    """The layer of each row, as a column of colours at its left; its bar stands below."""
    palette, norm = layer_colours(layers)
    strip = ax.inset_axes((-0.045, 0, 0.03, 1))
    strip.imshow(np.array(layers)[:, None], cmap=palette, norm=norm, aspect="auto", interpolation="none")
    strip.set_xticks([])
    strip.set_yticks([])
    strip.set_ylabel("layer")
    frameless(strip)
    layer_bar(ax, layers)


def _tree(ax: Axes, clusters: Clusters) -> None:
    """The tree of the clusters above the matrix, angles in degrees upwards."""
    tree = ax.inset_axes((0, 1.01, 1, 0.16))
    drawn = hierarchy.dendrogram(clusters.linkage, no_plot=True)
    lines = [
        list(zip(np.array(x) / 10, np.degrees(y), strict=True))
        for x, y in zip(drawn["icoord"], drawn["dcoord"], strict=True)
    ]
    tree.add_collection(LineCollection(lines, colors=MUTED, linewidths=0.8))
    tree.set_xlim(0, len(clusters.heads))
    tree.set_ylim(0, max(float(np.degrees(clusters.linkage[:, 2].max())), 1e-6) * 1.03)
    if clusters.angle is not None:
        tree.axhline(np.degrees(clusters.angle), color=INK, linewidth=0.8, dashes=(5, 3))
    tree.set_xticks([])
    tree.yaxis.set_major_formatter("{x:.0f}°")
    tree.locator_params(axis="y", nbins=4 if room(ax)[1] >= 7 else 1)
    tree.tick_params(length=2, labelsize=7.5)
    tree.set_ylabel("mean angle")
    frameless(tree, "left")


def _write_scale(ax: Axes, heads: HeadMap) -> list[Text]:
    """How long an angle is on the map, and how far the map can be trusted, below the dots."""
    left, right = ax.get_xlim()
    span = np.degrees(right - left)
    angle = next((angle for angle in (30, 20, 10, 5, 2, 1) if angle <= span / 4), 0.5)
    length = np.radians(angle) / (right - left)
    ax.plot([0, length], [-0.02, -0.02], transform=ax.transAxes, color=INK, linewidth=1.4, clip_on=False)
    ax.set_xlim(left, right)
    return [
        ax.text(length + 0.01, -0.02, f"{angle}°", transform=ax.transAxes, ha="left", va="center", fontsize=8),
        ax.text(
            1, -0.02, f"stress {heads.stress:.2f}", transform=ax.transAxes, ha="right", va="center", color=MUTED,
            fontsize=8,
        ),
    ]  # fmt: skip
