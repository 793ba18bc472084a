"""`plot` draws whatever a verb returned, where it is told to, and writes files whole or not at all."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

import headscope as hs
from headscope.errors import InputError, StorageError, UnknownNameError
from headscope.head_roles.tables import MIXED, ROLES, RoleTable
from headscope.reporting import figures
from headscope.surplus.layers import CONSTANT, WHOLE
from tests.unit.reporting.synthetic import analysis

NAN = np.nan
ONE, FEW, MINILM, UNEVEN, MANY = [1], [4], [12] * 6, [4, 1, 8, 3], [32] * 32


def heads(counts: list[int]) -> tuple[hs.HeadId, ...]:
    return tuple(hs.HeadId(layer, head) for layer, count in enumerate(counts) for head in range(count))


def scores(counts: list[int]) -> hs.HeadTable:
    score = np.random.default_rng(0).normal(size=sum(counts))
    return hs.HeadTable("ablation", "nats", heads(counts), score, score - 1, score + 1)


def pairs(counts: list[int], scope: str = "layer", *, other: list[int] | None = None, low: float = 0.0) -> hs.PairTable:
    rows, columns = heads(counts), heads(counts if other is None else other)
    matrix = np.random.default_rng(1).uniform(low, 1, (len(rows), len(columns)))
    if scope == "layer":
        matrix[np.not_equal.outer([head.layer for head in rows], [head.layer for head in columns])] = NAN
    none = np.full_like(matrix, NAN)
    return hs.PairTable("cka", "z", rows, matrix, none, none, other=None if other is None else columns)


def roles(counts: list[int]) -> RoleTable:
    names = heads(counts)
    score = {role: np.full(len(names), 0.6) for role in ROLES}
    found = tuple((*ROLES, MIXED)[place % 9] for place in range(len(names)))
    return RoleTable(names, found, score, score, score, score, (None,) * len(names))


def redundancy(counts: list[int], *, curve: bool = True) -> hs.Redundancy:
    layers = {**{str(layer): count for layer, count in enumerate(counts)}, WHOLE: sum(counts)}
    effective = [{"layer": n, "n_heads": c, "effective": 0.7 * c, "low": 0.6 * c, "high": c} for n, c in layers.items()]
    rows = [
        {"layer": layer, "k": k, "head": f"L{layer}H{k - 1}" if k else CONSTANT, "share": k / count if curve else NAN}
        for layer, count in enumerate(counts)
        for k in range(count + 1)
    ]
    return hs.Redundancy(pd.DataFrame(effective), pd.DataFrame(rows).assign(low=NAN, high=NAN))


def contrast() -> hs.Contrast:
    """L0H1 changed in "ablation"; the second model lacks L1H1."""
    rows = [
        (score, layer, head, "first" if layer * head else "both", NAN if layer * head else change, q)
        for score, change in (("ablation", -0.5), ("norm", 2.0))
        for layer, head, q in ((0, 0, 0.9), (0, 1, 0.01 if score == "ablation" else 0.5), (1, 0, 0.9), (1, 1, NAN))
    ]
    frame = pd.DataFrame(rows, columns=["score", "layer", "head", "in", "change", "q_value"])
    given = frame.assign(first=1.0, second=2.0, low=frame["change"] - 1, high=frame["change"] + 1, p_value=0.5)
    return hs.Contrast(("a", "b"), given, facts={"units": {"ablation": "nats", "norm": ""}})


SMALL: dict[str, Callable[[], Any]] = {
    "scores": lambda: scores(MINILM),
    "layers": lambda: pairs(MINILM),
    "model": lambda: pairs(FEW * 2, "model"),
    "roles": lambda: roles(MINILM),
    "curve": lambda: redundancy(FEW),
    "effective": lambda: redundancy(FEW, curve=False),
    "contrast": contrast,
    "clusters": lambda: hs.cluster(_metric()),
    "map": lambda: hs.map_heads(_metric()),
    "removal": lambda: analysis(2, 3).removal,
    "analysis": lambda: analysis(2, 3),
}


def _metric() -> hs.PairTable:
    matrix = np.full((4, 4), 0.3) + 0.7 * np.eye(4)
    matrix[0, 1] = matrix[1, 0] = 0.9
    return hs.PairTable("cka_biased", "z", heads(FEW), matrix, matrix, matrix)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


def cells(ax: Axes) -> np.ndarray:
    mesh = next(c for c in ax.collections if isinstance(c, QuadMesh))
    return np.ma.filled(np.ma.asarray(mesh.get_array()).astype(float), NAN)


def words(artists: list[Text]) -> list[str]:
    return [text.get_text() for text in artists]


def test_a_score_is_a_map_of_layers_by_heads_and_lies_down_where_layers_are_many() -> None:
    table = scores(MINILM)
    np.testing.assert_array_equal(cells(hs.plot(table)), table.score.reshape(6, 12))
    tall = scores([2] * 9)
    np.testing.assert_array_equal(cells(hs.plot(tall)), tall.score.reshape(9, 2).T)


def test_similarities_are_blocks_of_layers_or_the_whole_matrix() -> None:
    within, across = pairs(UNEVEN), pairs(UNEVEN, "model")
    blocks = hs.plot(within).child_axes
    for layer, block in enumerate(blocks):
        own = [place for place, head in enumerate(within.heads) if head.layer == layer]
        want = np.where(np.eye(len(own)), NAN, within.matrix[np.ix_(own, own)])
        np.testing.assert_array_equal(np.ma.filled(block.images[0].get_array(), NAN), want)
    assert len(blocks) == 4
    drawn = np.ma.filled(hs.plot(across).images[0].get_array(), NAN)
    np.testing.assert_array_equal(drawn, np.where(np.eye(16), NAN, across.matrix))


def test_two_models_are_drawn_where_both_have_heads() -> None:
    ax = hs.plot(pairs([3, 2, 2], other=[2, 0, 3]))
    assert [block.images[0].get_array().shape for block in ax.child_axes] == [(3, 2), (2, 3)]
    assert "rows: the first model" in "".join(words([bar.xaxis.label for bar in ax.figure.axes]))
    nothing = hs.plot(pairs([2], other=[0, 2]))
    assert nothing.images[0].get_array().mask.all()
    low = hs.plot(pairs(FEW, low=-4.0))
    assert any("below −1" in text for text in words([bar.xaxis.label for bar in low.figure.axes]))


def test_redundancy_is_its_curve_or_the_effective_numbers_where_there_is_none() -> None:
    ax = hs.plot(redundancy(UNEVEN))
    assert sorted(len(line.get_xdata()) for line in ax.lines) == [2, 4, 5, 9]
    dots = hs.plot(redundancy([4, 12], curve=False))
    np.testing.assert_allclose([line.get_ydata() for line in dots.lines], [[2.8, 8.4], [4, 12]])
    assert words(dots.get_legend().get_texts()) == ["effective", "in all"]


def test_two_models_are_drawn_by_the_change_of_each_head() -> None:
    ax = hs.plot(contrast())
    np.testing.assert_array_equal(cells(ax), [[-0.5, -0.5], [-0.5, NAN]])
    assert [patch.get_xy() for patch in ax.patches if isinstance(patch, Rectangle)] == [(1, 0)]
    assert "–" in words(ax.texts)
    norm = contrast().changes["norm"]
    assert (norm["L1H0"], norm.low[0], norm.unit, contrast().changes["ablation"].unit) == (2.0, 1.0, "", "nats")
    np.testing.assert_array_equal(cells(hs.plot(norm)), [[2, 2], [2, NAN]])


def test_an_analysis_is_its_main_figure_and_a_removal_the_same_without_random_sets() -> None:
    run = analysis(3, 4)
    whole, removal = hs.plot(run), hs.plot(run.removal)
    told = words(whole.get_legend().get_texts())
    n = len(run.removal.chosen)
    assert told[-2:] == [f"the {n} chosen heads", "19 random sets of as many heads"]
    assert words(removal.get_legend().get_texts()) == told[:-1]
    assert whole.get_ylabel() == removal.get_ylabel() == "rise in drift"
    for ax in (whole, removal):
        assert "allowed: 0.0300" in words(ax.texts)


def test_chosen_heads_are_framed_on_the_map_of_a_score() -> None:
    def framed(ax: Axes) -> tuple[list[tuple[float, float]], str]:
        (bar,) = (other for other in ax.figure.axes if other is not ax)
        return [patch.get_xy() for patch in ax.patches if isinstance(patch, Rectangle)], bar.get_xlabel()

    places, label = framed(hs.plot(scores(MINILM), chosen=["L0H3", (2, 1)]))
    assert places == [(3, 0), (1, 2)]
    assert label.endswith("Framed: the 2 heads chosen for removal")
    assert framed(hs.plot(scores(MINILM), chosen=hs.Plan(["L0H3"])))[0] == [(3, 0)]
    most, label = framed(hs.plot(scores(FEW), chosen={0: [0, 1, 3]}))
    assert most == [(2, 0)]
    assert "the head that stays" in label
    unmarked, label = framed(hs.plot(scores(FEW)))
    assert not unmarked
    assert "Framed" not in label
    with pytest.raises(UnknownNameError, match="L9H9 is not in this table"):
        hs.plot(scores(FEW), chosen=["L9H9"])
    with pytest.raises(InputError, match="framed on the map of a score"):
        hs.plot(pairs(FEW), chosen=["L0H0"])


@pytest.mark.parametrize("name", SMALL)
def test_only_the_axes_that_are_given_change(name: str) -> None:
    figure = Figure(figsize=(9, 6), layout="constrained")
    ((before, ax), (_, _)) = figure.subplots(2, 2)
    before.plot([1, 2], [3, 4], label="mine")
    old = before.get_children()
    assert hs.plot(SMALL[name](), ax=ax) is ax
    assert before.get_children() == old
    assert before.get_xlim() == (0.95, 2.05)
    assert not plt.get_fignums()
    ax.set_title("mine")
    figure.draw_without_rendering()
    if name not in ("clusters", "map"):  # which ask for more room than a small cell of a grid has
        drawn = ax.get_tightbbox()
        assert drawn is not None
        assert not drawn.overlaps(before.get_window_extent())


@pytest.mark.parametrize("name", SMALL)
def test_each_kind_is_shown_by_pyplot_or_saved_and_not_shown(name: str, tmp_path: Path) -> None:
    table = SMALL[name]()
    ax = hs.plot(table, path=tmp_path / "figure.png")
    assert plt.get_fignums() == []
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    ax.figure.draw_without_rendering()
    assert hs.plot(table).figure is plt.figure(plt.get_fignums()[0])


@pytest.mark.parametrize(("ending", "first"), [("PNG", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_ending_says_what_is_written_and_the_same_twice_is_the_same_file(
    ending: str, first: bytes, tmp_path: Path
) -> None:
    path = tmp_path / f"figure.{ending}"
    path.write_text("what stood there")
    hs.plot(scores(FEW), path=str(path))
    once = path.read_bytes()
    assert once.startswith(first)
    hs.plot(scores(FEW), path=path)
    assert path.read_bytes() == once


def test_a_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_self: Figure, path: Path, **_: Any) -> None:
        path.write_bytes(b"\x89PNG, and then the disk was")
        raise OSError(28, "No space left on device")

    path = tmp_path / "figure.png"
    path.write_text("before")
    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(StorageError, match="No space left"):
        hs.plot(scores(FEW), path=path)
    assert path.read_text() == "before"
    assert len([*tmp_path.iterdir()]) == 1


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [("f.gif", InputError, "png, .svg"), ("none/f.png", StorageError, "make it first"), ("", StorageError, "a folder")],
)
def test_a_path_that_cannot_be_is_refused_before_anything_is_drawn(
    name: str, error: type[Exception], said: str, tmp_path: Path
) -> None:
    figure = Figure()
    ax = figure.add_subplot()
    with pytest.raises(error, match=said):
        hs.plot(scores(FEW), ax, tmp_path / name)
    assert not ax.collections
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("what", [3, pd.DataFrame(), None, object()])
def test_what_cannot_be_drawn_is_refused_with_what_can(what: Any) -> None:
    with pytest.raises(InputError, match="similarity, importance, roles, redundancy, compare"):
        hs.plot(what)
    assert not plt.get_fignums()


def test_nothing_to_draw_and_no_axes_are_refused() -> None:
    none = np.empty((0, 0))
    empty = (hs.HeadTable("norm", "", (), none[0:0, 0:0].ravel(), none.ravel(), none.ravel()), scores([]), pairs([]))
    for table in empty:
        with pytest.raises(InputError, match="holds no head"):
            hs.plot(table)
    with pytest.raises(InputError, match="no score in common"):
        hs.plot(hs.Contrast(("a", "b"), contrast().frame.iloc[:0]))
    with pytest.raises(InputError, match=r"ax takes axes.*got Figure"):
        hs.plot(scores(FEW), ax=Figure())  # type: ignore[arg-type]


def test_a_figure_that_failed_is_not_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("headscope.reporting.figures.maps.colour_bar", fail)
    with pytest.raises(ZeroDivisionError):
        hs.plot(scores(FEW))
    assert plt.get_fignums() == []


@pytest.mark.parametrize("score", [NAN, 0.0, np.inf])
def test_a_table_of_nothing_but_one_number_is_drawn(score: float) -> None:
    value = np.array([score])
    ax = hs.plot(hs.HeadTable("norm", "", heads(ONE), value, value, value))
    ax.figure.canvas.draw()
    assert words(ax.texts)


@pytest.mark.parametrize("counts", [ONE, FEW, UNEVEN, MINILM, MANY], ids=["one", "few", "uneven", "MiniLM", "many"])
@pytest.mark.parametrize("make", [scores, pairs, roles, lambda counts: pairs(counts, "model")])
def test_cells_have_a_bounded_size_and_labels_do_not_overlap(
    make: Callable[[list[int]], Any], counts: list[int]
) -> None:
    ax = hs.plot(make(counts))
    figure = figures.figure_of(ax)
    figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    assert width <= 10
    assert height <= 14
    for part in ax.child_axes or [ax]:
        box, across, down = part.get_window_extent(), np.ptp(part.get_xlim()), np.ptp(part.get_ylim())
        assert box.width / figure.dpi / across <= 1.05  # inches
        assert box.height / figure.dpi / down <= 1.05
        for axis in (part.xaxis, part.yaxis):
            spots = [label.get_window_extent() for label in axis.get_ticklabels() if label.get_text()]
            assert not [1 for a, b in pairwise(spots) if a.overlaps(b)]
    whole = figure.get_tightbbox()
    assert whole.x0 >= -0.05
    assert whole.x1 <= width + 0.05, "nothing is cut off"


def test_room_counts_the_widths_that_a_grid_gives_its_cells() -> None:
    from headscope.reporting.figures.style import room

    narrow, wide = Figure(figsize=(8, 4)).subplots(1, 2, width_ratios=[1, 3])
    assert (room(narrow), room(wide)) == ((2.0, 4.0), (6.0, 4.0))
