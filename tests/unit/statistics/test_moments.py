from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.errors import UnknownNameError
from headscope.statistics.moments import (
    Moments,
    MomentsStatistic,
    constant_heads,
    contribution_energy,
    head_rows,
    lift,
    pair_norms,
    total,
)
from tests.reference import sums
from tests.strategies import feed, make_site, make_stream, streams, weights_for


def moments_of(rows, pivot=None):
    """Moments of (token, head, dim) NumPy rows, about their first position unless told otherwise."""
    rows = torch.from_numpy(rows)
    pivot = rows[0] if pivot is None else torch.from_numpy(pivot)
    lifted = lift(rows, pivot)
    return Moments((rows.shape[2],) * rows.shape[1], pivot.flatten(), lifted.T @ lifted)


def close(got, want, rtol=1e-9):
    got, want = np.asarray(got), np.asarray(want)
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * max(1.0, np.abs(want).max()))


@given(streams())
@settings(deadline=None, max_examples=20)
def test_each_block_is_the_sum_over_its_own_positions(stream):
    blocks = feed(MomentsStatistic(), stream).compute()[0]
    rows, of_token = stream.rows(), stream.blocks()
    for number, block in enumerate(blocks):
        own = rows[of_token == number]
        assert block.n == len(own)
        if len(own):
            close(block.gram, sums.second_moment(own, block.pivot.reshape(rows.shape[1:]).numpy()))


def test_pivot_is_the_first_batch_s_mean_and_common_to_the_blocks():
    stream = make_stream(offset=1e4)
    first = replace(stream, batches=stream.batches[:1]).rows(layer=1)
    blocks = feed(MomentsStatistic(), stream).compute()[1]
    for block in blocks:
        close(block.pivot, first.mean(0).ravel(), rtol=1e-12)
        assert torch.equal(block.pivot, blocks[0].pivot)


@given(streams(), st.integers(0, 100))
@settings(deadline=None, max_examples=40)
def test_moving_the_pivot_equals_summing_about_the_other_point(stream, seed):
    rows = stream.rows()
    pivot = rows.mean(0) + np.random.default_rng(seed).standard_normal(rows.shape[1:])
    moved = moments_of(rows).about(torch.from_numpy(pivot).flatten())
    close(moved.gram, sums.second_moment(rows, pivot))
    assert torch.equal(moved.pivot, torch.from_numpy(pivot).flatten())


@given(streams(), st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_sum_of_two_texts_equals_one_pass(stream, cut):
    rows = stream.rows()
    left, right = moments_of(rows[:cut]), moments_of(rows[cut:])
    merged = left + right
    close(merged.gram, sums.second_moment(rows, rows[0]))
    close(total([left, right]).gram, merged.gram)
    nothing = Moments.empty(left.dims, torch.zeros_like(left.pivot))
    assert torch.equal((nothing + left).gram, left.gram)
    assert torch.equal((left + nothing).gram, left.gram)


def test_raw_mean_and_counts_are_about_zero():
    rows = make_stream(offset=3.0).rows()
    moments = moments_of(rows)
    flat = np.hstack([rows.reshape(len(rows), -1), np.ones((len(rows), 1))])
    close(moments.raw(), flat.T @ flat)
    close(moments.mean, rows.mean(0).ravel(), rtol=1e-12)
    assert moments.counts.tolist() == [len(rows)] * 3
    assert moments.n == len(rows)


def test_selected_heads_are_as_if_the_others_had_not_been_there():
    rows = make_stream().rows()
    pivot = rows.mean(0)
    close(moments_of(rows, pivot).select([2, 0]).gram, sums.second_moment(rows[:, [2, 0]], pivot[[2, 0]]))


def test_heads_of_different_dimensions():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((9, 2)), rng.standard_normal((9, 3))
    one = np.ones((9, 1))
    u = np.hstack([a, b, (a**2).sum(1, keepdims=True), (b**2).sum(1, keepdims=True), one])
    moments = Moments((2, 3), torch.zeros(5, dtype=torch.float64), torch.from_numpy(u.T @ u))
    pivot = np.array([1.0, -1.0, 2.0, 0.5, 3.0])
    c, d = a - pivot[:2], b - pivot[2:]
    moved = np.hstack([c, d, (c**2).sum(1, keepdims=True), (d**2).sum(1, keepdims=True), one])
    close(moments.about(torch.from_numpy(pivot)).gram, moved.T @ moved)
    close(pair_norms(moments), [[np.linalg.norm(x.T @ y) ** 2 for y in (a, b)] for x in (a, b)])


def test_energy_is_that_of_the_contributions():
    rows, weights = make_stream(offset=5.0).rows(), weights_for(0, 3, 4)
    want = (sums.contributions(rows, [w.numpy() for w in weights]) ** 2).sum((0, 2))
    close(contribution_energy(moments_of(rows), weights), want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 1.0, 1e4])
def test_energy_is_zero_where_only_rounding_is_left(dtype, offset):
    rows = (make_stream().rows() + offset).astype(dtype).astype(np.float64)
    rows[:, 0] = 0
    weights = weights_for(0, 3, 4)
    away = np.array([1.0, -1.0, 0.0, 0.0])
    rows[:, 1] = rows[:, 1] @ (np.eye(4) - np.outer(away, away) / 2)
    weights[1] = torch.from_numpy(np.outer(np.arange(6.0), away))  # reads only what the head never writes
    energy = contribution_energy(moments_of(rows), weights)
    assert energy[:2].tolist() == [0, 0]
    assert energy[2] > 1


@pytest.mark.parametrize("value", [0.0, 1 / 3, 1e4])
@pytest.mark.parametrize("jitter", [0.0, 1e-7])
def test_constant_heads_are_told_by_their_spread_against_their_size(value, jitter):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, 3, 4)) + 1e4
    rows[:, 1] = value * (1 + jitter * rng.standard_normal((50, 4)))
    rows[:, 2] = 1e4 + 0.1 * rng.standard_normal((50, 4))
    pivot = rows.mean(0) + 0.1
    assert constant_heads(moments_of(rows, pivot)).tolist() == [False, True, False]


def test_half_precision_and_strided_tensors_are_summed_in_float64():
    z = torch.randn(2, 5, 3, 4).bfloat16().transpose(1, 2)
    kept = torch.tensor([[True] * 5, [True, True, False, False, False]])
    statistic = MomentsStatistic()
    statistic.update(make_site(), {"gated_z": z}, kept, torch.tensor([0, 1]))
    rows = head_rows(z, kept).double().numpy()
    summed = total(statistic.compute()[0])
    close(summed.gram, sums.second_moment(rows, summed.pivot.reshape(3, 4).numpy()))


def test_a_batch_without_a_kept_position_changes_nothing():
    statistic, z = MomentsStatistic(), torch.full((1, 3, 5, 4), torch.nan)
    statistic.update(make_site(), {"gated_z": z}, torch.zeros(1, 5, dtype=torch.bool), torch.tensor([0]))
    assert statistic.compute() == {}


def test_what_is_summed_is_a_setting():
    stream = make_stream()
    for of in ("q", "k", "v", "z", "contribution"):
        statistic = MomentsStatistic(of=of)
        assert statistic.needs == {of}
        summed = total(feed(statistic, stream).compute()[0])
        rows = stream.rows(0, of)
        close(summed.gram, sums.second_moment(rows, summed.pivot.reshape(rows.shape[1:]).numpy()))
    with pytest.raises(UnknownNameError, match=r"pattern.*gated_z"):
        MomentsStatistic(of="pattern")
