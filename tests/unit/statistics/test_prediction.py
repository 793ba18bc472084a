"""Fits from moments are the regressions on the rows that were summed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.errors import InputError
from headscope.statistics.prediction import (
    RIDGE,
    Energies,
    best_stand_in,
    check_ridge,
    fit_stand_ins,
    judge_stand_ins,
    penalty_of,
)
from tests.reference import regression as reference
from tests.rows import in_blocks, measured, sample, textbook_weights
from tests.strategies import streams, weights_for


@given(streams(), st.sampled_from([1e-5, RIDGE, 1.0]))
@settings(deadline=None, max_examples=30)
def test_one_direction_equals_least_squares_on_the_rows(stream, ridge):
    rows = stream.rows()
    weights = weights_for(1, *rows.shape[1:])
    fit, judge = rows[: len(rows) // 2 + 1], rows[len(rows) // 2 + 1 :]
    got = judge_stand_ins(fit_stand_ins(measured(fit, fit[0]), ridge), measured(judge, judge[0]), weights)
    want = reference.energies(fit, judge, textbook_weights(weights), ridge)
    np.testing.assert_allclose([got.whole, got.varying, got.residual], want, rtol=1e-9, atol=1e-9)


def test_stand_ins_are_the_heads_predicted_from_the_others():
    rows = sample()
    stand_ins = fit_stand_ins(measured(rows), ridge=1e-9)
    flat = rows.reshape(len(rows), -1)
    predicted = flat @ stand_ins.weights.numpy().T + stand_ins.constant.numpy()
    for head in range(4):
        others = np.delete(rows, head, axis=1).reshape(len(rows), -1)
        design = np.hstack([others, np.ones((len(rows), 1))])
        want = design @ np.linalg.lstsq(design, rows[:, head], rcond=None)[0]
        np.testing.assert_allclose(predicted.reshape(rows.shape)[:, head], want, atol=1e-6)


def test_offset_of_ten_thousand_costs_no_digits():
    rows, weights = sample() + 1e4, weights_for(0, 4, 5)
    fit, judge = rows[:200], rows[200:]
    got = judge_stand_ins(fit_stand_ins(measured(fit, rows[0])), measured(judge, rows[1]), weights).shares()
    want = reference.replaceability(fit, judge, textbook_weights(weights), RIDGE)
    np.testing.assert_allclose(got[0], want, rtol=1e-8)
    assert got[1:].min() > 1 - 1e-7


def test_a_layer_s_only_head_is_predicted_by_the_constant():
    rows = sample(n_heads=1)
    weights = weights_for(0, 1, 5)
    fit, judge = rows[:200], rows[200:]
    gap, whole = (judge[:, 0] - fit[:, 0].mean(0)) @ weights[0].numpy().T, judge[:, 0] @ weights[0].numpy().T
    got = judge_stand_ins(fit_stand_ins(measured(fit)), measured(judge), weights).shares()
    np.testing.assert_allclose(got[:, 0], [0, *[1 - (gap**2).sum() / (whole**2).sum()] * 2], rtol=1e-9, atol=1e-12)


def test_best_stand_in_is_the_best_regression_on_one_head():
    rows, weights = sample(3), weights_for(0, 4, 5)
    rows[:, 2] = 0.3 * rows[:, 0, ::-1] + 0.1 * rows[:, 2]
    index, share = best_stand_in(in_blocks(rows), weights)
    parts = np.array_split(rows, 6)
    halves = [np.concatenate(parts[0::2]), np.concatenate(parts[1::2])]
    want = np.full((4, 4), -np.inf)
    for head in range(4):
        for other in set(range(4)) - {head}:
            one = [weights[head].numpy(), weights[other].numpy()]
            pair = [half[:, [head, other]] for half in halves]
            # the penalty is of the one head that predicts
            scales = [RIDGE * half[:, 1].var(0).mean() / half.var(0).mean() for half in pair]
            ways = [(pair[0], pair[1], scales[0]), (pair[1], pair[0], scales[1])]
            _, varying, missed = sum(reference.energies(a, b, one, scale)[:, 0] for a, b, scale in ways)
            want[head, other] = 1 - missed / varying
    np.testing.assert_array_equal(index, want.argmax(1))
    np.testing.assert_allclose(share, want.max(1), rtol=1e-9)
    assert index[2] == 0
    assert index[0] == 2


def test_nobody_stands_in_for_a_constant_head_or_a_lonely_one():
    rows, weights = sample(), weights_for(0, 4, 5)
    rows[:, 1] = 0.5
    index, share = best_stand_in(in_blocks(rows), weights)
    assert index[1] == -1
    assert np.isnan(share[1])
    assert (index[[0, 2, 3]] >= 0).all()
    index, share = best_stand_in(in_blocks(rows[:, :1]), weights[:1])
    assert index.tolist() == [-1]
    assert share[0] == 0


def test_a_penalty_is_a_share_however_small_the_numbers():
    small = 1e-6 * torch.eye(3, dtype=torch.float64)
    assert penalty_of(small, 0.5) == pytest.approx(5e-7)
    assert penalty_of(0 * small, 0.5) == 1  # where nothing varies, any penalty gives the same
    for ridge in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="above 0"):
            check_ridge(ridge)


def test_a_head_that_writes_nothing_does_not_vary_whatever_rounding_leaves():
    for rounding in (1e-20, -1e-20):
        nothing = Energies(np.array([0.0]), np.array([rounding]), np.array([rounding / 2]))
        replaceability, constant, restored = nothing.shares()[:, 0]
        assert np.isnan(replaceability)
        assert (constant, restored) == (1, 1)
