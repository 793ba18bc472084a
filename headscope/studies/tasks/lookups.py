"""Look-ups: several values to be found by their keys, all at once and in one place."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from headscope.studies.tasks import TASKS, Learner, Task
from headscope.text.batches import Batch

__all__ = ["Lookups"]

_KEYS, _VALUES, _PAIRS, _AT_ONCE = 32, 8, 16, 4
_HELD_OUT, _HELD_OUT_SEEDS = 8, (1_000_003, 1_000_033)  # batches of 128 rows, and seeds that no run trains on


@TASKS.register("lookups")
class Lookups(Task):
    """16 tokens, each a key with its value, and a last one that asks for the values of 4 keys.

    One head looks in one place at a time, or in several and mixes what it finds; and a head of few dimensions cannot
    tell 32 keys apart. The error is the share of the 4 values that are wrong; by chance 7/8.
    """

    n_layers: ClassVar[int] = 1
    steps: ClassVar[int] = 1000
    rows: ClassVar[int] = 64
    unit: ClassVar[str] = "share wrong"
    question: ClassVar[str] = "Can several things be looked up at once?"

    @property
    def chance(self) -> float:
        """7 of 8 values are wrong."""
        return 1 - 1 / _VALUES

    def learner(self, n_heads: int, head_dim: int) -> nn.Module:
        """One block between the table's embeddings and a softmax for each of the values asked for."""
        return Learner(_Table(self.width), _Answers(self.width), self.width, self.n_layers, n_heads, head_dim)

    def batches(self, seed: int) -> Iterator[Batch]:
        """Fresh tables without end."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield _draw(self.rows, generator)

    def held_out(self, tuning: bool = False) -> Sequence[Batch]:
        """1,024 tables, and as many others for tuning."""
        generator = torch.Generator().manual_seed(_HELD_OUT_SEEDS[tuning])
        return [_draw(128, generator) for _ in range(_HELD_OUT)]

    def loss(self, output: Float[Tensor, "row asked value"], batch: Batch) -> Float[Tensor, " row"]:
        """Cross-entropy of the values asked for, nats, the mean of the four."""
        return cross_entropy(output.transpose(1, 2), batch["answers"], reduction="none").mean(1)

    def error(self, output: Float[Tensor, "row asked value"], batch: Batch) -> Float[Tensor, " row"]:
        """Share of the values asked for that are wrong."""
        return (output.argmax(-1) != batch["answers"]).float().mean(1)


def _draw(rows: int, generator: torch.Generator) -> Batch:
    keys = torch.rand(rows, _KEYS, generator=generator).argsort(1)[:, :_PAIRS]
    values = torch.randint(_VALUES, (rows, _PAIRS), generator=generator)
    places = torch.randint(_PAIRS, (rows, _AT_ONCE), generator=generator)
    return {
        "keys": keys,
        "values": values,
        "asked": keys.gather(1, places),
        "answers": values.gather(1, places),
    }


class _Table(nn.Module):
    """Key and value of a pair summed in one token; the keys asked for summed in the last one, each in a way of its own.

    The way of each is a fixed rotation of the key's embedding, so that a key need not be learnt once for each.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.keys = nn.Embedding(_KEYS, width)
        self.values = nn.Embedding(_VALUES, width)
        turns = torch.randn(_AT_ONCE, width, width, generator=torch.Generator().manual_seed(0))
        self.register_buffer("turns", torch.linalg.qr(turns)[0])

    def forward(
        self,
        keys: Int[Tensor, "row pair"],
        values: Int[Tensor, "row pair"],
        asked: Int[Tensor, "row asked"],
        answers: Int[Tensor, "row asked"] | None = None,
    ) -> Float[Tensor, "row token width"]:
        table = self.keys(keys) + self.values(values)
        question = torch.einsum("raw,awv->rv", self.keys(asked), self.turns) / _AT_ONCE**0.5
        return torch.cat([table, question[:, None]], dim=1)


class _Answers(nn.Module):
    """A softmax over values for each key asked for, from the last token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, _AT_ONCE * _VALUES)

    def forward(self, x: Float[Tensor, "row token width"]) -> Float[Tensor, "row asked value"]:
        answers: Tensor = self.linear(x[:, -1]).unflatten(1, (_AT_ONCE, _VALUES))
        return answers
