"""The curve of redundancy against a refit at every step, and planted copies."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.statistics.moments import Moments
from headscope.statistics.prediction import RIDGE
from headscope.statistics.swapped_moments import Swapped
from headscope.surplus.curve import curve_by_chance, curve_spreads, fit_best, residuals
from tests.reference import jackknife as jackknife_reference
from tests.reference import redundancy as reference
from tests.rows import in_blocks, measured, uneven_sample
from tests.strategies import weights_for


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 4), st.sampled_from([1e-5, RIDGE, 1.0]))
@settings(deadline=None, max_examples=25)
def test_order_and_shares_equal_a_refit_at_every_step(seed, n_heads, dim, ridge):
    rows = uneven_sample(seed, n_heads=n_heads, dim=dim)
    weights = weights_for(seed, n_heads, dim)
    fit, judge = rows[:160], rows[160:]
    order, want = reference.curve(fit, judge, [weight.numpy() for weight in weights], ridge)
    best = fit_best(measured(fit, fit[0]), weights, ridge)
    assert list(best.order) == order
    np.testing.assert_allclose(residuals(best, measured(judge, judge[0])), want, rtol=1e-9, atol=1e-9 * want[0])


def test_a_head_that_another_gives_is_not_needed():
    """Head 3 is a linear map of head 1: three of four heads give everything back, and without the plant they do not."""
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((600, 4, 3))
    weights = weights_for(2, 4, 3, width=12)
    before = curve_spreads(in_blocks(rows), weights, ridge=1e-9)[0].centre
    rows[:, 3] = rows[:, 1] @ rng.standard_normal((3, 3)) + 2
    planted = curve_spreads(in_blocks(rows), weights, ridge=1e-9)[0].centre
    assert before[3] < 0.95
    assert planted[3] == pytest.approx(1, abs=1e-6)
    assert planted[2] < 0.95
    chosen = set(fit_best(measured(rows), weights, ridge=1e-9).order[:3])
    assert chosen in ({0, 1, 2}, {0, 2, 3})


def test_the_curve_chooses_on_one_half_and_judges_on_the_other():
    rows, weights = uneven_sample(4), weights_for(1, 4, 3)
    plain = [weight.numpy() for weight in weights]
    groups = np.array_split(np.arange(len(rows)), 6)
    second_half = np.concatenate([np.full(len(group), number % 2) for number, group in enumerate(groups)])

    def both(left):
        halves = [rows[left[second_half[left] == half]] for half in (0, 1)]
        whole, *missed = sum(reference.curve(*way, plain, RIDGE)[1] for way in (halves, halves[::-1]))
        return [1 - np.array(missed) / missed[0], 1 - np.array(missed) / whole]

    for place, spread in enumerate(curve_spreads(in_blocks(rows), weights)):
        np.testing.assert_allclose(spread.centre, both(np.arange(len(rows)))[place], rtol=1e-9, atol=1e-9)
        want = [jackknife_reference.interval(lambda left, k=k, p=place: both(left)[p][k], groups) for k in range(5)]
        np.testing.assert_allclose(np.transpose(spread.interval()), want, rtol=1e-7, atol=1e-9)


def test_an_offset_changes_no_share_and_the_constant_gives_it_back():
    rows, weights = uneven_sample(), weights_for(0, 4, 3)
    plain, moved = (curve_spreads(in_blocks(own), weights) for own in (rows, rows + 50))
    np.testing.assert_allclose(moved[0].centre, plain[0].centre, rtol=1e-6)
    assert moved[1].centre.min() > 0.99


def test_chance_is_the_fit_where_the_others_are_of_another_document():
    rng, weights = np.random.default_rng(3), weights_for(0, 4, 3)
    pairs = [
        [uneven_sample(seed, n_tokens=80) + rng.standard_normal((1, 4, 3)) for seed in two] for two in ((1, 2), (3, 4))
    ]
    halves = [Swapped.of_rows(*map(torch.from_numpy, pair), torch.zeros(12).double()) for pair in pairs]
    got = curve_by_chance(halves, [2, 0, 3, 1], weights)
    ways = [(np.concatenate(pair), np.concatenate(pair[::-1])) for pair in pairs]
    plain = [weight.numpy() for weight in weights]
    for k in range(1, 5):
        kept = [2, 0, 3, 1][:k]
        both = (reference.missed(*way, plain, kept, RIDGE) for way in (ways, ways[::-1]))
        varying, missed = sum(both)
        np.testing.assert_allclose(got[k], 1 - missed / varying, rtol=1e-9)
    assert got[0] == 0
    assert np.isnan(curve_by_chance([], [0, 1, 2, 3], weights)).all()


def test_a_layer_that_does_not_vary_has_no_chance() -> None:
    still = (torch.full((50, 4, 3), 3.0) * (1 + 1e-9 * torch.randn(50, 4, 3, generator=torch.manual_seed(0)))).double()
    halves = [Swapped.of_rows(still[way::2], still[way::2].flip(0), torch.zeros(12).double()) for way in (0, 1)]
    assert np.isnan(curve_by_chance(halves, [0, 1, 2, 3], weights_for(0, 4, 3))).all()


def test_empty_blocks_and_too_few_of_them():
    rows, weights = uneven_sample(), weights_for(0, 4, 3)
    empty = Moments.empty((3,) * 4, torch.zeros(12, dtype=torch.float64))
    blocks = in_blocks(rows, 5)
    with_empty = curve_spreads([blocks[0], empty, *blocks[1:]], weights)
    np.testing.assert_array_equal(with_empty[0].centre, curve_spreads(blocks, weights)[0].centre)
    assert np.isnan([spread.centre for spread in curve_spreads([empty, blocks[0]], weights)]).all()
    for three in curve_spreads(in_blocks(rows, 3), weights):
        assert np.isfinite(three.centre).all()
        assert np.isnan(three.interval()).all()


def test_a_layer_that_writes_nothing_is_given_back_by_the_constant():
    for rows in (np.zeros((40, 3, 2)), np.full((40, 3, 2), 1 / 3)):
        share, restored = curve_spreads(in_blocks(rows, 4), weights_for(0, 3, 2))
        assert np.isnan(share.centre).all()
        np.testing.assert_array_equal(restored.centre, np.ones(4))


def test_a_constant_head_is_chosen_last_and_adds_nothing():
    rows, weights = uneven_sample(), weights_for(0, 4, 3)
    rows[:, 2] = 0.4
    assert fit_best(measured(rows), weights).order[-1] == 2
    shares = curve_spreads(in_blocks(rows), weights)[0].centre
    assert shares[4] == pytest.approx(shares[3], rel=1e-9)
