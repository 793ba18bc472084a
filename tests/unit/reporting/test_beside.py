"""What likeness stands beside is seen: chance, random tokens and an untrained copy, as columns, as lines, in words."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

import headscope as hs
from headscope.reporting import SECTIONS, Figure, Table, Text, figures, render
from headscope.reporting.figures.beside import LOOKS, SAID, beside, means_beside
from headscope.reporting.figures.legends import legend_above
from headscope.reporting.sections.beside import _beyond
from headscope.tables import NULLS
from tests.unit.reporting.synthetic import SyntheticAnalysis, analysis, stand_beside

BESIDE = {"chance": -0.05, "untrained": 0.9}
SAME = {"chance": -0.05, "untrained": 0.45}  # about what the made-up heads have themselves
BELOW = {"chance": -0.05, "untrained": -2.0}


def run(means: Mapping[str, float], n_layers: int = 3, n_heads: int = 6) -> SyntheticAnalysis:
    return stand_beside(analysis(n_layers, n_heads), means)


def styles(ax: Axes) -> dict[object, float]:
    """Upright lines by their style, and where they stand."""
    return {
        line._unscaled_dash_pattern[1]: float(line.get_xdata()[0])
        for line in ax.lines
        if len({*map(float, line.get_xdata())}) == 1
    }


def bar_of(ax: Axes) -> Axes:
    return next(other for other in figures.figure_of(ax).axes if other.get_label() == "<colorbar>")


def words_of(means: Mapping[str, float]) -> str:
    return next(block.text for block in SECTIONS["beside"]().blocks(run(means)) if isinstance(block, Text))


def test_every_pair_of_a_layer_counts_once_and_none_without_what_it_stands_beside() -> None:
    table = run(BESIDE, 2, 3).pairs["cka"]
    chance = table.nulls["chance"].copy()
    chance[:3, :3] = np.nan
    whole, part = beside(table), beside(replace(table, nulls={**table.nulls, "chance": chance}))
    assert list(whole["layer"]) == [0] * 6 + [1] * 6  # not symmetric: both orders are numbers of their own
    assert list(part["layer"]) == [1] * 6
    once = replace(table, symmetric=True)
    assert len(beside(once)) == 6
    upper = [
        once.matrix[a, b]
        for layer in (0, 3)
        for a, b in ((layer, layer + 1), (layer, layer + 2), (layer + 1, layer + 2))
    ]
    assert means_beside(once)["value"] == pytest.approx(np.mean(upper))
    assert means_beside(analysis(2, 3).pairs["cka"]) == {}


@pytest.mark.parametrize("name", ["head_map", "layer_blocks", "whole_matrix"])
def test_the_bar_of_colours_has_a_line_for_each_and_its_label_the_numbers(name: str) -> None:
    made = run({"chance": 0.05, "untrained": 0.9})
    table = made.scores["replaceability"] if name == "head_map" else made.pairs["cka"]
    means = means_beside(table)
    ax = getattr(figures, name)(table, label="likeness")
    bar = bar_of(ax)
    assert {line.get_label(): line.get_xdata()[0] for line in bar.lines if line.get_label() in LOOKS} == means
    label = bar.get_xlabel().replace("\n", " ")
    assert label.startswith("likeness")
    for null, mean in means.items():
        assert f"{SAID.get(null, '')} {mean:.2f} ({LOOKS[null][1]})" in label
    made = run({"chance": -9.0})
    far = made.scores["replaceability"] if name == "head_map" else made.pairs["cka"]
    assert "(off the bar)" in bar_of(getattr(figures, name)(far)).get_xlabel()
    plain = getattr(figures, name)(
        replace(table, **{"columns" if name == "head_map" else "nulls": {}}), label="likeness"
    )
    assert "mean" not in bar_of(plain).get_xlabel()
    assert not [line for line in bar_of(plain).lines if line.get_label() in LOOKS]


def test_the_picture_of_heads_has_an_upright_line_for_each() -> None:
    made = run(BESIDE)
    ax = figures.quadrant_plot(made.scores["ablation"], made.scores["replaceability"], made.verdict.lines)
    entries = [text.get_text() for text in ax.get_legend().get_texts()]
    assert entries[-2:] == ["mean by chance", "mean untrained"]
    means = means_beside(made.scores["replaceability"])
    assert sorted([*means.values()][1:]) == pytest.approx(
        sorted(styles(ax).values())[::2]
    )  # the line at one half between
    caption = next(
        b.caption for b in SECTIONS["verdict"]().blocks(made) if isinstance(b, Figure) and b.name == "verdict"
    )
    assert f"in an untrained copy {means['untrained']:.2f} (dashed)" in caption
    far = run({"chance": -3.0})
    told = next(b.caption for b in SECTIONS["verdict"]().blocks(far) if isinstance(b, Figure) and b.name == "verdict")
    assert "(left of the edge)" in told


def redundancy() -> hs.Redundancy:
    rows = [
        {"layer": layer, "k": k, "head": f"L{layer}H{k - 1}" if k else "constant", "share": k / 3, "low": k / 3,
         "high": k / 3, "chance": k / 6 + layer, "untrained": k / 4}
        for layer in range(2) for k in range(4)
    ]  # fmt: skip
    own = [
        {"layer": layer, "n_heads": 3, "effective": 2.0, "low": 1.9, "high": 2.1, "chance": 2.9, "untrained": 1.2}
        for layer in ("0", "1")
    ]
    return hs.Redundancy(pd.DataFrame(own), pd.DataFrame(rows))


def test_redundancy_is_drawn_beside_both() -> None:
    ax = figures.redundancy_curve(redundancy())
    told = dict(zip([text.get_text() for text in ax.get_legend().get_texts()], ax.lines[2:], strict=True))
    assert list(told) == ["by chance, mean layer", "in an untrained copy, mean layer"]
    np.testing.assert_allclose(told["by chance, mean layer"].get_ydata(), np.arange(4) / 6 + 0.5)
    np.testing.assert_allclose(told["in an untrained copy, mean layer"].get_ydata(), np.arange(4) / 4)
    assert "varies" in ax.get_ylabel()
    dots = figures.effective_dots(redundancy())
    marks = {line.get_label(): list(line.get_ydata()) for line in dots.lines}
    assert marks["by chance"] == [2.9, 2.9]
    assert marks["in an untrained copy"] == [1.2, 1.2]


def test_the_tables_of_the_page_have_them_as_columns(tmp_path: Path) -> None:
    made = run(BESIDE)
    folder = render(made, tmp_path / "out").parent
    layers, pairs = (pd.read_csv(folder / "tables" / f"{name}.csv") for name in ("layers", "similar_pairs"))
    own = made.scores["replaceability"].columns["untrained"].reshape(3, 6)
    np.testing.assert_allclose(layers["replaceability_untrained"], own.mean(1))
    assert {f"{name}_{null}" for name in ("replaceability", "cka") for null in BESIDE} < set(layers)
    for column, name, null in (("untrained", "cka", "untrained"), ("cosine_chance", "cosine", "chance")):
        places = {str(head): place for place, head in enumerate(made.pairs[name].heads)}
        numbers = made.pairs[name].nulls[null]
        numbers = (numbers + numbers.T) / 2 if name == "cka" else numbers  # as the values: the mean ranks a pair
        want = [numbers[places[row.head_a], places[row.head_b]] for row in pairs.itertuples()]
        np.testing.assert_allclose(pairs[column], want)
    shown = next(b for b in SECTIONS["similarity"]().blocks(made) if isinstance(b, Table))
    assert {NULLS[null].capitalize() for null in BESIDE} < {column.title for column in shown.columns}
    assert 'id="beside"' in (folder / "index.html").read_text("utf-8")


def test_a_model_below_its_untrained_copy_has_grown_apart_and_that_is_said_once(tmp_path: Path) -> None:
    below = words_of(BESIDE)
    assert "Of 18 heads, 18 lie below every one of the layer in the copy, 0 above every one." in below
    assert below.count("grown apart") == 1
    page = (render(run(BESIDE), tmp_path / "out")).read_text("utf-8")
    assert page.count("grown apart") == 1
    assert "cannot tell" not in below
    for means in (SAME, BELOW, {"chance": -0.05}):
        assert "apart" not in words_of(means)
    assert "one copy cannot tell" in words_of(BELOW)
    assert "copy" not in words_of({"chance": -0.05})


def test_to_lie_beyond_one_or_two_is_nothing_rare() -> None:
    few = next(b.text for b in SECTIONS["beside"]().blocks(run(BESIDE, 3, 2)) if isinstance(b, Text))
    assert "in an untrained copy 0.9" in few
    assert "every one" not in few
    assert "apart" not in few


def test_a_run_that_stands_beside_nothing_has_no_such_section() -> None:
    assert not list(SECTIONS["beside"]().blocks(analysis(2, 3)))


@pytest.mark.parametrize(("width", "columns"), [(6.0, 3), (3.0, 1)])
def test_a_legend_above_has_as_many_columns_as_find_room(width: float, columns: int) -> None:
    ax = figures.canvas(width, 3.0)
    for words in ("trained", "chance", "in an untrained copy"):
        ax.plot([0, 1], [0, 1], label=words)
    legend_above(ax, 3)
    figures.figure_of(ax).draw_without_rendering()
    places = {round(text.get_window_extent().x0) for text in ax.get_legend().get_texts()}
    assert len(places) == columns


def test_heads_are_held_against_every_one_of_their_layer_in_the_copy() -> None:
    """Layer 0 has copies from 0.2 to 0.8: a head below their mean is below not every one of them."""
    frame = pd.DataFrame(
        {
            "layer": [0, 0, 0, 1, 1],
            "low": [0.0, 0.3, 0.85, 0.0, 0.0],
            "high": [0.1, 0.4, 0.95, 0.1, 0.1],
            "untrained": [0.2, 0.5, 0.8, 0.5, 0.5],  # layer 1 has two, and is left out
        }
    )
    assert _beyond(frame) == (1, 1, 3)
