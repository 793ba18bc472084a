"""The tiny models that other tests lean on: the same every time, finite, and no trivial cases."""

import pytest
import torch
from torch import Tensor, nn

import headscope
from tests.models import FACTORIES, N_LAYERS, build, make_batches

HEADS = {  # query heads, key heads, dimensions of a head
    "bert": (4, 4, 8),
    "causal": (4, 4, 8),
    "encoder": (4, 4, 8),
    "gemma3": (4, 1, 16),
    "gpt2": (4, 4, 8),
    "llama": (8, 2, 8),
    "nanogpt": (4, 4, 8),
}


def _inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "document"}


def test_a_model_is_the_same_every_time_and_the_random_state_is_left_alone(family: str) -> None:
    state = torch.random.get_rng_state()
    one, other, third = build(family), build(family), build(family, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one is not other
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), third.parameters(), strict=True))


def test_padding_is_where_the_mask_says(family: str) -> None:
    for batch in make_batches(family, rows=3, length=12):
        mask = batch.get("attention_mask", torch.ones(3, 12))
        assert mask.sum(1).tolist() == ([12, 12, 12] if family == "nanogpt" else [12, 10, 8])
    documents = torch.cat([batch["document"] for batch in make_batches(family, n_batches=3)])
    assert documents.tolist() == list(range(9))


def test_every_head_is_found_and_looks_somewhere(
    model: nn.Module, batches: list[dict[str, Tensor]], family: str
) -> None:
    anatomy = headscope.discover(model, _inputs(batches[0]))
    shapes = [(site.n_heads, site.n_kv_heads, site.head_dim) for site in anatomy.sites]
    assert shapes == [HEADS[family]] * N_LAYERS
    with headscope.capture(model, want=("pattern", "z"), anatomy=anatomy) as seen, torch.no_grad():
        model(**_inputs(batches[0]))
    for layer in range(N_LAYERS):
        pattern, z = seen[layer].pattern[0], seen[layer].z[0]
        assert z.isfinite().all()
        assert (pattern[:, -1].amax(-1) > 1.3 / 12).all(), "a map that is nearly uniform tells little"
        assert z.std(1).mean() > 1e-2


@pytest.mark.parametrize("family", sorted(set(FACTORIES) - {"bert", "encoder"}))
def test_causal_models_give_logits_over_the_vocabulary(family: str) -> None:
    output = build(family)(**_inputs(make_batches(family)[0]))
    logits = output if isinstance(output, Tensor) else output.logits
    assert logits.shape == (3, 12, 60)
    assert logits.isfinite().all()
