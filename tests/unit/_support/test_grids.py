"""Heat maps in HTML: every number where it belongs, legible on its colour, nothing from outside."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope._support.grids import MOST, heat_grid

Cell = dict[str, str]


class _Reader(HTMLParser):
    """Rows of cells, each with its text, title and style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[Cell]] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append({"text": "", **{name: value or "" for name, value in attributes}})

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1] and self.lasttag in ("td", "th"):
            self.rows[-1][-1]["text"] += data


def one(value: float, **settings: float) -> Cell:
    return _Reader(heat_grid({(0, 0): (value, "L0H0")}, {0: "L0"}, {0: "H0"}, **settings)).rows[1][1]


def colours(cell: Cell) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the cell and of its letters."""
    found = re.search(r"background:#(\w{6});color:#(\w{6})", cell["style"])
    assert found is not None
    return tuple(tuple(int(code[i : i + 2], 16) for i in (0, 2, 4)) for code in found.groups())  # type: ignore[return-value]


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """As the Web Content Accessibility Guidelines define it."""

    def light(colour: tuple[int, ...]) -> float:
        red, green, blue = (c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    darker, lighter = sorted((light(one), light(other)))
    return (lighter + 0.05) / (darker + 0.05)


@settings(deadline=None, max_examples=200)
@given(st.floats(-3, 3))
def test_letters_stand_out_and_the_sign_has_its_colour(value: float) -> None:
    ground, ink = colours(one(value, most=2.0))
    assert contrast(ground, ink) >= 4.5
    red, _, blue = ground
    assert (red > blue) == (value < 0 and red != blue)
    assert (blue > red) == (value > 0 and red != blue)
    if abs(value) >= 2:
        assert ground == colours(one(np.sign(value) * 2, most=2.0))[0], "what lies beyond has the deepest colour"


def test_colours_deepen_with_the_size_of_a_number_whatever_its_sign() -> None:
    for sign in (-1, 1):
        lights = [sum(colours(one(sign * size, most=1.0))[0]) for size in (0.0, 0.2, 0.5, 0.8, 1.0)]
        assert lights == sorted(lights, reverse=True)
        assert len({*lights}) == 5


def test_numbers_that_span_decades_are_told_apart_near_zero() -> None:
    values = [0.001, 0.002, 0.004, 0.9]
    page = heat_grid({(0, i): (value, "") for i, value in enumerate(values)}, {0: "a"}, dict.fromkeys(range(4), "b"))
    cells = _Reader(page).rows[1][1:]
    assert len({colours(cell)[0] for cell in cells}) == 4
    assert [cell["text"] for cell in cells] == ["1.0", "2.0", "4.0", "900"]
    assert "numbers in the cells: 10⁻³" in page


def test_what_has_no_number_is_a_dash_without_colour_and_what_is_not_there_is_empty() -> None:
    nothing = one(np.nan)
    assert (nothing["text"], nothing["title"]) == ("–", "L0H0")
    assert "background" not in nothing["style"]
    rows = _Reader(heat_grid({("a", "x"): (1.0, "")}, {"a": "A", "b": "B"}, {"x": "X", "y": "Y"})).rows
    assert [[cell["text"] for cell in row] for row in rows] == [["", "X", "Y"], ["A", "1.0", ""], ["B", "", ""]]
    assert "background" not in rows[2][1]["style"]
    assert one(np.inf)["text"] == "+inf"


def test_words_stay_words_and_nothing_is_fetched_or_run() -> None:
    page = heat_grid({(0, 0): (1.0, 'a"<b>')}, {0: "<i>"}, {0: "&"}, notes=["<script>"])
    reader = _Reader(page)
    assert reader.tags == {"table", "tr", "th", "td", "p", "small"}
    assert reader.rows[1][1]["title"] == 'a"<b>'
    assert not re.search(r"src|href|url|class=|id=", page)


@pytest.mark.parametrize(
    ("rows", "columns", "said"), [(MOST + 3, 2, "rows"), (2, MOST + 3, "columns"), (MOST, MOST, "")]
)
def test_a_large_grid_is_cut_and_says_so(rows: int, columns: int, said: str) -> None:
    cells = {(i, j): (1.0, "") for i in range(rows) for j in range(columns)}
    page = heat_grid(cells, {i: str(i) for i in range(rows)}, {j: str(j) for j in range(columns)})
    drawn = _Reader(page).rows
    assert (len(drawn) - 1, len(drawn[0]) - 1) == (min(rows, MOST), min(columns, MOST))
    assert (f"{said}: the first {MOST} of {MOST + 3}" in page) == bool(said)
    assert said or "the first" not in page
