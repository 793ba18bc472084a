"""Further small random models, each for one way in which heads are laid out, joined or read; see tests/models.py."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from tests.models import FACTORIES, VOCABULARY, NanoGPT, build, make_batches

__all__ = ["FURTHER", "HandWritten", "build_any", "build_further", "probe_input"]

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def _bare(model_type: str, **settings: object) -> PreTrainedModel:
    return AutoModel.from_config(AutoConfig.for_model(model_type, vocab_size=VOCABULARY, **settings))


def _causal(model_type: str, **settings: object) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, vocab_size=VOCABULARY, **settings))


FURTHER: dict[str, Callable[[], nn.Module]] = {
    # fused with q, k, v of each head side by side
    "gpt_neox": lambda: _causal("gpt_neox", **_SIZES, bos_token_id=1, eos_token_id=2),
    # one module, run three times
    "albert": lambda: _bare("albert", **_SIZES | {"num_hidden_layers": 3}, embedding_size=16),
    # norms over all heads at once: q and k cannot be told apart by head
    "olmo2": lambda: _causal("olmo2", **_SIZES, num_key_value_heads=4, pad_token_id=0, eos_token_id=2),
    # an encoder and a decoder, with a position bias
    "t5": lambda: _bare(
        "t5", d_model=32, num_layers=2, num_heads=4, d_kv=8, d_ff=48, pad_token_id=0, decoder_start_token_id=0
    ),
    "bart": lambda: _bare(
        "bart",
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        pad_token_id=1,
    ),
    # its last layer reads the keys and values of the one before
    "gemma4": lambda: _bare(
        "gemma4_text",
        **_SIZES | {"num_hidden_layers": 3},
        num_key_value_heads=2,
        head_dim=8,
        global_head_dim=8,
        hidden_size_per_layer_input=4,
        vocab_size_per_layer_input=VOCABULARY,
        num_kv_shared_layers=1,
        layer_types=["full_attention"] * 3,
        max_position_embeddings=64,
        pad_token_id=0,
    ),
    # a sink: the rows of its maps sum to less than 1
    "gpt_oss": lambda: _causal(
        "gpt_oss",
        **_SIZES,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
}


def build_further(name: str, seed: int = 0) -> nn.Module:
    """A fresh model in evaluation mode, the same for the same seed, with maps that are far from uniform."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FURTHER[name]().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.25)
        return model


class HandWritten(nn.Module):
    """One attention module as somebody might write it; every way below computes the same but for what it says.

    Args:
        way: "plain", "sdpa", or a departure from it, named where it happens.
        n_heads, n_kv_heads: query heads of 4 dimensions; key and value heads, repeated before the scores.
        causal: whether a token sees only itself and the tokens before it.
    """

    def __init__(self, way: str = "plain", n_heads: int = 4, n_kv_heads: int = 4, causal: bool = True) -> None:
        super().__init__()
        self.way, self.n_heads, self.n_kv_heads, self.dim, self.causal = way, n_heads, n_kv_heads, 4, causal
        width = n_heads * self.dim
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, n_kv_heads * self.dim)
        self.v = nn.Linear(width, n_kv_heads * self.dim)
        self.o = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.mix = _Mix()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self._heads(layer(x)) for layer in (self.q, self.k, self.v))
        k, v = (part.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1) for part in (k, v))
        z = self._attend(q, k, v)
        joined = z.transpose(1, 2).flatten(2)
        if self.way == "gated":
            joined = joined * torch.sigmoid(self.gate(x))
        if self.way == "normed":
            joined = self.norm(joined)
        if self.way == "residual":
            joined = joined + x
        if self.way == "sequence first":
            return self.o(joined.transpose(0, 1)).transpose(0, 1)
        return self.o(joined)

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (-1, self.dim)).transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.way == "sdpa":
            return functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        ahead = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
        if self.way == "mask in sdpa":
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=~ahead, scale=0.25)
        if self.way == "queries scaled":
            scores = torch.matmul(q / math.sqrt(self.dim), k.transpose(-2, -1))
        elif self.way == "in place":
            scores = q @ k.transpose(-2, -1)
            scores /= math.sqrt(self.dim)
        else:
            scores = q @ k.transpose(-2, -1) / math.sqrt(self.dim)
        if self.causal and self.way == "in place":
            scores.masked_fill_(ahead, -math.inf)
        elif self.causal and self.way == "added mask":
            scores = scores + torch.zeros_like(scores).masked_fill(ahead, torch.finfo(scores.dtype).min)
        elif self.causal:
            scores = torch.where(ahead, -math.inf, scores)
        pattern = torch.softmax(scores, dim=-1)
        return self.mix(pattern, v) if self.way == "module of its own" else pattern @ v


class _Mix(nn.Module):
    def forward(self, pattern: Tensor, v: Tensor) -> Tensor:
        return torch.matmul(pattern, v)


def build_any(name: str) -> nn.Module:
    """A model of tests/models.py, one of those above, or "fused nanogpt"."""
    if name == "fused nanogpt":
        return _build_fused_nano()
    return build(name) if name in FACTORIES else build_further(name)


def probe_input(name: str) -> dict[str, Tensor] | None:
    """What to probe that model with; None where it says itself what it takes."""
    if name not in ("encoder", "causal", "nanogpt", "fused nanogpt"):
        return None
    return {"input_ids": make_batches(name.split()[-1], 1, padded=False)[0]["input_ids"][:2, :7]}


def _build_fused_nano() -> nn.Module:
    """The tests' NanoGPT with `F.scaled_dot_product_attention` for its own softmax; the weights are the same."""
    model = build("nanogpt")
    assert isinstance(model, NanoGPT)
    for block in model.h:
        block.attn.__class__ = _FusedAttention
    return model


class _FusedAttention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in self.c_attn(x).split(self.n_embd, dim=2)
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).flatten(2))
