from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.errors import UnknownNameError
from headscope.statistics.arrivals import Together
from headscope.statistics.block_sums import BlockSums, head_rows, lift
from headscope.statistics.moments import Moments, contribution_energy, pair_norms, panel_edges, spreads
from headscope.statistics.summed_moments import SummedMoments
from tests.reference import sums
from tests.strategies import feed, make_site, make_stream, streams, weights_for


def moments_of(rows, pivot=None):
    """Moments of (token, head, dim) NumPy rows, about their first position unless told otherwise."""
    rows = torch.from_numpy(rows)
    pivot = rows[0] if pivot is None else torch.from_numpy(pivot)
    lifted = lift([rows], pivot.flatten())
    return Moments.of_square((rows.shape[2],) * rows.shape[1], pivot.flatten(), lifted.T @ lifted)


def close(got, want, rtol=1e-9):
    got, want = np.asarray(got), np.asarray(want)
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * max(1.0, np.abs(want).max()))


@given(streams())
@settings(deadline=None, max_examples=20)
def test_each_block_is_the_sum_over_its_own_positions(stream):
    blocks = feed(SummedMoments(), stream).compute()[0,]
    rows, of_token = stream.rows(), stream.blocks()
    for number, block in enumerate(blocks):
        own = rows[of_token == number]
        assert block.n == len(own)
        if len(own):
            close(block.square(), sums.second_moment(own, block.pivot.reshape(rows.shape[1:]).numpy()))


def test_pivot_is_the_first_batch_s_mean_and_common_to_the_blocks():
    stream = make_stream(offset=1e4)
    first = replace(stream, batches=stream.batches[:1]).rows(layer=1)
    blocks = feed(SummedMoments(), stream).compute()[1,]
    for block in blocks:
        close(block.pivot, first.mean(0).ravel(), rtol=1e-12)
        assert torch.equal(block.pivot, blocks[0].pivot)


@given(streams(), st.integers(0, 100))
@settings(deadline=None, max_examples=40)
def test_moving_the_pivot_equals_summing_about_the_other_point(stream, seed):
    rows = stream.rows()
    pivot = rows.mean(0) + np.random.default_rng(seed).standard_normal(rows.shape[1:])
    moved = moments_of(rows).about(torch.from_numpy(pivot).flatten())
    close(moved.square(), sums.second_moment(rows, pivot))
    assert torch.equal(moved.pivot, torch.from_numpy(pivot).flatten())


@given(streams(), st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_sum_of_two_texts_equals_one_pass(stream, cut):
    rows = stream.rows()
    left, right = moments_of(rows[:cut]), moments_of(rows[cut:])
    merged = left + right
    close(merged.square(), sums.second_moment(rows, rows[0]))
    close(Moments.total([left, right]).square(), merged.square())
    nothing = Moments.empty(left.dims, torch.zeros_like(left.pivot))
    assert torch.equal((nothing + left).square(), left.square())
    assert torch.equal((left + nothing).square(), left.square())


def test_means_and_second_moments_are_about_the_point_that_was_asked():
    rows = make_stream(offset=3.0).rows()
    moments = moments_of(rows)
    flat = rows.reshape(len(rows), -1)
    point = np.arange(12.0) / 7
    close(moments.second(torch.from_numpy(point)), (flat - point).T @ (flat - point))
    close(moments.own(1, torch.from_numpy(point[4:8])), (rows[:, 1] - point[4:8]).T @ (rows[:, 1] - point[4:8]))
    lengths = ((rows - point.reshape(3, 4)) ** 2).sum(-1)
    close(moments.squares(torch.from_numpy(point)), lengths.T @ lengths)
    close(moments.mean, flat.mean(0), rtol=1e-12)
    close(spreads(moments), ((rows - rows.mean(0)) ** 2).sum((0, 2)))
    assert moments.n == len(rows)


@pytest.mark.parametrize("dims", [(300, 300, 5), (2, 600, 2), (3,) * 4, (64,) * 20])
def test_panels_of_any_layout_hold_the_upper_triangle(dims):
    rng = np.random.default_rng(0)
    parts = [torch.from_numpy(rng.standard_normal((7, 1, dim))) for dim in dims]
    pivot = torch.from_numpy(rng.standard_normal(sum(dims)))
    lifted = lift(parts, pivot)
    square = lifted.T @ lifted
    moments = Moments.of_square(dims, pivot, square)
    close(moments.square(), square)
    edges = panel_edges(dims)
    assert edges[0] == 0
    assert edges[-1] == len(dims)
    assert sum(panel.numel() for panel in moments.panels) < square.numel() or len(edges) == 2
    sums = BlockSums(1)
    sums.add(Together((0,), parts, torch.zeros(7, dtype=torch.long)))
    (summed,) = sums.compute()
    close(summed.about(pivot).square(), square)
    flat = np.concatenate([part.numpy()[:, 0] for part in parts], axis=1)
    flat = flat - flat.mean(0)
    start = 0
    for head, dim in enumerate(dims):
        close(summed.centred_rows(head), flat[:, start : start + dim].T @ flat[:, start:])
        start += dim


def test_what_waits_is_in_what_is_computed_and_stays_bounded():
    stream = make_stream(n_layers=1, lengths=((9, 8), (7, 9), (9, 3)))
    sums, rows = BlockSums(1), torch.from_numpy(stream.rows())
    for part in rows.split(7):
        sums.add(Together((0,), [part], torch.zeros(len(part), dtype=torch.long)))
    (early,) = sums.compute()
    assert early.n == len(rows)
    sums.add(Together((0,), [rows[:5]], torch.zeros(5, dtype=torch.long)))
    (late,) = sums.compute()
    assert early.n == len(rows)
    assert late.n == len(rows) + 5
    big = torch.randn(5000, 3, 4, dtype=torch.float64)
    for part in big.split(100):
        sums.add(Together((0,), [part], torch.zeros(100, dtype=torch.long)))
        assert sum(len(own[0]) for own in sums._waiting[0]) < 612


def test_selected_heads_are_as_if_the_others_had_not_been_there():
    rows = make_stream().rows()
    pivot = rows.mean(0)
    close(moments_of(rows, pivot).select([2, 0]).square(), sums.second_moment(rows[:, [2, 0]], pivot[[2, 0]]))


def test_heads_of_different_dimensions():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((9, 2)), rng.standard_normal((9, 3))
    one = np.ones((9, 1))
    u = np.hstack([a, b, (a**2).sum(1, keepdims=True), (b**2).sum(1, keepdims=True), one])
    moments = Moments.of_square((2, 3), torch.zeros(5, dtype=torch.float64), torch.from_numpy(u.T @ u))
    pivot = np.array([1.0, -1.0, 2.0, 0.5, 3.0])
    c, d = a - pivot[:2], b - pivot[2:]
    moved = np.hstack([c, d, (c**2).sum(1, keepdims=True), (d**2).sum(1, keepdims=True), one])
    close(moments.about(torch.from_numpy(pivot)).square(), moved.T @ moved)
    centred = [x - x.mean(0) for x in (a, b)]
    close(pair_norms(moments), [[np.linalg.norm(x.T @ y) ** 2 for y in centred] for x in centred])


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
    assert moments_of(rows, pivot).constant.tolist() == [False, True, False]


def test_half_precision_and_strided_tensors_are_summed_in_float64():
    z = torch.randn(2, 5, 3, 4).bfloat16().transpose(1, 2)
    kept = torch.tensor([[True] * 5, [True, True, False, False, False]])
    statistic = SummedMoments()
    statistic.update(make_site(), {"gated_z": z}, kept, torch.tensor([0, 1]))
    statistic.end_batch()
    rows = head_rows(z, kept).double().numpy()
    summed = Moments.total(statistic.compute()[0,])
    close(summed.square(), sums.second_moment(rows, summed.pivot.reshape(3, 4).numpy()))


def test_a_batch_without_a_kept_position_changes_nothing():
    statistic, z = SummedMoments(), torch.full((1, 3, 5, 4), torch.nan)
    statistic.update(make_site(), {"gated_z": z}, torch.zeros(1, 5, dtype=torch.bool), torch.tensor([0]))
    statistic.end_batch()
    assert statistic.compute() == {}


def test_what_is_summed_is_a_setting():
    stream = make_stream()
    for of in ("q", "k", "v", "z", "contribution"):
        statistic = SummedMoments(of=of)
        assert statistic.needs == {of}
        summed = Moments.total(feed(statistic, stream).compute()[0,])
        rows = stream.rows(0, of)
        close(summed.square(), sums.second_moment(rows, summed.pivot.reshape(rows.shape[1:]).numpy()))
    with pytest.raises(UnknownNameError, match=r"pattern.*gated_z"):
        SummedMoments(of="pattern")


def test_sums_of_nothing_take_no_memory_until_they_are_added_to():
    empty = Moments.empty((300, 500, 200), torch.zeros(1000, dtype=torch.float64))
    assert sum(panel.untyped_storage().nbytes() for panel in empty.panels) <= 8 * len(empty.panels)
    assert empty.n == 0
    assert not empty.square().any()
