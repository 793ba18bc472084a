"""Tasks of the head-count study: what a small transformer learns with few heads or many. A new task is one new file.

Each is small enough for a laptop, and each asks something else of the heads, so that the best number of them can be
seen to depend on the task.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from headscope.batches import Batch
from headscope.reference import Block
from headscope.registry import Registry

__all__ = ["TASKS", "Learner", "Task"]


class Task(ABC):
    """Something to learn, and how well it was learnt.

    Class facts:
        width: dimensions of the residual stream.
        n_layers: blocks of the learner.
        steps, rows: how long it is trained, and on how many rows at a time; the same for every number of heads.
        unit: of the error.
        question: what it asks of the heads, in a sentence.
    """

    width: ClassVar[int]
    n_layers: ClassVar[int]
    steps: ClassVar[int]
    rows: ClassVar[int]
    unit: ClassVar[str]
    question: ClassVar[str]

    @abstractmethod
    def learner(self, n_heads: int, head_dim: int) -> nn.Module:
        """A fresh learner, drawn from torch's global random state."""

    @abstractmethod
    def batches(self, seed: int) -> Iterator[Batch]:
        """Batches to train on, without end; the same for the same seed."""

    @abstractmethod
    def held_out(self) -> Sequence[Batch]:
        """What is judged on: the same for every learner, and never trained on."""

    @abstractmethod
    def loss(self, output: Any, batch: Batch) -> Float[Tensor, " row"]:
        """What training makes small."""

    def error(self, output: Any, batch: Batch) -> Float[Tensor, " row"]:
        """What is reported, lower = better; the loss, unless the task has something that says more."""
        return self.loss(output, batch)


TASKS: Registry[Task] = Registry("task", "headscope.studies.tasks")


class Learner(nn.Module):
    """A small pre-norm transformer between a task's own way in and its own way out.

    Args:
        embed: from the task's tensors, given by name, to (batch, token, width).
        readout: from the (batch, token, width) of the last norm to the task's output.
        width, n_layers, n_heads, head_dim: see `headscope.reference.Transformer`.
        causal: whether a token sees only itself and those before it.
    """

    def __init__(
        self,
        embed: nn.Module,
        readout: nn.Module,
        width: int,
        n_layers: int,
        n_heads: int,
        head_dim: int,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(Block(width, n_heads, head_dim, causal) for _ in range(n_layers))
        self.norm = nn.LayerNorm(width)
        self.readout = readout

    def forward(self, **inputs: Tensor) -> Tensor:
        """The task's output for a batch of its tensors."""
        x = self.embed(**inputs)
        for block in self.blocks:
            x = block(x)
        output: Tensor = self.readout(self.norm(x))
        return output
