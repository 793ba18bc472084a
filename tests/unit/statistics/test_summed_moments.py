from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from headscope.errors import InputError, UnknownNameError
from headscope.statistics.arrivals import OTHER
from headscope.statistics.moments import Moments
from headscope.statistics.summed_moments import SummedMoments
from tests.reference import sums
from tests.strategies import Stream, feed, make_stream, streams


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9 * max(1.0, np.abs(np.asarray(want)).max()))


@given(streams(n_layers=3))
@settings(deadline=None, max_examples=12)
def test_all_layers_together_equal_one_sum_over_all_heads_a_block_of_documents(stream):
    ((layers, blocks),) = feed(SummedMoments(scope="model"), stream).compute().items()
    assert layers == (0, 1, 2)
    rows = np.concatenate([stream.rows(layer) for layer in range(3)], axis=1)
    of_token = stream.blocks()
    for number, block in enumerate(blocks):
        own = rows[of_token == number]
        assert block.n == len(own)
        if len(own):
            close(block.square(), sums.second_moment(own, block.pivot.reshape(rows.shape[1:]).numpy()))


def test_one_block_is_the_sum_of_all():
    stream = make_stream(n_layers=2)
    (single,) = feed(SummedMoments(scope="model", blocks=1), stream).compute()[0, 1]
    summed = Moments.total(feed(SummedMoments(scope="model"), stream).compute()[0, 1])
    close(single.square(), summed.square())


def test_layers_of_different_dimensions_stand_side_by_side():
    wide, narrow = make_stream(1, n_layers=1, n_heads=2, dim=6), make_stream(2, n_layers=2, n_heads=3, dim=2)
    batches = []
    for a, b in zip(wide.batches, narrow.batches, strict=True):
        b.tensors[0] = a.tensors[0]
        batches.append(b)
    stream = Stream(narrow.sites, tuple(batches))
    moments = Moments.total(feed(SummedMoments(scope="model"), stream).compute()[0, 1])
    assert moments.dims == (6, 6, 2, 2, 2)
    for layer, heads in ((0, [0, 1]), (1, [2, 3, 4])):
        own = Moments.total(feed(SummedMoments(), stream).compute()[layer,])
        close(moments.select(heads).about(own.pivot).square(), own.square())


def test_about_half_of_the_square_is_held():
    stream = make_stream(n_layers=12, n_heads=8, dim=64, lengths=((5, 9),))
    (block,) = feed(SummedMoments(scope="model", blocks=1), stream).compute()[tuple(range(12))]
    rows = 12 * 8 * 65 + 1
    assert sum(panel.numel() for panel in block.panels) < 0.6 * rows**2


def sided(lengths, other_lengths):
    """Two encoder layers, and two decoder layers over other positions."""
    kinds = ("self", "self", "causal", "cross")
    encoder, decoder = (make_stream(1, n_layers=4, lengths=each, kinds=kinds) for each in (lengths, other_lengths))
    return encoder.sites, list(zip(encoder.batches, decoder.batches, strict=True))


def run_sided(statistic, sites, batches):
    for encoder, decoder in batches:
        for site in sites:
            batch = encoder if site.kind == "self" else decoder
            statistic.update(site, {statistic.of: batch.tensors[site.layer]["gated_z"]}, batch.kept, batch.block)
        statistic.end_batch()
    return statistic


@pytest.mark.parametrize("other", [((4, 6), (8, 2)), ((5, 9), (7, 3))])
def test_encoder_and_decoder_are_groups_of_their_own_also_at_equal_length(other):
    sites, batches = sided(((5, 9), (7, 3)), other)
    computed = run_sided(SummedMoments(scope="model"), sites, batches).compute()
    assert set(computed) == {(0, 1), (2, 3)}
    assert Moments.total(computed[0, 1]).n == 24
    assert Moments.total(computed[2, 3]).n == sum(map(sum, other))


def test_keys_of_a_cross_site_stand_at_the_positions_of_the_encoder():
    sites, batches = sided(((5, 9),), ((5, 9),))
    statistic = run_sided(SummedMoments(scope="model", of="k"), sites, [(encoder, encoder) for encoder, _ in batches])
    assert set(statistic.compute()) == {(0, 1, 3), (2,)}


def test_layers_that_stop_matching_are_refused_by_number():
    stream = make_stream(n_layers=2, lengths=((5, 9), (6, 8)))
    statistic = feed(SummedMoments(scope="model"), stream, batches=[0])
    second = stream.batches[1]
    statistic.update(stream.sites[0], second.tensors[0], second.kept, second.block)
    with pytest.raises(InputError, match=r'layers 0, 1 saw the same positions .*scope="layer"'):
        statistic.end_batch()


@pytest.mark.parametrize("absent", [0, 1])
def test_a_side_without_a_position_in_some_batch_counts_in_the_others(absent):
    sites, batches = sided(((5, 9), (7, 3)), ((4, 6), (8, 2)))
    encoder, decoder = batches[absent]
    nothing = replace(decoder, kept=torch.zeros_like(decoder.kept))
    batches[absent] = (encoder, nothing)
    computed = run_sided(SummedMoments(scope="model"), sites, batches).compute()
    assert Moments.total(computed[0, 1]).n == 24
    assert Moments.total(computed[2, 3]).n == 10
    first, second = (run_sided(SummedMoments(scope="model"), sites, [batch]) for batch in batches)
    first.merge(second)
    for layers, blocks in first.compute().items():
        origin = torch.zeros_like(blocks[0].pivot)
        close(Moments.total(blocks).about(origin).square(), Moments.total(computed[layers]).about(origin).square())
    assert set(first.compute()) == set(computed)


def test_scope_layer_relates_a_layer_to_the_same_layer_of_another_model():
    stream = make_stream(n_layers=2)
    statistic = SummedMoments()
    for batch in stream.batches:
        for site in stream.sites:
            for layer in (site.layer, OTHER + site.layer):
                moved = type(site)(**{**{f: getattr(site, f) for f in site.__slots__}, "layer": layer})
                statistic.update(moved, batch.tensors[site.layer], batch.kept, batch.block)
        statistic.end_batch()
    computed = statistic.compute()
    assert set(computed) == {(0, OTHER), (1, OTHER + 1)}
    twice = Moments.total(computed[1, OTHER + 1])
    half = len(twice.pivot) // 2
    second = twice.second(twice.mean)
    close(second[:half, half:], second[:half, :half])
    with pytest.raises(UnknownNameError, match="there is no scope 'head'"):
        SummedMoments(scope="head")


def test_parts_of_different_models_do_not_merge():
    one, other = (
        feed(SummedMoments(scope="model"), make_stream(n_layers=2)),
        feed(SummedMoments(scope="model"), make_stream(n_layers=3)),
    )
    with pytest.raises(InputError, match="different layers"):
        one.merge(other)
    assert torch.is_tensor(one.state()["0-1.pivot"])
