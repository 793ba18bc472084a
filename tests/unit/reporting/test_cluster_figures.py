"""Figures of clusters, of the map of heads and of redundancy curves draw what their tables say."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection

from headscope.heads import HeadId
from headscope.likeness.geometry import Clusters, cluster, map_heads
from headscope.reporting import figures
from headscope.reporting.figures.clusters import layer_colours
from headscope.surplus.layers import Redundancy
from headscope.tables import PairTable


def table(n_layers: int = 3, n_heads: int = 4, seed: int = 0, constant: int | None = None) -> PairTable:
    size = n_layers * n_heads
    rows = np.abs(np.random.default_rng(seed).standard_normal((size, 4)))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    matrix = rows @ rows.T
    if constant is not None:
        matrix[constant] = matrix[:, constant] = np.nan
    heads = tuple(HeadId(layer, head) for layer in range(n_layers) for head in range(n_heads))
    none = np.full_like(matrix, np.nan)
    return PairTable("cka_biased", "z", heads, matrix, none, none)


def curves(n_layers: int = 2, n_heads: int = 3, worst: float = 0.2) -> Redundancy:
    rows = [
        {"layer": layer, "k": k, "head": "constant" if k == 0 else f"L{layer}H{k - 1}",
         "share": (share := worst + (1 - worst) * k / n_heads - 0.05 * layer), "low": share - 0.1, "high": share + 0.1}
        for layer in range(n_layers) for k in range(n_heads + 1)
    ]  # fmt: skip
    return Redundancy(pd.DataFrame(columns=["layer"]), pd.DataFrame(rows))


def draw(pairs: PairTable, clusters: Clusters, ax: Axes | None = None) -> Axes:
    ax = figures.cluster_matrix(pairs, clusters, ax=ax)
    figures.figure_of(ax).draw_without_rendering()
    return ax


def test_the_matrix_stands_in_the_order_of_the_clusters() -> None:
    pairs = table(constant=5)
    found = cluster(pairs)
    ax = draw(pairs, found)
    kept = [i for i in range(12) if i != 5]
    rows = [kept[i] for i in found.order]
    want = pairs.matrix[np.ix_(rows, rows)].copy()
    np.fill_diagonal(want, np.nan)
    np.testing.assert_array_equal(np.ma.filled(ax.images[0].get_array(), np.nan), want)
    assert [label.get_text() for label in ax.get_yticklabels()] == [str(pairs.heads[i]) for i in rows]


def test_clusters_are_framed_and_the_tree_stands_above_them() -> None:
    pairs = table(seed=3)
    found = cluster(pairs, n_clusters=4)
    ax = draw(pairs, found)
    frames = next(c for c in ax.collections if isinstance(c, LineCollection)).get_segments()
    sizes = sorted(int(np.ptp(frame[:, 0])) for frame in frames)
    assert sizes == sorted(n for n in np.bincount(found.labels) if n > 1)
    strip, tree = ax.child_axes
    np.testing.assert_array_equal(np.ravel(strip.images[0].get_array()), [found.heads[i].layer for i in found.order])
    joints = tree.collections[0].get_segments()
    assert len(joints) == len(found.heads) - 1
    np.testing.assert_allclose(sorted(j[:, 1].max() for j in joints), np.degrees(found.linkage[:, 2]), rtol=1e-9)
    assert not tree.lines, "no line where a number of clusters was asked for"
    cut = draw(pairs, cluster(pairs, angle=0.7)).child_axes[1].lines[0]
    assert np.ravel(cut.get_ydata())[0] == pytest.approx(np.degrees(0.7))


def test_many_heads_have_no_names_and_still_a_strip() -> None:
    pairs = table(10, 9)
    ax = draw(pairs, cluster(pairs))
    assert not ax.get_yticklabels()
    assert len(np.ravel(ax.child_axes[0].images[0].get_array())) == 90


def test_a_dot_for_each_head_in_the_colour_of_its_layer() -> None:
    pairs = table(constant=2)
    found = map_heads(pairs)
    ax = figures.head_scatter(found)
    dots = next(c for c in ax.collections if isinstance(c, PathCollection))
    np.testing.assert_array_equal(np.asarray(dots.get_offsets()), found.points)
    figures.figure_of(ax).draw_without_rendering()
    palette, norm = layer_colours([head.layer for head in found.heads])
    want = [mpl.colors.to_hex(palette(norm(head.layer))) for head in found.heads]
    assert [mpl.colors.to_hex(colour) for colour in dots.get_facecolors()] == want
    assert len(set(want)) == 3
    words = {text.get_text() for text in ax.texts}
    assert f"stress {found.stress:.2f}" in words
    assert words & {str(head) for head in found.heads}
    assert "L0H2" not in words


def test_names_on_the_map_do_not_cover_each_other_or_dots() -> None:
    found = map_heads(table(6, 8, seed=2))
    ax = figures.head_scatter(found)
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text()]
    assert len(boxes) > 10
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    spots = ax.transData.transform(found.points)
    assert not any(box.contains(*spot) for box in boxes for spot in spots)


def test_the_bar_on_the_map_is_as_long_as_it_says() -> None:
    ax = figures.head_scatter(map_heads(table(4, 6, seed=1)))
    figures.figure_of(ax).draw_without_rendering()
    bar = next(line for line in ax.lines if len(line.get_xdata()) == 2)
    degrees = float(next(text.get_text() for text in ax.texts if text.get_text().endswith("°")).rstrip("°"))
    ends = ax.transData.inverted().transform(ax.transAxes.transform(np.column_stack(bar.get_data())))
    assert np.degrees(ends[1, 0] - ends[0, 0]) == pytest.approx(degrees, rel=1e-6)


def test_a_line_and_a_band_for_each_layer() -> None:
    redundancy = curves()
    ax = figures.redundancy_curve(redundancy)
    assert len(ax.lines) == len(ax.collections) == 2
    for layer, line in enumerate(ax.lines):
        own = redundancy.curve[redundancy.curve["layer"] == layer]
        np.testing.assert_array_equal(line.get_xdata(), own["k"])
        np.testing.assert_array_equal(line.get_ydata(), own["share"])
        heights = ax.collections[layer].get_paths()[0].vertices[:, 1]
        assert heights.min() == pytest.approx(own["low"].min())
        assert heights.max() == pytest.approx(own["high"].max())
    assert ax.get_ylim()[1] > 1


def test_shares_far_below_zero_do_not_squeeze_the_rest() -> None:
    assert figures.redundancy_curve(curves(worst=-30.0)).get_ylim()[0] == pytest.approx(-0.25)
    redundancy = curves()
    redundancy.curve[["low", "high"]] = np.nan
    figures.figure_of(figures.redundancy_curve(redundancy)).draw_without_rendering()


def test_figures_draw_on_the_axes_given_and_leave_matplotlib_alone() -> None:
    before = {name: value for name, value in mpl.rcParams.items() if name != "backend"}
    pairs = table()
    found = cluster(pairs)
    for call in (
        lambda ax: figures.cluster_matrix(pairs, found, ax=ax),
        lambda ax: figures.head_scatter(map_heads(pairs), ax=ax),
        lambda ax: figures.redundancy_curve(curves(), ax=ax),
    ):
        ax = figures.canvas(5.0, 5.0)
        assert call(ax) is ax
    one_layer = table(1, 5)
    draw(one_layer, cluster(one_layer))
    assert {name: mpl.rcParams[name] for name in before} == before
    assert not plt.get_fignums()
