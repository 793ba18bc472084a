"""Tasks of the head-count study: what a small transformer learns with few heads or many. A new task is one new file.

Each is small enough for a laptop, and each asks something else of the heads, so that the best number of them can be
seen to depend on the task.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headscope._support.registry import Registry
from headscope.anatomy import discover
from headscope.errors import InputError
from headscope.models.reference import Block
from headscope.text.batches import Batch
from headscope.text.texts import Texts
from headscope.watching.observation import capture

__all__ = ["TASKS", "WIDTH", "Learner", "Task", "inputs", "kind_of", "task_named"]

WIDTH = 64  # of the residual stream
_SCORE_ROWS = 8  # whose scores are looked at


class Task(ABC):
    """Something to learn, and how well it was learnt.

    Args:
        width: dimensions of the residual stream.

    Class facts:
        n_layers: blocks of the learner.
        steps, rows: how long it is trained, and on how many rows at a time; the same for every number of heads.
        unit: of the error.
        question: what it asks of the heads, in a sentence.
        whole: whether heads write something that the error depends on; else there is only what they look at.
    """

    n_layers: ClassVar[int]
    steps: ClassVar[int]
    rows: ClassVar[int]
    unit: ClassVar[str]
    question: ClassVar[str]
    whole: ClassVar[bool] = True

    def __init__(self, *, width: int = WIDTH) -> None:
        self.width = width

    @property
    def label(self) -> str:
        """What it is called in tables, and what `task_named` makes it from."""
        return TASKS.name_of(self)

    @property
    @abstractmethod
    def chance(self) -> float:
        """The error of whoever does not look at what is shown."""

    @abstractmethod
    def learner(self, n_heads: int, head_dim: int) -> nn.Module:
        """A fresh learner, drawn from torch's global random state."""

    @abstractmethod
    def batches(self, seed: int) -> Iterator[Batch]:
        """Batches to train on, without end; the same for the same seed."""

    @abstractmethod
    def held_out(self, tuning: bool = False) -> Sequence[Batch]:
        """What is judged on: the same for every learner, and never trained on.

        Args:
            tuning: a part of its own, which settings are chosen on.
        """

    @abstractmethod
    def loss(self, output: Any, batch: Batch) -> Float[Tensor, " row"]:
        """What training makes small."""

    def error(self, output: Any, batch: Batch) -> Float[Tensor, " row"]:
        """What is reported, lower = better; the loss, unless the task has something that says more."""
        return self.loss(output, batch)

    def scores(self, learner: nn.Module) -> list[Float[Tensor, "row head query key"]]:
        """Scores q·k of a few held-out rows, before scale and softmax, for each layer of a learner."""
        batch = {name: value[:_SCORE_ROWS] for name, value in inputs(self.held_out()[0]).items()}
        with torch.no_grad(), capture(learner, ("q", "k"), anatomy=discover(learner, batch)) as seen:
            learner(**batch)
        return [seen[layer].q @ seen[layer].k.mT for layer in seen]


TASKS: Registry[Task] = Registry("task", "headscope.studies.tasks")


class Learner(nn.Module):
    """A small pre-norm transformer between a task's own way in and its own way out.

    Args:
        embed: from the task's tensors, given by name, to (batch, token, width).
        readout: from the (batch, token, width) of the last norm to the task's output.
        width, n_layers, n_heads, head_dim: see `headscope.models.reference.Transformer`.
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


def inputs(batch: Batch) -> dict[str, Tensor]:
    """What a learner is given of a batch: all but the numbers of documents."""
    return {name: value for name, value in batch.items() if name != "document"}


def task_named(label: str, texts: Texts | None = None, width: int = WIDTH) -> Task:
    """The task of a label: its registered name, and with "maps-16" the length of its maps.

    Args:
        label: see `Task.label`.
        texts: what a language is learnt from.
        width: of its learners.

    Raises:
        UnknownNameError: no such task.
        InputError: what comes after the name is no number, or the task takes none, or no such one.
    """
    _, _, size = label.partition("-")
    kind: Any = kind_of(label)
    if size:
        return kind(int(size), width=width)
    return kind(texts, width=width) if label == "language" else kind(width=width)


def kind_of(label: str) -> type[Task]:
    """The class of a task's label.

    Raises:
        UnknownNameError: no such task.
        InputError: what comes after the name is no number, or the task takes none.
    """
    name, dash, size = label.partition("-")
    kind = TASKS[name]
    if dash and (name != "maps" or not size.isdecimal()):
        raise InputError(f"there is no task {label!r}; of all tasks only maps take a number, as in maps-16")
    return kind
