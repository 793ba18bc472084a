"""Multi-head attention and a small transformer around it, step by step as the paper on multi-head attention tells it.

Written to be read, and to be measured: it is a model of one's own to everything else here, found by no special case.
Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2, equation 1; pre-norm blocks: Xiong et al. 2020,
arXiv:2002.04745.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from headscope.errors import InputError

__all__ = ["Block", "MultiHeadAttention", "Transformer", "TransformerOutput", "example"]

Queries = Float[Tensor, "batch head query head_dim"]
Keys = Float[Tensor, "batch head key head_dim"]
Values = Float[Tensor, "batch head key value_dim"]
Pattern = Float[Tensor, "batch head query key"]


class MultiHeadAttention(nn.Module):
    """Several heads look at the same tokens, each with query, key and value weights of its own.

    How many heads there are is read off the weights: cut a head's rows from `query`, `key` and `value` and its columns
    from `output`, and what is left runs as it is, down to no head at all.

    Args:
        width: dimensions of a token's embedding, coming in and going out.
        n_heads: number of heads.
        head_dim: dimensions of one query and one key; width / n_heads unless given.
        value_dim: dimensions of one value, and so of one head's output; head_dim unless given.
        bias: whether the four projections add a bias.
        causal: whether a token sees only itself and the tokens before it.
        dropout: share of attention weights set to zero in training, in [0, 1).

    Raises:
        InputError: a size below 1, or n_heads does not divide width and no head_dim is given.

    The paper's example: embeddings of width 512 and 8 heads, so each head has 64 dimensions; 10 tokens.

    >>> attention = MultiHeadAttention(width=512, n_heads=8)
    >>> x = torch.randn(1, 10, 512)
    >>> query, key, value = attention.project(x)   # each head: its own Q, K, V, 64 dimensions for each of 10 tokens
    >>> query.shape
    torch.Size([1, 8, 10, 64])
    >>> pattern = attention.weigh(query, key)      # each head: every query meets every key, 10 × 10
    >>> pattern.shape
    torch.Size([1, 8, 10, 10])
    >>> z = pattern @ value                        # each head's output: 10 tokens × 64
    >>> z.shape
    torch.Size([1, 8, 10, 64])
    >>> concatenated = z.transpose(1, 2).flatten(2)
    >>> concatenated.shape                         # 8 × 64 dimensions side by side
    torch.Size([1, 10, 512])
    >>> torch.equal(attention.output(concatenated), attention(x))
    True
    """

    def __init__(
        self,
        width: int = 512,
        n_heads: int = 8,
        head_dim: int | None = None,
        value_dim: int | None = None,
        bias: bool = True,
        causal: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_sizes(width=width, n_heads=n_heads)
        self.head_dim = _divide(width, n_heads) if head_dim is None else head_dim
        self.value_dim = self.head_dim if value_dim is None else value_dim
        _check_sizes(head_dim=self.head_dim, value_dim=self.value_dim)
        self.causal = causal
        self.query = nn.Linear(width, n_heads * self.head_dim, bias)
        self.key = nn.Linear(width, n_heads * self.head_dim, bias)
        self.value = nn.Linear(width, n_heads * self.value_dim, bias)
        self.output = nn.Linear(n_heads * self.value_dim, width, bias)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch token width"], mask: Bool[Tensor, "#batch #head #query #key"] | None = None
    ) -> Float[Tensor, "batch token width"]:
        """Attention of every token to every token.

        Args:
            x: the tokens' embeddings.
            mask: True where a query may look at a key; None: everywhere. `causal` comes on top.
        """
        query, key, value = self.project(x)
        pattern = self.weigh(query, key, mask)
        z = self.dropout(pattern) @ value  # the weighted mean of the values, per head
        concatenated = z.transpose(1, 2).flatten(2)
        return self.output(concatenated)

    def project(self, x: Float[Tensor, "batch token width"]) -> tuple[Queries, Keys, Values]:
        """Every head's query, key and value of each token."""
        return (
            _split(self.query(x), self.head_dim),
            _split(self.key(x), self.head_dim),
            _split(self.value(x), self.value_dim),
        )

    def weigh(self, query: Queries, key: Keys, mask: Bool[Tensor, "#batch #head #query #key"] | None = None) -> Pattern:
        """How much each query looks at each key: softmax(q·kᵀ / √head_dim), no unit, in [0, 1]; rows sum to 1.

        0 where the mask hides the key; a query that may look at nothing looks at all keys alike.
        """
        scores = query @ key.transpose(-2, -1) / math.sqrt(self.head_dim)
        # the least finite number and not -inf: a padded row that sees nothing would turn to NaN and spread from there
        hidden = torch.finfo(scores.dtype).min
        if self.causal:
            past = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            mask = past if mask is None else mask & past
        if mask is not None:
            scores = scores.masked_fill(~mask, hidden)
        return scores.softmax(dim=-1)


class TransformerOutput(NamedTuple):
    """What `Transformer` returns.

    Attributes:
        last_hidden_state: (batch, token, width), after the last norm.
        logits: (batch, token, vocabulary), natural-log odds of the next token up to a constant; None for an encoder.
    """

    last_hidden_state: Float[Tensor, "batch token width"]
    logits: Float[Tensor, "batch token vocabulary"] | None


class Transformer(nn.Module):
    """A small pre-norm transformer: token and position embeddings, blocks, a last norm; a language model if causal.

    Args:
        vocabulary: number of different tokens.
        width: dimensions of a token's embedding.
        n_layers: number of blocks.
        n_heads: heads in each block.
        head_dim: dimensions of one head; width / n_heads unless given.
        length: most tokens in a row.
        causal: a decoder that predicts the next token; otherwise an encoder that sees tokens on both sides.

    Raises:
        InputError: a size below 1, or n_heads does not divide width and no head_dim is given.

    >>> model = Transformer(vocabulary=100, width=16, n_layers=2, n_heads=4, causal=True)
    >>> output = model(torch.tensor([[5, 7, 11]]))
    >>> output.last_hidden_state.shape, output.logits.shape
    (torch.Size([1, 3, 16]), torch.Size([1, 3, 100]))
    """

    def __init__(
        self,
        vocabulary: int,
        width: int = 64,
        n_layers: int = 2,
        n_heads: int = 4,
        head_dim: int | None = None,
        length: int = 256,
        causal: bool = False,
    ) -> None:
        super().__init__()
        _check_sizes(vocabulary=vocabulary, width=width, n_layers=n_layers, length=length)
        self.length = length
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, n_heads, head_dim, causal) for _ in range(n_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False) if causal else None

    def forward(
        self,
        input_ids: Int[Tensor, "batch token"],
        attention_mask: Int[Tensor, "batch token"] | Bool[Tensor, "batch token"] | None = None,
    ) -> TransformerOutput:
        """Hidden states, and logits if causal.

        Args:
            input_ids: token numbers, each in [0, vocabulary).
            attention_mask: nonzero for tokens, 0 for padding, which nothing looks at; None: all are tokens.

        Raises:
            InputError: more tokens in a row than the model has positions for.
        """
        n_tokens = input_ids.shape[1]
        if n_tokens > self.length:
            raise InputError(
                f"input_ids has {n_tokens} tokens in a row and the model has {self.length} positions; "
                f"cut the text shorter, or build the model with length={n_tokens}"
            )
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        x = self.tokens(input_ids) + self.positions(torch.arange(n_tokens, device=input_ids.device))
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        return TransformerOutput(x, None if self.head is None else self.head(x))


class Block(nn.Module):
    """Attention, then a layer that works on each token alone; each reads a normed copy and adds what it found.

    Args:
        width, n_heads, head_dim, causal: see `Transformer`.
    """

    def __init__(self, width: int, n_heads: int, head_dim: int | None, causal: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, n_heads, head_dim, causal=causal)
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(
        self, x: Float[Tensor, "batch token width"], mask: Bool[Tensor, "batch 1 1 token"] | None = None
    ) -> Float[Tensor, "batch token width"]:
        """The tokens with what both layers add.

        Args:
            x: the tokens.
            mask: True for keys that may be looked at; None: all.
        """
        x = x + self.attention(self.attention_norm(x), mask)
        return x + self.feedforward(self.feedforward_norm(x))


def example() -> tuple[Transformer, list[dict[str, Tensor]]]:
    """A causal transformer with random weights and documents of random tokens: `headscope.models.reference:example`.

    Something to try a command on where no model is at hand: 2 layers × 4 heads of 8 dimensions, 48 documents of 32
    tokens out of 50. The same numbers on every call; the global random state is left alone.

    Returns:
        The model, in evaluation mode, and six batches of eight documents each.

    >>> model, batches = example()
    >>> len(batches), batches[0]["input_ids"].shape, batches[1]["document"].tolist()
    (6, torch.Size([8, 32]), [8, 9, 10, 11, 12, 13, 14, 15])
    """
    vocabulary, rows, n_tokens = 50, 8, 32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Transformer(vocabulary, width=32, n_layers=2, n_heads=4, length=n_tokens, causal=True).eval()
    generator = torch.Generator().manual_seed(0)
    batches = [
        {
            "input_ids": torch.randint(0, vocabulary, (rows, n_tokens), generator=generator),
            "attention_mask": torch.ones(rows, n_tokens, dtype=torch.long),
            "document": torch.arange(first, first + rows),
        }
        for first in range(0, 6 * rows, rows)
    ]
    return model, batches


def _split(x: Float[Tensor, "batch token features"], dim: int) -> Float[Tensor, "batch head token {dim}"]:
    """Cut the last axis into heads of `dim`."""
    return x.view(*x.shape[:-1], -1, dim).transpose(1, 2)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name} must be at least 1; got {size}")


def _divide(width: int, n_heads: int) -> int:
    if width % n_heads:
        fitting = ", ".join(str(n) for n in range(1, width + 1) if width % n == 0)
        raise InputError(
            f"width {width} does not divide into {n_heads} heads: each would have {width / n_heads:.2f} dimensions; "
            f"pass head_dim=, or a number of heads that divides {width}: {fitting}"
        )
    return width // n_heads
