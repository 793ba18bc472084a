"""Passes: what does not fit into memory is summed in several, and gives the same numbers."""

import copy

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import headscope as hs
from headscope.errors import InputError
from headscope.likeness.passes import parse_memory
from tests import models
from tests.families import build_any
from tests.watched import make_inputs


def test_several_passes_under_little_memory_give_the_same_table() -> None:
    model, batches = build_any("gpt2"), models.make_batches("gpt2")
    anatomy = hs.discover(model)
    site = anatomy.sites[0]
    whole = hs.similarity(model, batches, scope="model")
    rows = site.n_heads * (site.head_dim + 1)
    # two layers fit at once, and no more
    few = hs.similarity(model, batches, scope="model", memory=2 * 8.0 * (2 * rows) ** 2 * 1.01)
    np.testing.assert_allclose(few.matrix, whole.matrix, rtol=1e-9, atol=1e-12)
    assert np.isfinite(whole.low).all()
    with pytest.raises(InputError, match=r"two layers alone take .* more than"):
        hs.similarity(model, batches, scope="model", memory=1000)


def deep_model() -> GPT2LMHeadModel:
    """Five layers, one head of which does nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=models.VOCABULARY, n_positions=64, n_embd=16, n_layer=5, n_head=2, bos_token_id=1, eos_token_id=1
        )
        model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():  # head 1 of layer 3: v of eight dimensions, in (in, out)
        attention = model.transformer.h[3].attn.c_attn
        attention.weight[:, 40:48] = 0
        attention.bias[40:48] = 0
    return model


@pytest.mark.parametrize(("measure", "sums"), [("cka", 2), ("cosine", 2), ("procrustes", 2), ("predict", 5)])
@pytest.mark.parametrize(("layers", "passes"), [(2, 10), (4, 3)])
def test_as_many_passes_as_memory_asks_for(measure: str, sums: int, layers: int, passes: int) -> None:
    model, batches, steps = deep_model(), models.make_batches("gpt2"), []
    whole = hs.similarity(model, batches, measure, scope="model")
    memory = sums * 8.0 * (layers * 2 * 9) ** 2  # that many layers of two heads of eight dimensions
    few = hs.similarity(
        model, batches, measure, scope="model", memory=memory, progress=lambda *step: steps.append(step)
    )
    assert steps == [("watching", 1, passes * len(batches))] * (passes * len(batches))
    idle = whole.heads.index(hs.HeadId(3, 1))
    assert np.isnan(few.matrix[idle]).all()
    assert np.isnan(few.matrix[:, idle]).all()
    assert np.isfinite(np.delete(np.delete(few.matrix, idle, 0), idle, 1)).all()
    np.testing.assert_allclose(few.matrix, whole.matrix, rtol=1e-9, atol=1e-12)
    assert np.isnan(few.low).all()
    assert np.isfinite(whole.low).any()
    assert "did not fit into memory" in few.facts["why_no_interval"]
    assert "why_no_interval" not in whole.facts


def test_passes_over_groups_of_layers_meet_every_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    from headscope.likeness import reading

    model, batches = models.build("gpt2"), models.make_batches("gpt2")
    whole = hs.similarity(model, batches, scope="model")
    monkeypatch.setattr(reading, "_plan", lambda *_: reading._Passes(1, [[0], [0, 1], [1]], chance=False))
    parts = hs.similarity(model, batches, scope="model")
    np.testing.assert_allclose(parts.matrix, whole.matrix, rtol=1e-9, atol=1e-12)
    assert np.isnan(parts.low).all()


def test_too_little_memory_for_two_models_is_refused() -> None:
    model, batches = models.build("gpt2"), models.make_batches("gpt2")
    with pytest.raises(InputError, match=r"two layers alone take .*compare within layers"):
        hs.similarity(model, batches, scope="model", other=copy.deepcopy(model), memory=1000)


@pytest.mark.parametrize("memory", ["lots", "-1GB", 0, "GB", "inf"])
def test_memory_is_a_size(memory: object) -> None:
    with pytest.raises(InputError, match="memory is a number of bytes"):
        parse_memory(memory)  # type: ignore[arg-type]
    assert parse_memory("500 MB") == 5e8


def test_passes_without_the_encoder_deal_documents_as_one_pass_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from headscope.likeness import reading

    model, inputs = build_any("t5"), make_inputs("t5")
    rows = {name: value.repeat(3, *[1] * (value.ndim - 1)) for name, value in inputs.items()}
    length = rows["input_ids"].shape[1]
    mask = (torch.arange(length) < torch.arange(2, 2 + len(rows["input_ids"]))[:, None]).long()
    batch = {**rows, "attention_mask": mask, "decoder_input_ids": rows["input_ids"][:, :6]}
    whole = hs.similarity(model, [batch], "predict", scope="model")
    layers = [site.layer for site in hs.discover(model).sites]
    plan = reading._Passes(2, [[a] for a in layers], chance=False)
    monkeypatch.setattr(reading, "_plan", lambda *_: plan)
    parts = hs.similarity(model, [batch], "predict", scope="model")
    known = ~np.isnan(parts.matrix)
    assert known.sum() > len(layers)
    np.testing.assert_allclose(parts.matrix[known], whole.matrix[known], rtol=1e-6, atol=1e-6)


def test_within_layers_little_memory_takes_more_passes() -> None:
    model, batches = build_any("gpt2"), models.make_batches("gpt2")
    whole = hs.similarity(model, batches)
    site = hs.discover(model).sites[0]
    alone = 13 * 8.0 * (site.n_heads * (site.head_dim + 1)) ** 2
    for room, told in ((1.4 * alone, True), (alone, False)):  # with both halves of pairs of documents, and without
        few = hs.similarity(model, batches, memory=1.01 * room)
        np.testing.assert_array_equal(few.matrix, whole.matrix)
        np.testing.assert_array_equal(few.low, whole.low)
        assert ("chance" in few.nulls) == told
    with pytest.raises(InputError, match="layer 0 alone takes"):
        hs.similarity(model, batches, memory=0.9 * alone)


def test_intervals_across_the_model_are_made_on_request_in_as_many_passes_as_they_take() -> None:
    config = GPT2Config(vocab_size=60, n_embd=16, n_layer=5, n_head=2, n_positions=32)
    torch.manual_seed(0)
    model, batches = GPT2LMHeadModel(config), models.make_batches("gpt2")
    rows = 2 * (8 + 1)
    room = 13 * 8.0 * (3 * rows) ** 2  # all blocks of three layers
    plain = hs.similarity(model, batches, scope="model", memory=room)
    assert np.isnan(plain.low).all()
    asked = hs.similarity(model, batches, scope="model", memory=room, intervals=True)
    whole = hs.similarity(model, batches, scope="model")
    np.testing.assert_allclose(asked.matrix, whole.matrix, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(asked.low, whole.low, rtol=1e-6, atol=1e-9)


def test_two_models_are_compared_in_as_many_passes_as_memory_asks_for() -> None:
    sizes = {"vocab_size": models.VOCABULARY, "n_positions": 64, "n_embd": 32, "n_head": 4}
    first, second = (GPT2LMHeadModel(GPT2Config(**sizes, n_layer=layers)).eval() for layers in (4, 3))
    batches = models.make_batches("gpt2")
    whole = hs.similarity(first, batches, other=second, scope="model")
    seen: list[int] = []
    parts = hs.similarity(
        first, batches, other=second, scope="model", memory="100KB", progress=lambda *step: seen.append(step[2])
    )
    assert max(seen) > 2 * len(batches), "more than two passes"
    np.testing.assert_allclose(parts.matrix, whole.matrix, rtol=1e-9)
    assert "did not fit" in parts.facts["why_no_interval"]
    sure = hs.similarity(first, batches, other=second, scope="model", memory="600KB", intervals=True)
    np.testing.assert_allclose(sure.low, whole.low, rtol=1e-6)
    with pytest.raises(InputError, match="two layers alone take"):
        hs.similarity(first, batches, other=second, scope="model", memory="5KB")
    single = GPT2LMHeadModel(GPT2Config(**sizes, n_layer=1)).eval()
    with pytest.raises(InputError, match="one layer takes"):
        hs.similarity(single, batches, scope="model", memory="5KB")
