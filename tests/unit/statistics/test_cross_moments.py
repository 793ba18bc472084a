import itertools

import numpy as np
import torch
from hypothesis import given, settings

from headscope.measures.cka import cka
from headscope.statistics.cross_moments import CrossMoments
from headscope.statistics.moments import MomentsStatistic, total
from tests.reference import sums
from tests.strategies import Stream, feed, make_stream, streams


@given(streams(n_layers=3))
@settings(deadline=None, max_examples=12)
def test_all_layers_together_equal_one_sum_over_all_heads(stream):
    moments = feed(CrossMoments(), stream).compute()
    rows = np.concatenate([stream.rows(layer) for layer in range(3)], axis=1)
    want = sums.second_moment(rows, moments.pivot.reshape(rows.shape[1:]).numpy())
    np.testing.assert_allclose(moments.gram, want, rtol=1e-9, atol=1e-9 * np.abs(want).max())
    assert moments.group == (0,) * rows.shape[1]


def test_layers_of_different_dimensions_stand_side_by_side():
    wide, narrow = make_stream(1, n_layers=1, n_heads=2, dim=6), make_stream(2, n_layers=2, n_heads=3, dim=2)
    batches = []
    for a, b in zip(wide.batches, narrow.batches, strict=True):
        b.tensors[0] = a.tensors[0]
        batches.append(b)
    stream = Stream(narrow.sites, tuple(batches))
    moments = feed(CrossMoments(), stream).compute()
    assert moments.dims == (6, 6, 2, 2, 2)
    for layer, heads in ((0, [0, 1]), (1, [2, 3, 4])):
        own = total(feed(MomentsStatistic(), stream).compute()[layer])
        np.testing.assert_allclose(moments.select(heads).about(own.pivot).gram, own.gram, rtol=1e-9, atol=1e-9)


def test_only_the_upper_triangle_of_layer_pairs_is_held():
    statistic = feed(CrossMoments(), make_stream(n_layers=4))
    pairs = {tuple(map(int, name.split(".")[:2])) for name in statistic.state() if name.endswith("gram")}
    assert pairs == set(itertools.combinations_with_replacement(range(4), 2))


def sided(lengths, other_lengths):
    """Two encoder layers, and two decoder layers over other positions."""
    kinds = ("self", "self", "causal", "cross")
    encoder, decoder = (make_stream(1, n_layers=4, lengths=each, kinds=kinds) for each in (lengths, other_lengths))
    return encoder.sites, list(zip(encoder.batches, decoder.batches, strict=True))


def run_sided(statistic, sites, batches):
    for encoder, decoder in batches:
        for site in sites:
            batch = encoder if site.kind == "self" else decoder
            statistic.update(site, {"gated_z": batch.tensors[site.layer]["gated_z"]}, batch.kept, batch.block)
        statistic.end_batch()
    return statistic


def check_sides(moments):
    assert moments.group == (0,) * 6 + (1,) * 6
    similar = cka(moments)
    assert np.isfinite(similar[:6, :6]).all()
    assert np.isfinite(similar[6:, 6:]).all()
    assert np.isnan(similar[:6, 6:]).all()
    assert np.isnan(similar[6:, :6]).all()


def test_encoder_and_decoder_are_groups_of_their_own():
    sites, batches = sided(((5, 9), (7, 3)), ((4, 6), (8, 2)))
    moments = run_sided(CrossMoments(), sites, batches).compute()
    check_sides(moments)
    assert moments.counts.tolist() == [24] * 6 + [20] * 6
    assert moments.n == 24

    def of(side, layer):
        shown = [(pair[side].tensors[layer]["gated_z"], pair[side].kept) for pair in batches]
        return np.concatenate([tensor.transpose(1, 2)[kept] for tensor, kept in shown])

    for side, heads in ((0, range(6)), (1, range(6, 12))):
        rows = np.concatenate([of(side, layer) for layer in (2 * side, 2 * side + 1)], axis=1)
        alone = moments.select(list(heads))
        want = sums.second_moment(rows, alone.pivot.reshape(rows.shape[1:]).numpy())
        np.testing.assert_allclose(alone.gram, want, rtol=1e-9, atol=1e-9 * np.abs(want).max())


def test_sides_of_equal_length_are_told_apart_by_kind():
    sites, batches = sided(((5, 9),), ((5, 9),))
    check_sides(run_sided(CrossMoments(), sites, batches).compute())


def test_positions_that_matched_in_one_batch_only_count_as_different():
    stream = make_stream(n_layers=2, lengths=((5, 9), (6, 8)))
    statistic = CrossMoments()
    for number, batch in enumerate(stream.batches):
        for site in stream.sites:
            kept = batch.kept.clone()
            if number == 1 and site.layer == 1:
                kept[:, 0] = False
            statistic.update(site, {"gated_z": batch.tensors[site.layer]["gated_z"]}, kept, batch.block)
        statistic.end_batch()
    moments = statistic.compute()
    assert moments.group == (0, 0, 0, 1, 1, 1)
    assert np.isnan(cka(moments)[:3, 3:]).all()


def test_moving_the_pivot_keeps_groups_apart():
    sites, batches = sided(((5, 9), (7, 3)), ((4, 6), (8, 2)))
    moments = run_sided(CrossMoments(), sites, batches).compute()
    moved = moments.about(torch.zeros_like(moments.pivot)).about(moments.pivot)
    np.testing.assert_allclose(moved.gram, moments.gram, rtol=1e-9, atol=1e-9)


def test_a_layer_that_does_not_run_in_every_batch_is_a_group_of_its_own():
    stream = make_stream(n_layers=2, lengths=((5, 9), (6, 8)))
    statistic = feed(CrossMoments(), stream, batches=[0])
    second = stream.batches[1]
    statistic.update(stream.sites[0], second.tensors[0], second.kept, second.block)
    statistic.end_batch()
    moments = statistic.compute()
    assert moments.counts.tolist() == [28] * 3 + [14] * 3
    assert np.isnan(cka(moments)[:3, 3:]).all()
