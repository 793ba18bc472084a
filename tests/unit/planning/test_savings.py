"""What goes with heads, added up from the anatomy, against what a cut really leaves."""

from dataclasses import replace

import pytest

import headscope as hs
from headscope.planning.savings import count_savings
from tests.models import build, make_batches


@pytest.mark.parametrize("family", ["llama", "bert", "gpt2", "gemma3", "causal", "nanogpt"])
def test_parameters_are_those_that_a_cut_takes(family):
    model, example = build(family), make_batches(family)[0]
    where = hs.discover(model, example)
    heads = [where.heads[0], *where.sites[-1].heads[:2]]
    smaller = hs.prune(model, heads, anatomy=where, example=example)
    before, after = (sum(p.numel() for p in one.parameters()) for one in (model, smaller))
    found = count_savings(where, heads, 10, 4)
    assert found.parameters - found.parameters_left == before - after > 0


def test_heads_that_cannot_be_cut_stay_and_it_is_said():
    where = hs.discover(build("llama"))
    mixed = replace(where, sites=(replace(where.sites[0], entangled=("o",)), *where.sites[1:]))
    whole = count_savings(mixed, [], 10, 4)
    refused = count_savings(mixed, where.sites[0].heads, 10, 4)
    assert (refused.parameters_left, refused.flops_left) == (whole.parameters, whole.flops)
    assert "layer 0: its heads cannot be told apart in o" in refused.refused
    both = count_savings(mixed, [*where.sites[0].heads, *where.sites[1].heads], 10, 4)
    assert both.parameters_left == count_savings(mixed, where.sites[1].heads, 10, 4).parameters_left < whole.parameters


def test_a_llama_by_hand():
    model = build("llama")
    config = model.config
    where = hs.discover(model)
    layers, width, heads = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
    kv, dim = config.num_key_value_heads, where.sites[0].head_dim
    found = count_savings(where, where.sites[0].heads, 100, 2)
    weights = width * dim * (2 * heads + 2 * kv)
    assert (found.parameters, found.parameters_left) == (layers * weights, (layers - 1) * weights)
    assert found.flops == 2 * layers * (weights + heads * 100 * 2 * dim)
    assert (found.kv_bytes, found.kv_bytes_left) == (2 * layers * kv * 2 * dim, 2 * (layers - 1) * kv * 2 * dim)


def test_a_key_head_stays_while_a_query_head_reads_it():
    where = hs.discover(build("llama"))
    site = where.sites[0]
    assert site.n_kv_heads < site.n_heads, "the case is not trivial"
    one = count_savings(where, site.heads[:1], 10, 4)
    assert one.kv_bytes_left == one.kv_bytes
    group = [head for head, key in zip(site.heads, site.kv_of_query, strict=True) if key == 0]
    assert count_savings(where, group, 10, 4).kv_bytes_left < one.kv_bytes


def test_an_encoder_keeps_nothing_and_unknown_sizes_are_said():
    where = hs.discover(build("bert"))
    assert count_savings(where, where.heads[:1], 10, 4).kv_bytes == 0
    untold = replace(where, sites=tuple(replace(site, row_sizes={}) for site in where.sites))
    found = count_savings(untold, where.heads[:1], 10, 4)
    assert (found.parameters, found.flops) == (None, None)
