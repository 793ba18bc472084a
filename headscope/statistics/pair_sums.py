"""Sums with one number for every two heads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Float64, Num
from torch import Tensor

from headscope.statistics.arrivals import Together
from headscope.uncertainty.blocks import N_BLOCKS

__all__ = ["PairBlocks", "PairSums", "Relate"]

Relate = Callable[[Sequence[Num[Tensor, "token _ _"]]], tuple[Float64[Tensor, "head head"], int]]


@dataclass(frozen=True, eq=False)
class PairSums:
    """A sum over positions for every two heads.

    Attributes:
        values: (head, head) the sum.
        n: how many positions were summed.
    """

    values: Float[np.ndarray, "head head"]
    n: int

    def __add__(self, other: Self) -> Self:
        """The sum over both texts."""
        return type(self)(self.values + other.values, self.n + other.n)

    def cosine(self) -> Float[np.ndarray, "head head"]:
        """values_ab / sqrt(values_aa values_bb), for sums of inner products.

        Returns:
            (head, head), no unit, in [-1, 1]; NaN in row and column of a head whose product with itself is not above 0.

        >>> PairSums(np.array([[4.0, 3.0], [3.0, 9.0]]), 10).cosine()
        array([[1. , 0.5],
               [0.5, 1. ]])
        """
        own = self.values.diagonal()
        scale = np.sqrt(np.where(own > 0, own, np.nan))
        return np.asarray(self.values / scale[:, None] / scale)


class PairBlocks:
    """`PairSums` of one group of layers, for each block of documents.

    Args:
        relate: from the rows of one site after another, of the same positions and all of one block of documents, the
            sum over them for every two heads, and how many positions it is over.
    """

    def __init__(self, relate: Relate) -> None:
        self._relate = relate
        self._blocks: dict[int, PairSums] = {}

    def add(self, group: Together) -> None:
        """Take in the positions of one batch."""
        for number, parts in group.by_block(N_BLOCKS):
            values, n = self._relate(parts)
            self._add(number, PairSums(values.cpu().numpy(), n))

    def _add(self, number: int, sums: PairSums) -> None:
        self._blocks[number] = self._blocks[number] + sums if number in self._blocks else sums

    def merge(self, other: Self) -> None:
        """Add block to block."""
        for number, sums in other._blocks.items():
            self._add(number, sums)

    def compute(self) -> list[PairSums]:
        """The sums of each block; n = 0 in an empty one."""
        nothing = PairSums(np.zeros_like(next(iter(self._blocks.values())).values), 0)
        return [self._blocks.get(number, nothing) for number in range(N_BLOCKS)]

    def state(self) -> dict[str, Tensor]:
        """BLOCK.values (head, head) and BLOCK.n ()."""
        state: dict[str, Tensor] = {}
        for number, sums in self._blocks.items():
            state |= {f"{number}.values": torch.from_numpy(sums.values), f"{number}.n": torch.tensor(sums.n)}
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        numbers = [name.removesuffix(".n") for name in state if name.endswith(".n")]
        self._blocks = {
            int(number): PairSums(state[f"{number}.values"].numpy(), int(state[f"{number}.n"])) for number in numbers
        }
