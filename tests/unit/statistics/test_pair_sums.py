"""Statistics of pairs: groups of layers, blocks of documents, and what does not go together."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from headscope.errors import InputError, UnknownNameError
from headscope.statistics.arrivals import OTHER
from headscope.statistics.minibatch_hsic import MinibatchHsic
from headscope.statistics.pattern_divergence import PatternDivergence
from headscope.statistics.pattern_products import PatternProducts
from tests.reference import similarity as reference
from tests.strategies import feed, make_stream, streams

KINDS = [MinibatchHsic, PatternProducts, PatternDivergence]


def rows_of(stream, name):
    """By block of documents and head of all layers: every position's row."""
    found = {}
    for batch in stream.batches:
        for row, block in enumerate(batch.block.tolist()):
            for site in stream.sites:
                tensor = batch.tensors[site.layer][name][row][:, batch.kept[row]].numpy()
                for head in range(site.n_heads):
                    found.setdefault(block, {}).setdefault((site.layer, head), []).extend(tensor[head])
    return found


@given(streams(n_layers=2))
@settings(deadline=None, max_examples=10)
def test_maps_of_all_layers_are_related_block_by_block(stream):
    ((layers, products),) = feed(PatternProducts(scope="model"), stream).compute().items()
    ((_, divergences),) = feed(PatternDivergence(scope="model"), stream, backwards=True).compute().items()
    assert layers == (0, 1)
    maps = rows_of(stream, "pattern")
    for number, (product, divergence) in enumerate(zip(products, divergences, strict=True)):
        heads = list(maps.get(number, {}).values())
        assert product.n == divergence.n == (len(heads[0]) if heads else 0)
        if heads:
            inner = [[sum(p @ q for p, q in zip(a, b, strict=True)) for b in heads] for a in heads]
            apart = [[sum(reference.divergence(p, q) for p, q in zip(a, b, strict=True)) for b in heads] for a in heads]
            np.testing.assert_allclose(product.values, inner, rtol=1e-9)
            np.testing.assert_allclose(divergence.values, apart, rtol=1e-9, atol=1e-9)
        else:
            assert not product.values.any()


@pytest.mark.parametrize("kind", KINDS)
def test_within_layers_it_is_the_diagonal_of_what_it_is_across(kind):
    stream = make_stream(n_layers=2)
    within, across = (feed(kind(scope=scope), stream).compute() for scope in ("layer", "model"))
    assert set(within) == {(0,), (1,)}
    for number, whole in enumerate(across[0, 1]):
        np.testing.assert_allclose(whole.values[:3, :3], within[0,][number].values, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(whole.values[3:, 3:], within[1,][number].values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_meets_the_same_layer_of_another_model(kind):
    stream, statistic = make_stream(n_layers=2), kind(scope="layer")
    for batch in stream.batches:
        for site in stream.sites:
            for layer in (site.layer, OTHER + site.layer):
                statistic.update(replace(site, layer=layer), batch.tensors[site.layer], batch.kept, batch.block)
        statistic.end_batch()
    computed = statistic.compute()
    assert set(computed) == {(0, OTHER), (1, OTHER + 1)}
    for block in computed[1, OTHER + 1]:
        np.testing.assert_allclose(block.values[:3, 3:], block.values[:3, :3], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_decoder_and_cross_attention_are_kept_apart(kind):
    computed = feed(kind(scope="model"), make_stream(n_layers=4, kinds=("self", "causal", "self", "cross"))).compute()
    # the decoder's own and cross attention have the same queries, but not the same keys
    assert set(computed) == ({(0, 2), (1, 3)} if kind is MinibatchHsic else {(0, 2), (1,), (3,)})


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_different_models_do_not_merge_and_scopes_have_names(kind):
    one, other = (feed(kind(scope="model"), make_stream(n_layers=n)) for n in (2, 3))
    with pytest.raises(InputError, match="different layers"):
        one.merge(other)
    with pytest.raises(UnknownNameError, match="there is no scope 'head'"):
        kind(scope="head")


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_stops_matching_is_refused(kind):
    stream = make_stream(n_layers=2)
    statistic, second = feed(kind(scope="model"), stream, [0]), stream.batches[1]
    statistic.update(stream.sites[0], second.tensors[0], second.kept, second.block)
    with pytest.raises(InputError, match=r"layers 0, 1 saw the same positions"):
        statistic.end_batch()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_maps_of_low_precision_are_summed_in_high(dtype):
    stream = make_stream(n_layers=1)
    for batch in stream.batches:
        batch.tensors[0]["pattern"] = batch.tensors[0]["pattern"].to(dtype)
    (blocks,) = feed(PatternProducts(), stream).compute().values()
    flat = stream.batches[0].tensors[0]["pattern"][0][:, stream.batches[0].kept[0]].double().flatten(1).numpy()
    np.testing.assert_allclose(blocks[0].values, flat @ flat.T, rtol=1e-12)
