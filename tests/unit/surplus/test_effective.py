"""The effective number of heads against the textbook, planted copies and constant heads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.surplus.effective import effective_heads, effective_spread, vendi
from tests.reference import jackknife as jackknife_reference
from tests.reference import redundancy as reference
from tests.rows import in_blocks, measured, uneven_sample


def rotation(rng, dim):
    return np.linalg.qr(rng.standard_normal((dim, dim)))[0]


@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 4), st.sampled_from([0.0, 1.0, 1e4]))
@settings(deadline=None, max_examples=25)
def test_effective_heads_equal_the_textbook(seed, n_heads, dim, offset):
    rows = uneven_sample(seed, n_heads=n_heads, dim=dim, offset=offset)
    got = effective_heads(measured(rows, rows[0]))
    np.testing.assert_allclose(got, reference.vendi(rows), rtol=1e-9)
    assert 1 <= got <= n_heads


def test_copies_are_one_head_and_uncorrelated_heads_are_all():
    rng = np.random.default_rng(0)
    base = rng.standard_normal((200, 3))
    copies = np.stack([(k + 1) * base @ rotation(rng, 3) + k for k in range(5)], axis=1)
    assert effective_heads(measured(copies)) == pytest.approx(1, abs=1e-6)
    columns = np.linalg.qr(rng.standard_normal((200, 12)))[0]
    columns = np.linalg.qr(np.hstack([np.ones((200, 1)), columns]))[0][:, 1:]  # each sums to 0, all at right angles
    assert effective_heads(measured(columns.reshape(200, 4, 3) * 10)) == pytest.approx(4, rel=1e-12)


def test_two_pairs_of_twins_are_two_heads():
    rng = np.random.default_rng(1)
    columns = np.linalg.qr(np.hstack([np.ones((50, 1)), rng.standard_normal((50, 4))]))[0][:, 1:].reshape(50, 2, 2)
    rows = np.stack([columns[:, 0], columns[:, 1], 2 * columns[:, 0, ::-1], columns[:, 1] + 3], axis=1)
    assert effective_heads(measured(rows)) == pytest.approx(2, rel=1e-7)


def test_a_constant_head_counts_for_nothing():
    rows = uneven_sample()
    with_constant = np.concatenate([rows[:, :2], np.full_like(rows[:, :1], 0.3), rows[:, 2:]], axis=1)
    assert effective_heads(measured(with_constant)) == pytest.approx(effective_heads(measured(rows)), rel=1e-12)
    assert np.isnan(effective_heads(measured(np.full((20, 3, 2), 0.3))))


def test_vendi_does_not_fall_over_eigenvalues_just_below_zero():
    similarity = np.array([[1.0, 1.0 + 1e-12], [1.0 + 1e-12, 1.0]])
    assert np.linalg.eigvalsh(similarity)[0] < 0
    assert vendi(similarity) == pytest.approx(1, abs=1e-9)
    half = np.array([[1.0, 0.5], [0.5, 1.0]])  # eigenvalues 3/4 and 1/4
    assert vendi(half) == pytest.approx(np.exp(0.75 * np.log(4 / 3) + 0.25 * np.log(4)), rel=1e-12)


def test_the_interval_of_the_effective_number_is_a_jackknife_over_blocks():
    rows = uneven_sample(3)
    parts = np.array_split(rows, 5)
    low, high = effective_spread(in_blocks(rows, 5)).interval()
    np.testing.assert_allclose([low, high], jackknife_reference.interval(reference.vendi, parts), rtol=1e-7)
    assert np.isnan(effective_spread([measured(rows)]).interval()).all()
