"""A cut that is refused names what stands in its way: tables, gates, arguments and numbers by head."""

import pytest
import torch
from torch import nn
from transformers import (
    BloomConfig,
    BloomModel,
    GptOssConfig,
    GptOssModel,
    MPNetConfig,
    MPNetModel,
    Phi3Config,
    Phi3Model,
    Qwen3NextConfig,
    Qwen3NextModel,
    SwinConfig,
    SwinModel,
    T5Config,
    T5Model,
)

from headscope.errors import SurgeryError
from headscope.surgery import prune

_SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 90,
    "pad_token_id": 0,
}  # fmt: skip
_GROUPED = _SMALL | {"num_key_value_heads": 2, "head_dim": 8}


def _t5() -> nn.Module:
    return T5Model(T5Config(d_model=32, d_kv=8, num_heads=4, num_layers=2, d_ff=48, vocab_size=90))


def _swin() -> nn.Module:
    return SwinModel(SwinConfig(image_size=32, patch_size=4, embed_dim=24, depths=[1], num_heads=[3], window_size=4))


def _gpt_oss() -> nn.Module:
    return GptOssModel(GptOssConfig(**_GROUPED, num_local_experts=2, num_experts_per_tok=1))


def _qwen3_next() -> nn.Module:
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    whole = {"layer_types": ["full_attention"] * 2, "shared_expert_intermediate_size": 16}
    return Qwen3NextModel(Qwen3NextConfig(**_GROUPED, **experts, **whole))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (_t5, r"SelfAttention\.relative_attention_bias\.weight \(32, 4\)"),
        (_swin, r"relative_position_bias_table \(49, 3\)"),
        (_gpt_oss, r"layers\.0\.self_attn\.sinks \(4,\)"),
        (lambda: MPNetModel(MPNetConfig(**_SMALL)), r"argument \d \(2, 4, 7, 7\), which it is given"),
        (lambda: BloomModel(BloomConfig(vocab_size=90, hidden_size=32, n_layer=1, n_head=4)), r"alibi \(8, 1, 7\)"),
        (lambda: Phi3Model(Phi3Config(**_GROUPED)), "num_attention_heads of the config, which Phi3Attention may read"),
        (_qwen3_next, r"32 rows of layers\.0\.self_attn\.q_proj that make no q, k or v \(a gate\?\)"),
    ],
    ids=["T5", "Swin", "gpt-oss", "MPNet", "BLOOM", "Phi-3", "Qwen3-Next"],
)
def test_what_stands_in_the_way_is_named(make, named: str) -> None:
    torch.manual_seed(0)
    model = make().eval()
    with pytest.raises(
        SurgeryError, match=r"more for each head than its rows of q, k, v and its columns of o: .*" + named
    ):
        prune(model, ["L0H0"])
