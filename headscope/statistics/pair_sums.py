"""Sums with one number for every two heads, and the statistics that stream them."""

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Num
from torch import Tensor

from headscope.heads import Site
from headscope.statistics import N_BLOCKS, Statistic
from headscope.statistics.arrivals import Arrivals, Together
from headscope.statistics.block_sums import head_rows

__all__ = ["PairStatistic", "PairSums"]


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


class PairStatistic(Statistic):
    """One number for every two heads that see the same positions, summed for each block of documents.

    Args:
        of: the tensor that it is made of.
        scope: "layer": heads of one layer; "model": all that see the same positions.
    """

    def __init__(self, of: str, scope: str = "layer") -> None:
        self.of, self.scope = of, scope
        self._arrivals = Arrivals(scope)
        self._sums: dict[tuple[int, ...], dict[int, PairSums]] = {}

    @property
    def needs(self) -> frozenset[str]:
        """The tensor that it is made of."""
        return frozenset({self.of})

    @abstractmethod
    def side(self, site: Site, tensor: Tensor) -> Hashable:
        """What tells apart sites that must not be related."""

    @abstractmethod
    def relate(self, parts: Sequence[Num[Tensor, "token _ _"]]) -> tuple[Float64[Tensor, "head head"], int]:
        """The sum over some positions, and how many of them it is over.

        Args:
            parts: the rows of one site after another, of the same positions, all of one block of documents.
        """

    def update(
        self,
        site: Site,
        tensors: Mapping[str, Tensor],
        kept: Bool[Tensor, "batch position"],
        block: Int[Tensor, " batch"],
    ) -> None:
        """Keep one site's tensor until the batch ends."""
        tensor = tensors[self.of]
        self._arrivals.take(site, self.side(site, tensor), head_rows(tensor, kept), kept, block)

    def end_batch(self) -> None:
        """Relate all sites of the batch that belong together."""
        for group in self._arrivals.release():
            self._add(group)

    def _add(self, group: Together) -> None:
        held = self._sums.setdefault(group.layers, {})
        for number, parts in group.by_block(N_BLOCKS):
            values, n = self.relate(parts)
            made = PairSums(values.cpu().numpy(), n)
            held[number] = held[number] + made if number in held else made

    def merge(self, other: Self) -> None:
        """Add block to block.

        Raises:
            InputError: the other grouped its layers in another way.
        """
        self._arrivals.join(other._arrivals)
        for layers, blocks in other._sums.items():
            held = self._sums.setdefault(layers, {})
            for number, sums in blocks.items():
                held[number] = held[number] + sums if number in held else sums

    def compute(self) -> dict[tuple[int, ...], list[PairSums]]:
        """For each group of layers, the sums of each block over all their heads; n = 0 in an empty one."""
        computed = {}
        for layers, blocks in self._sums.items():
            nothing = PairSums(np.zeros_like(next(iter(blocks.values())).values), 0)
            computed[layers] = [blocks.get(number, nothing) for number in range(N_BLOCKS)]
        return computed

    def state(self) -> dict[str, Tensor]:
        """LAYER-LAYER-….BLOCK.values (head, head) and .n ()."""
        state: dict[str, Tensor] = {}
        for layers, blocks in self._sums.items():
            for number, sums in blocks.items():
                name = f"{'-'.join(map(str, layers))}.{number}"
                state |= {f"{name}.values": torch.from_numpy(sums.values), f"{name}.n": torch.tensor(sums.n)}
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self._sums = {}
        for name, tensor in state.items():
            group, number, what = name.split(".")
            if what == "values":
                sums = PairSums(tensor.numpy(), int(state[f"{group}.{number}.n"]))
                self._sums.setdefault(tuple(map(int, group.split("-"))), {})[int(number)] = sums
        self._arrivals.groups = list(self._sums)
