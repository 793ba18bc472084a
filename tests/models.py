"""Small random models that every part is tried on: a family each for the ways in which heads are laid out."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from headscope.models.reference import Transformer

__all__ = ["FACTORIES", "N_LAYERS", "VOCABULARY", "NanoGPT", "build", "make_batches"]

VOCABULARY = 60
N_LAYERS = 2


class NanoGPT(nn.Module):
    """A GPT as people write it in one file: fused q, k, v; attention by hand; plain logits out, no mask in."""

    def __init__(self, vocabulary: int = VOCABULARY, width: int = 32, n_layers: int = N_LAYERS, n_heads: int = 4):
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(64, width)
        self.h = nn.ModuleList(_NanoBlock(width, n_heads) for _ in range(n_layers))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.wte(input_ids) + self.wpe(torch.arange(input_ids.size(1), device=input_ids.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class _NanoBlock(nn.Module):
    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = _NanoAttention(width, n_heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class _NanoAttention(nn.Module):
    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_head, self.n_embd = n_heads, width
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.register_buffer("bias", torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64))

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        att = functional.softmax(att, dim=-1)
        y = (att @ v).transpose(1, 2).contiguous().view(B, T, C)
        return self.c_proj(y)


def _gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=N_LAYERS, n_head=4, bos_token_id=1, eos_token_id=1
        )
    )


def _llama() -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=64,
        )
    )


def _bert() -> nn.Module:
    return BertModel(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=4,
            max_position_embeddings=64,
        )
    )


def _gemma3() -> nn.Module:
    model = Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=16,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention"],
            max_position_embeddings=64,
        )
    )
    for layer in model.model.layers:  # norms have q and k at length 4, and a scaling of 1 / 16 would make maps flat
        nn.init.constant_(layer.self_attn.q_norm.weight, 1.0)
        nn.init.constant_(layer.self_attn.k_norm.weight, 1.0)
    return model


FACTORIES: dict[str, Callable[[], nn.Module]] = {
    "gpt2": _gpt2,  # fused q, k, v in a Conv1D
    "llama": _llama,  # 8 query heads on 2 key-value heads; heads wider than width / heads
    "bert": _bert,  # an encoder; separate q, k, v
    "gemma3": _gemma3,  # one key-value head; norms on q and k; a sliding and a full layer
    "encoder": lambda: Transformer(VOCABULARY, width=32, n_layers=N_LAYERS, n_heads=4, length=64),
    "causal": lambda: Transformer(VOCABULARY, width=32, n_layers=N_LAYERS, n_heads=4, length=64, causal=True),
    "nanogpt": NanoGPT,  # written by hand, nothing said about itself
}


def build(name: str, seed: int = 0) -> nn.Module:
    """A fresh model, in evaluation mode, the same for the same seed; the global random state is left alone.

    Matrices are drawn wider than their initialisation has them: maps are then far from uniform, and no head idle.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FACTORIES[name]().eval()
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                place = parameter_name.lower()
                if parameter.ndim > 1 and any(part in place for part in ("embed", "wte", "wpe", "tokens", "positions")):
                    # small beside what attention adds, or a model whose head is its embedding only repeats its input
                    parameter.normal_(std=0.05)
                elif parameter.ndim > 1:
                    parameter.normal_(std=0.25)
                elif "norm" not in place and "ln_" not in place:
                    parameter.normal_(std=0.1)
    return model


def make_batches(
    name: str, n_batches: int = 2, rows: int = 3, length: int = 12, padded: bool = True, seed: int = 0
) -> list[dict[str, Tensor]]:
    """Batches of random tokens as that model takes them, a document a row.

    With `padded`, all rows but a batch's first end in padding, each longer than the last; not where the model takes no
    mask.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for number in range(n_batches):
        # 0 is some models' padding token, from which they read a mask of their own
        batch = {"input_ids": torch.randint(3, VOCABULARY, (rows, length), generator=generator)}
        if name != "nanogpt":
            batch["attention_mask"] = torch.ones(rows, length, dtype=torch.long)
            for row in range(1, rows if padded else 0):
                batch["attention_mask"][row, max(2, length - 2 * row) :] = 0
        batch["document"] = torch.arange(number * rows, (number + 1) * rows)
        batches.append(batch)
    return batches
