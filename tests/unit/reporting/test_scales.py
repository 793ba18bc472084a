"""Scales: linear near zero, logarithmic far from it, honest about both signs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope._support.grids import bend
from headscope.reporting.figures import canvas
from headscope.reporting.figures.scales import colours, set_scale, short, ticks

VALUES = st.lists(
    st.floats(min_value=-1e3, max_value=1e3).map(lambda x: 0.0 if abs(x) < 1e-9 else x), min_size=1, max_size=40
)


def test_only_numbers_that_span_decades_bend_the_scale() -> None:
    assert bend(np.array([1.0, 2.0, 3.0])) is None
    assert bend(np.array([0.002, 0.001, 0.003, 0.5, np.nan, 0.0])) == pytest.approx(0.0025)
    assert bend(np.array([np.nan, 0.0])) is None


@settings(deadline=None, max_examples=100)
@given(VALUES, st.integers(3, 10))
def test_ticks_lie_inside_in_order_and_not_too_many(values: list[float], most: int) -> None:
    array = np.array(values)
    low, high = min(array.min(), 0.0), max(array.max(), 0.0)
    if low == high:
        return
    knee = bend(array)
    found = ticks(low, high, knee, most)
    assert found == sorted(set(found))
    assert all(low <= tick <= high for tick in found)
    assert len(found) <= 2 * most + 1
    assert knee is None or 0.0 in found


@settings(deadline=None, max_examples=50)
@given(VALUES)
def test_an_axis_shows_every_value_and_zero(values: list[float]) -> None:
    ax = canvas(3, 3)
    set_scale(ax, "y", np.array(values))
    low, high = ax.get_ylim()
    assert low <= min(0.0, *values)
    assert high >= max(0.0, *values)
    assert low < high


@settings(deadline=None, max_examples=50)
@given(VALUES)
def test_colours_of_both_signs_are_even_about_zero(values: list[float]) -> None:
    norm = colours(np.array(values))
    if min(values) < 0:
        assert norm(0.0) == pytest.approx(0.5)
        assert norm.vmin == -norm.vmax
    else:
        assert norm(0.0) == pytest.approx(0.0)
    assert norm.vmax >= max(map(abs, values)) > 0 or max(map(abs, values)) == 0


def test_the_outlier_does_not_take_all_the_colours() -> None:
    norm = colours(np.array([0.001, 0.002, 0.004, 0.5]))
    assert norm(0.004) - norm(0.001) > 0.1


def test_labels_of_ticks_hold_no_idle_digits() -> None:
    assert [short(x) for x in (0.5, -0.25, 100.0, 1e-6, 2e-6, 1234.0)] == [
        "0.5",
        "−0.25",
        "100",
        "10⁻⁶",
        "2×10⁻⁶",
        "1,234",
    ]
