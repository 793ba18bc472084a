"""C1: whose keys and values are whose, and how wide heads are, from models made for it and from planted numbers."""

from typing import Any

import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV3Model, LlamaConfig, LlamaModel

from headscope.models.reference import Transformer
from headscope.studies.claims import HOLDS, claim_named
from headscope.studies.claims.own_weights import OwnWeights
from headscope.studies.subjects import Subject
from tests.words import numbers_in

IDS = [{"input_ids": torch.randint(3, 50, (4, 9), generator=torch.Generator().manual_seed(0))}]


def llama(heads: int, kv_heads: int, head_dim: int) -> Any:
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head_dim,
    )  # fmt: skip
    return LlamaModel(config).eval()


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "told", "said"),
    [
        (4, 4, 8, "holds", "each of 8 dimensions: 4 × 8 = 32, the width. Each has keys and values of its own."),
        (4, 2, 8, "holds in part (queries and dimensions only)", "There are 2 heads of keys and values"),
        (4, 4, 16, "holds in part (own weights, other dimensions)", "each of 16 dimensions: 4 × 16 ≠ 32, the width."),
        (4, 1, 16, "holds in part (own queries only)", "They all share one head's keys and values."),
    ],
)
def test_heads_that_share_and_heads_of_other_sizes_are_told(
    heads: int, kv_heads: int, head_dim: int, told: str, said: str
) -> None:
    claim = OwnWeights()
    words = claim.measure(Subject("small", llama(heads, kv_heads, head_dim), IDS)).words
    assert claim.decide(words).told() == told
    assert said in claim.say(words).en
    assert numbers_in(claim.say(words).en) == numbers_in(claim.say(words).ja) or kv_heads == 1  # "1組", "one head's"
    assert bool(claim.decide(words).where.ja) == (told != "holds")


def test_the_width_is_the_embeddings_where_queries_are_made_from_a_narrower_latent() -> None:
    config = DeepseekV3Config(
        vocab_size=50, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, n_group=1, topk_group=1,
        num_experts_per_tok=2, first_k_dense_replace=1, kv_lora_rank=16, q_lora_rank=12, qk_rope_head_dim=4,
        qk_nope_head_dim=8, v_head_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    claim = OwnWeights()
    words = claim.measure(Subject("small", DeepseekV3Model(config).eval(), IDS)).words
    assert (words["width"], words["head_dim"], words["value_dim"]) == (32, 12, 8)
    assert claim.decide(words).told() == "holds in part (own weights, other dimensions)"
    assert "4 × 12 ≠ 32, the width. Values have 8. " in claim.say(words).en


@pytest.mark.parametrize(
    ("own", "fits", "whole", "told"),
    [
        (1.0, 1.0, 6.0, "holds"),
        (1.0, 0.5, 3.0, "holds in part (3 of 6 layers)"),
        (0.5, 0.5, 0.0, "holds in part (never both in a layer)"),
        (0.5, 0.0, 0.0, "holds in part (own weights, other dimensions)"),
        (0.0, 0.5, 0.0, "holds in part (queries and dimensions only)"),
        (0.0, 0.0, 0.0, "holds in part (own queries only)"),
    ],
)
def test_planted_layers_are_decided(own: float, fits: float, whole: float, told: str) -> None:
    verdict = claim_named("C1").decide({"own": own, "fits": fits, "whole": whole, "layers": 6.0})
    assert verdict.told() == told
    assert (verdict == HOLDS) == (told == "holds")


def test_layers_of_different_sizes_are_told_as_means() -> None:
    model = Transformer(50, width=16, n_layers=2, n_heads=4, length=32).eval()
    attention: Any = model.blocks[1].attention  # left with three of its four heads
    for layer in (attention.query, attention.key, attention.value):
        layer.weight.data, layer.bias.data = layer.weight.data[:12], layer.bias.data[:12]
    attention.output.weight.data = attention.output.weight.data[:, :12]
    claim = OwnWeights()
    words = claim.measure(Subject("small", model, IDS)).words
    assert claim.decide(words).told() == "holds in part (1 of 2 layers)"
    assert "2 layers of 3.5 query heads on average" in claim.say(words).en
    assert "各層平均3.5個" in claim.say(words).ja
