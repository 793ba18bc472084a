"""Sign flips and false discoveries: against enumeration by hand, and by what a null must look like."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.uncertainty.significance import false_discovery, sign_flip


@given(st.integers(2, 6), st.integers(0, 2**16))
@settings(deadline=None, max_examples=30)
def test_every_choice_of_signs_is_tried(n_documents: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    document = rng.integers(0, n_documents, size=3 * n_documents)
    document[:n_documents] = np.arange(n_documents)
    values = rng.standard_normal((2, len(document)))
    want = []
    for row in values:
        sums = [row[document == own].sum() for own in range(n_documents)]
        flipped = [
            abs(sum(s * x for s, x in zip(signs, sums, strict=True))) for signs in product((1, -1), repeat=n_documents)
        ]
        want.append(np.mean([one >= abs(sum(sums)) * (1 - 1e-12) for one in flipped]))
    np.testing.assert_allclose(sign_flip(values, document), want)


def test_p_values_are_uniform_under_a_symmetric_null() -> None:
    rng = np.random.default_rng(0)
    document = np.repeat(np.arange(20), 3)
    values = rng.standard_normal((2000, 20))[:, document] + 0.5 * rng.standard_normal((2000, 60))
    p = sign_flip(values, document)
    for level in (0.05, 0.2, 0.5):
        assert np.mean(p <= level) == pytest.approx(level, abs=0.03)


def test_rows_of_one_document_do_not_count_as_independent() -> None:
    values = np.ones((1, 100))
    assert sign_flip(values, np.repeat([0, 1], 50)).item() == 0.5
    assert sign_flip(values, np.arange(100)).item() < 0.001


def test_draws_repeat_and_agree_with_enumeration() -> None:
    rng = np.random.default_rng(1)
    values = rng.standard_normal((3, 13)) + 0.4
    drawn = sign_flip(values, np.arange(13))
    np.testing.assert_array_equal(drawn, sign_flip(values, np.arange(13)))
    signs = np.array(list(product((1.0, -1.0), repeat=13)))
    exact = (np.abs(values @ signs.T) >= np.abs(values.sum(1, keepdims=True)) - 1e-12).mean(1)
    np.testing.assert_allclose(drawn, exact, atol=0.02)


@pytest.mark.parametrize("n_documents", [13, 40])
def test_where_signs_are_drawn_the_observed_ones_count_among_them(n_documents: int) -> None:
    """No drawn choice of signs comes as far as all signs alike; p is 1 of 10,000 then, and never 0."""
    values = np.stack([1 + np.arange(n_documents) / 100, np.zeros(n_documents)])
    low, high = sign_flip(values, np.arange(n_documents), seed=3)
    assert high == 1.0
    if n_documents == 40:  # one choice in 2³⁹ reaches it
        assert low == 1 / 10_000
    assert low >= 1 / 10_000
    assert false_discovery(np.array([low])).item() > 0


def test_what_cannot_be_tested_is_nan() -> None:
    assert np.isnan(sign_flip(np.ones((2, 4)), np.zeros(4, dtype=int))).all()
    assert np.isnan(sign_flip(np.array([[1.0, np.nan]]), np.array([0, 1]))).all()
    assert np.isnan(false_discovery(np.array([np.nan, np.nan]))).all()


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=12))
@settings(deadline=None, max_examples=40)
def test_q_values_by_the_definition(p: list[float]) -> None:
    values = np.array(p)
    want = [min(min(1.0, len(p) * v / (values <= v).sum()) for v in p if v >= own) for own in p]
    np.testing.assert_allclose(false_discovery(values), want)
