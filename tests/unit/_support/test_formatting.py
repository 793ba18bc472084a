"""Numbers as text: they read back as what they were, to the digits that they show."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope._support.formatting import brief, count, duration, fixed, interval, number, quantity, thousands

NUMBERS = st.floats(min_value=-1e12, max_value=1e12, allow_nan=False).filter(lambda x: x == 0 or abs(x) > 1e-12)
PLAIN = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-", ",")


def read(text: str) -> float:
    """What a person reads off it."""
    mantissa, _, power = text.translate(PLAIN).partition("×10")
    return float(mantissa) * 10.0 ** float(power or 0)


@settings(deadline=None, max_examples=200)
@given(NUMBERS)
def test_a_number_reads_back_to_three_digits(value: float) -> None:
    assert read(number(value)) == pytest.approx(value, rel=5.001e-3)
    assert "-" not in number(value), "a hyphen is not a minus sign"


@settings(deadline=None, max_examples=100)
@given(NUMBERS)
def test_brief_and_fixed_are_no_further_off_than_their_last_digit(value: float) -> None:
    assert read(brief(value)) == pytest.approx(value, rel=0.0501, abs=0.00501)
    assert read(fixed(value)) == pytest.approx(value, abs=0.000501 + 1e-9 * abs(value))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.09996, "0.100"), (999.6, "1,000"), (0.000099996, "1.00×10⁻⁴"), (-1e-5, "−1.00×10⁻⁵"), (2.5e6, "2.50×10⁶"),
     (math.inf, "∞"), (-math.inf, "−∞"), (math.nan, "–"), (-0.0, "0")],
)  # fmt: skip
def test_a_number_at_the_edges(value: float, text: str) -> None:
    assert number(value) == text


def test_what_is_not_defined_is_a_dash_without_a_unit() -> None:
    assert quantity(math.nan, "nats/token") == brief(math.nan) == fixed(math.nan) == "–"
    assert interval(math.nan, 1.0) == interval(1.0, math.nan) == ""


def test_a_rounded_away_minus_is_left_out() -> None:
    assert (brief(-0.001), fixed(-0.0001)) == ("0.00", "0.000")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(min_value=1e-9, max_value=1e9), min_size=1, max_size=9))
def test_thousands_bring_the_middle_to_one_to_three_digits(values: list[float]) -> None:
    power = thousands(values)
    assert power % 3 == 0
    assert sorted(values)[len(values) // 2] / 10.0**power * (1 + 1e-9) >= 1
    assert sorted(values)[len(values) // 2] / 10.0**power < 1000 * (1 + 1e-9)


def test_counts_and_spans_of_time() -> None:
    assert count(1, "square matrix", "square matrices") == "1 square matrix"
    assert [duration(s) for s in (0.9996, 59.94, 59.96, 3600, 119.7)] == [
        "1.0 s", "59.9 s", "1 min 0 s", "1 h 0 min", "2 min 0 s"
    ]  # fmt: skip
