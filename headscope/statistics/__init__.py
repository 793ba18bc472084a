"""Statistics: sums that stream over text in one pass, in bounded memory, and merge.

A statistic is fed by `headscope.watching.observation.observe`; measures and scores are pure functions of what it
computes. No statistic sees a model. A new one is one new file in this folder.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

from jaxtyping import Bool, Int
from torch import Tensor

from headscope._support.registry import Registry
from headscope.sites import Site
from headscope.text.batches import Batch

__all__ = ["STATISTICS", "Statistic"]


class Statistic(ABC):
    """Sums over the positions that count.

    Two statistics of one class and settings that saw disjoint text can be merged; the result equals one pass over
    both, up to rounding.
    """

    @property
    @abstractmethod
    def needs(self) -> frozenset[str]:
        """Names of the tensors it is fed: of "q", "k", "v", "pattern", "z", "gated_z", "contribution"."""

    def begin_batch(self, batch: Batch) -> None:
        """Called before each forward pass with what the model is given; for statistics that look at tokens."""

    @abstractmethod
    def update(
        self,
        site: Site,
        tensors: Mapping[str, Tensor],
        kept: Bool[Tensor, "batch position"],
        block: Int[Tensor, " batch"],
    ) -> None:
        """Take in one site's tensors of one batch.

        Args:
            site: where they come from.
            tensors: by name, each (batch, head, position, …); see design of `headscope.capture`.
            kept: which positions count (not padding, not skipped).
            block: block of documents of each row, 0 to N_BLOCKS - 1.
        """

    def end_batch(self) -> None:
        """Called after the last site of each batch; for statistics that relate sites to each other."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add the sums of `other`, which saw other text."""

    @abstractmethod
    def compute(self) -> Any:
        """What measures and scores get: a value that holds no reference to a model."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """The sums as named tensors, ready for safetensors."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the sums from `state`, dropping those held."""


STATISTICS: Registry[Statistic] = Registry("statistic", "headscope.statistics")
