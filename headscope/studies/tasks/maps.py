"""Maps: attention maps drawn at random, to be matched by each head; what a head of few dimensions can express."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headscope.errors import InputError
from headscope.models.reference import MultiHeadAttention
from headscope.studies.tasks import TASKS, WIDTH, Task
from headscope.text.batches import Batch

__all__ = ["Maps"]

_SPREAD = 2.0  # standard deviation of the scores that the maps are made of
_MANY = 4096  # rows of maps, to know their mean by


@TASKS.register("maps")
class Maps(Task):
    """Every head has a map of its own to match, softmax of random scores, on random tokens that stay the same.

    Scores q·k of a head of d dimensions have rank d at most, and a softmax forgives one more (a constant for each
    query). Random scores of n tokens have rank n, so all can be matched from d = n - 1 on, and below it they cannot.
    Nothing is held out: the question is what a map can be, not what is learnt of others.

    Args:
        length: tokens, at most the width.
        width: see `Task`.

    The error is the mean Kullback-Leibler divergence of the head's map from its own, nats a query.

    Source: Bhojanapalli et al. 2020, arXiv:2002.07028, theorem 1 (the low-rank bottleneck).
    """

    n_layers: ClassVar[int] = 1
    steps: ClassVar[int] = 1500
    rows: ClassVar[int] = 1
    unit: ClassVar[str] = "nats/query"
    question: ClassVar[str] = "How few dimensions can a head have before it cannot look where it wants?"
    whole: ClassVar[bool] = False

    def __init__(self, length: int = 16, *, width: int = WIDTH) -> None:
        super().__init__(width=width)
        if not 2 <= length <= width:
            raise InputError(f"length is 2 to {width} tokens, so that they can be independent; it was {length}")
        self.length = length

    @property
    def label(self) -> str:
        """With its length: "maps-16"."""
        return f"{super().label}-{self.length}"

    @property
    def chance(self) -> float:
        """The mean divergence of a map that looks everywhere alike."""
        generator = torch.Generator().manual_seed(0)
        wanted = (_SPREAD * torch.randn(_MANY, self.length, generator=generator)).softmax(-1)
        return float((wanted * (wanted * self.length).log()).sum(-1).mean())

    def learner(self, n_heads: int, head_dim: int) -> nn.Module:
        """One layer of attention on its own tokens, with a map to match for each head."""
        return _Matched(self.length, self.width, n_heads, head_dim)

    def batches(self, seed: int) -> Iterator[Batch]:
        """The one batch there is: learner and maps are drawn together."""
        while True:
            yield {"row": torch.zeros(1, 1)}

    def held_out(self, tuning: bool = False) -> Sequence[Batch]:
        """The same."""
        return [{"row": torch.zeros(1, 1)}]

    def loss(self, output: tuple[Tensor, Tensor], batch: Batch) -> Float[Tensor, " row"]:
        """Divergence of each head's map from the one that it is to match, the mean over heads and queries."""
        wanted, pattern = output
        apart: Tensor = wanted * (wanted.log() - pattern.clamp_min(torch.finfo(pattern.dtype).tiny).log())
        return apart.sum(-1).mean((1, 2))

    def scores(self, learner: nn.Module) -> list[Float[Tensor, "row head query key"]]:
        """Scores on the learner's own tokens."""
        assert isinstance(learner, _Matched)
        with torch.no_grad():
            query, key, _ = learner.attention.project(learner.tokens)
        return [query @ key.mT]


class _Matched(nn.Module):
    """Attention over random tokens, and the map that each of its heads is to have."""

    tokens: Tensor
    wanted: Tensor

    def __init__(self, length: int, width: int, n_heads: int, head_dim: int) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(width, n_heads, head_dim, bias=False)
        self.register_buffer("tokens", torch.randn(1, length, width))
        self.register_buffer("wanted", (_SPREAD * torch.randn(1, n_heads, length, length)).softmax(-1))

    def forward(self, row: Float[Tensor, "1 1"]) -> tuple[Tensor, Tensor]:
        """(wanted, pattern), (1, head, query, key) each."""
        query, key, _ = self.attention.project(self.tokens)
        return self.wanted, self.attention.weigh(query, key)
