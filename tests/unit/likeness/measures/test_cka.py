import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.likeness.measures.cka import cka, unbiased_hsic
from headscope.statistics.moments import Moments, pair_norms
from headscope.statistics.summed_moments import SummedMoments
from tests.reference import similarity as reference
from tests.rows import measured
from tests.strategies import feed, make_stream, streams


def textbook(rows, measure=reference.unbiased_cka):
    return reference.all_pairs(measure, list(rows.transpose(1, 0, 2)))


@given(streams())
@settings(deadline=None, max_examples=40)
def test_streamed_value_equals_the_textbook(stream):
    got = cka(Moments.total(feed(SummedMoments(), stream).compute()[0,]))
    np.testing.assert_allclose(got, textbook(stream.rows()), rtol=1e-9, atol=1e-9)


@given(streams(n_layers=3))
@settings(deadline=None, max_examples=10)
def test_across_layers_it_equals_the_textbook(stream):
    rows = np.concatenate([stream.rows(layer) for layer in range(3)], axis=1)
    got = cka(Moments.total(feed(SummedMoments(scope="model"), stream, backwards=True).compute()[0, 1, 2]))
    np.testing.assert_allclose(got, textbook(rows), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n_tokens", [4, 5, 6, 40])
@pytest.mark.parametrize("dim", [1, 3, 16])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_hsic_equals_both_textbook_forms(n_tokens, dim, offset):
    rows = np.random.default_rng(n_tokens * dim).standard_normal((n_tokens, 2, dim)) + offset
    moments = measured(rows, rows[0])
    got = unbiased_hsic(moments, pair_norms(moments))
    np.testing.assert_allclose(got, textbook(rows, reference.unbiased_hsic), rtol=1e-9, atol=1e-12)
    if n_tokens < 10:
        np.testing.assert_allclose(got, textbook(rows, reference.hsic_by_quadruples), rtol=1e-9, atol=1e-12)


def test_offset_of_ten_thousand_costs_no_digits():
    rows = make_stream(3, n_heads=4, dim=8, lengths=((40, 25), (31, 60), (9, 12))).rows()
    away = rows + 1e4  # rounds each number to twelve digits; the textbook value is of the rounded ones
    np.testing.assert_allclose(cka(measured(away)), textbook(away), rtol=1e-9)
    np.testing.assert_allclose(cka(measured(away)), cka(measured(rows)), rtol=1e-9)


def test_heads_of_different_dimensions():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((9, 2)), rng.standard_normal((9, 5))
    b[:, :2] += a
    u = np.hstack([a, b, (a**2).sum(1, keepdims=True), (b**2).sum(1, keepdims=True), np.ones((9, 1))])
    moments = Moments.of_square((2, 5), torch.zeros(7, dtype=torch.float64), torch.from_numpy(u.T @ u))
    np.testing.assert_allclose(cka(moments), reference.all_pairs(reference.unbiased_cka, [a, b]), rtol=1e-9)


def test_unbiased_for_independent_heads_where_the_biased_one_is_not():
    rng = np.random.default_rng(0)
    values = [cka(measured(rng.standard_normal((30, 2, 20))))[0, 1] for _ in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)
    assert min(values) < 0 < max(values)  # not clipped


def test_turned_scaled_and_moved_copy_is_the_same_head():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, 4, 6))
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    rows[:, 3] = 5 * rows[:, 1] @ turn + 100
    got = cka(measured(rows))
    assert got[1, 3] == pytest.approx(1, rel=1e-9)
    assert np.abs(got[1, [0, 2]]).max() < 0.5


@pytest.mark.parametrize("value", [0.0, 1 / 3, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_head_is_nan_in_row_and_column_and_nowhere_else(value, dtype):
    rows = np.random.default_rng(0).standard_normal((20, 3, 4)).astype(dtype)
    rows[:, 1] = value
    got = cka(measured(rows.astype(np.float64), rows[0].astype(np.float64) + 0.1))
    assert np.isnan(got[1]).all()
    assert np.isnan(got[:, 1]).all()
    assert np.isfinite(got[np.ix_([0, 2], [0, 2])]).all()


def test_head_with_no_hsic_of_its_own_is_nan_although_it_is_not_constant():
    rows = np.random.default_rng(0).standard_normal((6, 2, 8))
    rows[:, 0] = 0
    rows[np.arange(6), 0, np.arange(6)] = 3  # every position equally far from every other: the Gram matrix says nothing
    got = cka(measured(rows))
    assert np.isnan(got[0]).all()
    assert np.isnan(got[:, 0]).all()
    assert got[1, 1] == pytest.approx(1)


@pytest.mark.parametrize("n_tokens", [1, 2, 3])
def test_fewer_than_four_positions_are_nan(n_tokens):
    assert np.isnan(cka(measured(np.random.default_rng(0).standard_normal((n_tokens, 2, 3))))).all()


def test_no_position_at_all_is_nan():
    assert np.isnan(cka(Moments.empty((2, 2), torch.zeros(4, dtype=torch.float64)))).all()


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=10)
def test_value_does_not_depend_on_the_pivot(seed):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((12, 3, 4))
    away = measured(rows, rows.mean(0) + 3 * rng.standard_normal((3, 4)))
    np.testing.assert_allclose(cka(away), cka(measured(rows)), rtol=1e-9, atol=1e-9)
