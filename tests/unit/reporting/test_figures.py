"""Figures draw what the tables say, on the axes that they are given, and leave matplotlib as it was."""

import logging
from dataclasses import replace
from itertools import pairwise

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from headscope._support.formatting import number
from headscope.heads import HeadId
from headscope.planning.quadrants import Lines
from headscope.reporting import figures
from headscope.tables import HeadTable, PairTable
from tests.unit.reporting.synthetic import SyntheticAnalysis, analysis


@pytest.fixture(scope="module")
def run() -> SyntheticAnalysis:
    return analysis(4, 5, negative=True, undefined=("L1H2",))


def table(scores: list[float], heads: list[str]) -> HeadTable:
    score = np.array(scores)
    none = np.full(len(scores), np.nan)
    return HeadTable("made up", "nats/token", tuple(map(HeadId.parse, heads)), score, none, none)


def dots(ax: Axes) -> np.ndarray:
    """Where filled dots and triangles stand, rings left out."""
    filled = [c for c in ax.collections if isinstance(c, PathCollection) and len(c.get_facecolors())]
    return np.vstack([np.asarray(c.get_offsets()) for c in filled])


def plot(run: SyntheticAnalysis, **changes: object) -> Axes:
    return figures.quadrant_plot(
        run.scores["ablation"], run.scores["replaceability"], run.verdict.lines, chosen=run.verdict.chosen, **changes
    )


def test_a_dot_stands_where_each_head_is(run: SyntheticAnalysis) -> None:
    x, y = run.scores["replaceability"].score, run.scores["ablation"].score
    known = np.isfinite(x) & np.isfinite(y)
    assert 0 < known.sum() < len(x)
    want = np.stack([np.maximum(x, -0.25), y], axis=1)[known]
    got = dots(plot(run))
    np.testing.assert_allclose(got[np.lexsort(got.T)], want[np.lexsort(want.T)])


def test_dots_have_the_colour_of_their_quadrant() -> None:
    importance = table([1.0, 1.0, 0.1, 0.1], ["L0H0", "L0H1", "L0H2", "L0H3"])
    replaceability = table([0.1, 0.9, 0.1, 0.9], ["L0H0", "L0H1", "L0H2", "L0H3"])
    ax = figures.quadrant_plot(importance, replaceability, Lines(0.5, 0.5, ""))
    one_each = [c for c in ax.collections if isinstance(c, PathCollection) and len(c.get_offsets()) == 1]
    colours = [mpl.colors.to_hex(own.get_facecolors()[0]) for own in one_each]
    assert colours == ["#0071b3", "#008f68", "#7b8794", "#d45500"]
    assert len({own.get_paths()[0].vertices.tobytes() for own in one_each}) == 4, "told apart without colours too"


def test_the_lines_the_names_and_the_rings_are_there(run: SyntheticAnalysis) -> None:
    ax = plot(run)
    lines = {round(float(np.ravel(line.get_data()[axis])[0]), 9) for line in ax.lines for axis in (0, 1)}
    where = run.verdict.lines
    assert {round(where.importance, 9), round(where.replaceability, 9)} <= lines
    words = {text.get_text() for text in ax.texts}
    told = [text.get_text() for text in ax.get_legend().get_texts()]
    assert told == ["needed", "needed, but backed up", "idle", "redundant"]
    named = {name for text in words for name in text.split(", ")}
    assert {str(head) for head in run.verdict.chosen} <= named, "every ring is named"
    rings = [c for c in ax.collections if isinstance(c, PathCollection) and not len(c.get_facecolors())]
    assert len(rings[0].get_offsets()) == len(run.verdict.chosen) > 0
    assert str(run.scores["ablation"].heads[0]) in words, "the head that towers over the rest is named"


def test_a_head_far_to_the_left_is_a_triangle_at_the_edge() -> None:
    heads = ["L0H0", "L0H1"]
    ax = figures.quadrant_plot(table([1.0, 2.0], heads), table([-40.0, 0.4], heads), Lines(1.5, 0.5, ""))
    assert ax.get_xlim()[0] > -0.5
    assert sorted(dots(ax)[:, 0]) == [-0.25, 0.4]


def test_decades_bend_the_scale_and_it_says_so(run: SyntheticAnalysis) -> None:
    ax = plot(run, label="importance")
    assert ax.get_yscale() == "asinh"
    assert "log-like" in ax.get_ylabel()
    heads = ["L0H0", "L0H1"]
    flat = figures.quadrant_plot(table([1.0, 2.0], heads), table([0.3, 0.4], heads), Lines(1.5, 0.5, ""))
    assert (flat.get_yscale(), flat.get_ylabel()) == ("linear", "importance")


def test_a_map_holds_every_score_at_its_place(run: SyntheticAnalysis) -> None:
    importance = run.scores["ablation"]
    for across in (False, True):
        ax = figures.head_map(importance, chosen=run.verdict.chosen, layers_across=across)
        mesh = next(c for c in ax.collections if isinstance(c, QuadMesh))
        cells = np.ma.filled(mesh.get_array().astype(float), np.nan)
        want = importance.score.reshape(4, 5)
        np.testing.assert_array_equal(cells, want.T if across else want)
        assert len([p for p in ax.patches if isinstance(p, Rectangle)]) == len(run.verdict.chosen)
        assert [text.get_text() for text in ax.texts].count("–") == 1, "the head without a number"
        assert (ax.get_xlabel(), ax.get_ylabel()) == (("layer", "head") if across else ("head", "layer"))


def test_a_map_of_uneven_layers_leaves_missing_heads_empty() -> None:
    ax = figures.head_map(table([1.0, 2.0, 3.0], ["L0H0", "L0H5", "L3H5"]))
    cells = next(c for c in ax.collections if isinstance(c, QuadMesh)).get_array()
    assert cells.shape == (2, 2)
    assert cells.mask.tolist() == [[False, False], [True, False]]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "5"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "3"]


def legend(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_the_curve_shows_costs_budget_and_random_sets(run: SyntheticAnalysis) -> None:
    most, heads = float(run.removal.costs["chosen_high"][2]), run.removal.costs["heads"].astype(float)
    ax = figures.joint_cost(replace(run.removal, budget=most), random=[0.5, 0.4, 0.4])
    curve = next(line for line in ax.lines if line.get_marker() == "o")
    assert curve.get_xdata().tolist()[:2] == [0, 1]
    np.testing.assert_allclose(curve.get_ydata()[1:], run.removal.costs["cost"][: len(curve.get_ydata()) - 1])
    offsets = [np.asarray(c.get_offsets()).tolist() for c in ax.collections if isinstance(c, PathCollection)]
    assert offsets[0] == [[3, pytest.approx(run.removal.cost(3).value)]]
    assert offsets[1] == [[3, 0.5], [3, 0.4], [3, 0.4]]
    assert f"allowed: {number(most)}" in [text.get_text() for text in ax.texts]
    assert legend(ax) == [
        "on documents that chose nothing", "95% interval", "on those that chose the heads", "the 3 chosen heads",
        "3 random sets of as many heads",
    ]  # fmt: skip
    one = figures.joint_cost(replace(run.removal, costs=run.removal.costs.assign(chosen_high=heads), budget=1.0))
    assert f"the chosen head, {run.removal.order[0]}" in legend(one)
    assert one.get_xlim()[1] < ax.get_xlim()[1], "what stands about the chosen number is drawn"


def test_the_curve_says_that_costs_are_a_rise_and_of_what() -> None:
    told = analysis(2, 3, metric="loss", unit="nats/token").removal
    assert figures.joint_cost(told).get_ylabel() == "rise in loss, nats/token"
    assert figures.joint_cost(analysis(2, 3).removal).get_ylabel() == "rise in drift"


def test_the_curve_can_do_without_intervals_budget_and_sets(run: SyntheticAnalysis) -> None:
    costs = run.removal.costs.assign(low=np.nan, high=np.nan)
    ax = figures.joint_cost(replace(run.removal, costs=costs, budget=None))
    ax.figure.draw_without_rendering()
    assert ax.get_ylim()[1] > costs["cost"].max()
    assert ax.get_xlim()[1] > costs["heads"].max(), "all numbers of heads"
    assert legend(ax) == ["on documents that chose nothing", "on those that chose the heads"]


@pytest.mark.parametrize("layout", [None, "constrained"])
def test_the_legend_of_the_curve_stands_clear_of_its_axes(run: SyntheticAnalysis, layout: str | None) -> None:
    ax = Figure(figsize=(9, 5), layout=layout).subplots(1, 2)[1]
    with figures.styling():
        figures.joint_cost(run.removal, random=[0.1], ax=ax)
        ax.figure.draw_without_rendering()
    box = ax.get_legend().get_window_extent()
    assert not any(box.overlaps(other) for other in (ax.get_window_extent(), ax.xaxis.label.get_window_extent()))
    assert box.y0 >= 0, "nothing is cut off"


def test_of_nearly_all_heads_those_that_stay_are_marked() -> None:
    heads = tuple(HeadId(0, head) for head in range(40))
    for n, marked, words in (
        (0, (), ""),
        (3, heads[:3], "Framed: the 3 heads chosen for removal"),
        (37, heads[37:], "Framed: the 3 heads that stay; all others are chosen for removal"),
        (40, (), "Every head is chosen for removal"),
    ):
        assert figures.to_mark(heads, heads[:n], "Framed") == ([*marked], words)


def test_many_rings_are_thin() -> None:
    def width(n: int) -> float:
        large = analysis(10, 25)
        ax = figures.quadrant_plot(
            large.scores["ablation"],
            large.scores["replaceability"],
            large.verdict.lines,
            chosen=large.removal.order[:n],
        )
        rings = [c for c in ax.collections if isinstance(c, PathCollection) and not len(c.get_facecolors())]
        return float(rings[0].get_linewidths()[0])

    assert width(120) < width(10)


def test_a_block_is_that_layers_part_of_the_matrix(run: SyntheticAnalysis) -> None:
    pairs = run.pairs["cka"]
    ax = figures.layer_block(pairs, 2)
    drawn = ax.images[0].get_array()
    want = pairs.matrix[10:15, 10:15].copy()
    assert drawn.mask.tolist() == np.eye(5, dtype=bool).tolist(), "a head with itself says nothing"
    np.testing.assert_array_equal(np.asarray(drawn)[~drawn.mask], want[~np.eye(5, dtype=bool)])
    np.fill_diagonal(want, -1)
    a, b = sorted(np.unravel_index(want.argmax(), want.shape))
    assert sorted(patch.get_xy() for patch in ax.patches) == sorted([(a, b), (b, a)])
    assert f"H{a}, H{b}" in ax.get_title("left")


def test_of_two_numbers_of_a_pair_the_larger_is_framed_and_named() -> None:
    matrix = np.array([[1.0, 0.2], [0.75, 1.0]])
    pairs = PairTable("predict", "z", (HeadId(0, 0), HeadId(0, 1)), matrix, matrix, matrix)
    ax = figures.layer_block(pairs, 0)
    assert [patch.get_xy() for patch in ax.patches] == [(0, 1)]
    assert ax.get_title("left") == "layer 0   H1, H0: 0.75"


def test_a_layer_without_any_number_is_drawn_empty() -> None:
    nothing = np.full((2, 2), np.nan)
    pairs = PairTable("cka", "z", (HeadId(0, 0), HeadId(0, 1)), nothing, nothing, nothing)
    ax = figures.layer_block(pairs, 0)
    assert (len(ax.patches), ax.get_title("left")) == (0, "layer 0")
    single = PairTable("cka", "z", (HeadId(0, 0),), np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)))
    figures.layer_blocks(single, width=4.0).figure.draw_without_rendering()


def test_every_layer_has_its_block_and_all_share_one_scale(run: SyntheticAnalysis) -> None:
    blocks = figures.layer_blocks(run.pairs["cka"], width=10.6).child_axes
    assert [ax.get_title("left").split("   ")[0] for ax in blocks] == [f"layer {layer}" for layer in range(4)]
    assert {ax.images[0].get_clim() for ax in blocks} == {(0.0, 1.0)}


@pytest.mark.parametrize("n_layers", [1, 2, 3, 5])
def test_few_small_blocks_leave_no_gap_above_their_bar(n_layers: int) -> None:
    pairs = analysis(n_layers, 4, cross_layer=False).pairs["cka"]
    width = figures.blocks_width(pairs)
    figure = figures.figure_of(figures.layer_blocks(pairs, width=max(width, 3.8)))
    with figures.styling():
        figure.draw_without_rendering()
    blocks, bar = figure.axes[0].child_axes, figure.axes[1]
    assert len({round(block.get_position().y0, 3) for block in blocks}) == 1, "side by side"
    gap = min(block.get_window_extent().y0 for block in blocks) - bar.get_window_extent().y1
    assert gap / figure.dpi < 0.9


def test_the_whole_matrix_is_drawn_as_it_is(run: SyntheticAnalysis) -> None:
    pairs = run.pairs["cosine"]
    drawn = figures.whole_matrix(pairs).images[0].get_array()
    off = ~np.eye(20, dtype=bool) & np.isfinite(pairs.matrix)
    np.testing.assert_array_equal(np.asarray(drawn)[off], pairs.matrix[off])
    assert drawn.mask.sum() == 400 - off.sum()


def test_opposed_heads_get_a_scale_of_both_signs() -> None:
    matrix = np.array([[1.0, -0.8], [-0.8, 1.0]])
    pairs = PairTable("cosine", "contribution", (HeadId(0, 0), HeadId(0, 1)), matrix, matrix, matrix)
    assert figures.whole_matrix(pairs).images[0].get_clim() == (-1.0, 1.0)


def test_forty_eight_layers_of_forty_eight_heads_fit_a_page() -> None:
    large = analysis(48, 48, cross_layer=False)
    ax = figures.head_map(large.scores["ablation"])
    assert ax.figure.get_figheight() < 12
    assert ax.collections[0].get_rasterized(), "thousands of vector squares would slow a browser down"
    ax.figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    assert not [1 for a, b in pairwise(boxes) if a.overlaps(b)]


@pytest.mark.parametrize("name", ["quadrants", "map", "removal", "block", "matrix"])
def test_a_figure_draws_on_the_axes_that_it_is_given(name: str, run: SyntheticAnalysis) -> None:
    before = dict(mpl.rcParams)
    ax = Figure().subplots(1, 2)[1]
    drawn = {
        "quadrants": lambda: plot(run, ax=ax),
        "map": lambda: figures.head_map(run.scores["norm"], ax=ax),
        "removal": lambda: figures.joint_cost(run.removal, ax=ax),
        "block": lambda: figures.layer_block(run.pairs["cka"], 0, ax=ax),
        "matrix": lambda: figures.whole_matrix(run.pairs["cka"], ax=ax),
    }[name]()
    assert drawn is ax
    assert plt.get_fignums() == [], "no figure of pyplot's own"
    assert dict(mpl.rcParams) == before


def test_names_in_any_script_are_drawn_without_a_warning(
    run: SyntheticAnalysis, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="matplotlib"), figures.styling():
        plot(run, label="重要度 (損失) اہمیت").figure.savefig("/dev/null", format="png")
    assert not caplog.records


def test_heads_of_two_models_are_drawn_with_their_own_numbers() -> None:
    heads = tuple(HeadId(layer, head) for layer in range(2) for head in range(4))
    other = tuple(head for head in heads if str(head) not in ("L0H1", "L1H0"))
    matrix = np.full((8, 6), np.nan)
    matrix[:4, :3], matrix[4:, 3:] = np.eye(4)[:, [0, 2, 3]], np.linspace(0, 0.9, 12).reshape(4, 3)
    pairs = PairTable("cka", "z", heads, matrix, matrix, matrix, other=other)
    ax = figures.layer_block(pairs, 0)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "2", "3"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0", "1", "2", "3"]
    assert "H0, H0: 1" in ax.get_title(loc="left")  # a head and itself in the other model is a pair like any other
    assert len(ax.patches) == 1
    drawn = figures.layer_blocks(pairs, width=6.0)
    assert [block.get_title(loc="left").split("   ")[0] for block in drawn.child_axes] == ["layer 0", "layer 1"]
    whole = figures.whole_matrix(pairs)
    assert whole.get_images()[0].get_array().shape == (8, 6)
    assert [tick.get_text() for tick in whole.get_xticklabels()] == [*map(str, other)]
    small = figures.whole_matrix(pairs, ax=figures.canvas(1.0, 1.5))
    np.testing.assert_allclose(small.get_xticks(), [1.5, 4.5])
    np.testing.assert_allclose(small.get_yticks(), [2, 6])


def boxes(texts: list[Text]) -> list[Bbox]:
    """Where words that are shown stand, in pixels."""
    return [text.get_window_extent() for text in texts if text.get_visible() and text.get_text()]


@pytest.mark.parametrize("layout", [None, "constrained"])
@pytest.mark.parametrize("name", ["head_map", "whole_matrix"])
def test_in_a_cell_of_a_grid_the_bar_is_clear_of_the_label_and_its_numbers_of_each_other(
    name: str, layout: str | None, run: SyntheticAnalysis
) -> None:
    figure = Figure(figsize=(12, 8), layout=layout)
    ax = figure.subplots(2, 3)[0, 0]
    given = run.pairs["cka"] if name == "whole_matrix" else run.scores["norm"]
    with figures.styling():
        assert getattr(figures, name)(given, label="what it tells", ax=ax) is ax
        figure.draw_without_rendering()
    (bar,) = (other for other in figure.axes if other.get_label() == "<colorbar>")
    numbers = boxes(bar.get_xticklabels())
    assert len(numbers) >= 2
    assert not any(a.overlaps(b) for a, b in pairwise(numbers))
    (label,) = boxes([ax.xaxis.label])
    assert not any(label.overlaps(box) for box in [bar.get_window_extent(), *numbers])
    assert bar.get_window_extent().width / figure.dpi > 1.5
