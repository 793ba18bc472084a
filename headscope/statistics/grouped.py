"""Statistics over sites that see the same positions: sums for each group of layers and each block of documents."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol, Self, TypeVar

from jaxtyping import Bool, Int
from torch import Tensor

from headscope.sites import Site
from headscope.statistics import Statistic
from headscope.statistics.arrivals import Arrivals, Together, side_of
from headscope.statistics.block_sums import head_rows

__all__ = ["GroupedStatistic", "Sums", "by_layer"]

T = TypeVar("T")


class Sums(Protocol):
    """What one group of layers has summed so far, for each block of documents."""

    def add(self, group: Together) -> None:
        """Take in the positions of one batch."""

    def merge(self, other: Any) -> None:
        """Add block to block."""

    def compute(self) -> list[Any]:
        """The value of each block: it has `n`, the positions that it is over, and can be added to another."""

    def state(self) -> dict[str, Tensor]:
        """The sums as named tensors."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""


class GroupedStatistic(Statistic):
    """Relates heads that see the same positions.

    Sites may run in any order: a batch's are kept until its end, and those that belong together are summed together.

    Args:
        of: the tensor that is summed.
        scope: "layer": heads of one layer (of two models) come together; "model": all that see the same positions.
    """

    def __init__(self, of: str, scope: str) -> None:
        self.of, self.scope = of, scope
        self._arrivals = Arrivals(scope)
        self._groups: dict[tuple[int, ...], Sums] = {}

    @abstractmethod
    def start(self) -> Sums:
        """The sums of a group that has seen nothing yet."""

    @property
    def needs(self) -> frozenset[str]:
        """The tensor that is summed."""
        return frozenset({self.of})

    def update(
        self,
        site: Site,
        tensors: Mapping[str, Tensor],
        kept: Bool[Tensor, "batch position"],
        block: Int[Tensor, " batch"],
    ) -> None:
        """Keep one site's tensor until the batch ends."""
        self._arrivals.take(site, side_of(site, self.of), head_rows(tensors[self.of], kept), kept, block)

    def end_batch(self) -> None:
        """Sum the sites of the batch that belong together."""
        for group in self._arrivals.release():
            self._sums(group.layers).add(group)

    def _sums(self, layers: tuple[int, ...]) -> Sums:
        if layers not in self._groups:
            self._groups[layers] = self.start()
        return self._groups[layers]

    def merge(self, other: Self) -> None:
        """Add block to block of each group.

        Raises:
            InputError: the other grouped its layers in another way.
        """
        self._arrivals.join(other._arrivals)
        for layers, sums in other._groups.items():
            self._sums(layers).merge(sums)

    def compute(self) -> dict[tuple[int, ...], list[Any]]:
        """For each group of layers, the value of each block over all their heads."""
        return {layers: self._groups[layers].compute() for layers in sorted(self._groups)}

    def state(self) -> dict[str, Tensor]:
        """LAYER-LAYER-….NAME for each tensor of a group's sums."""
        return {
            f"{'-'.join(map(str, layers))}.{name}": tensor
            for layers, sums in self._groups.items()
            for name, tensor in sums.state().items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        by_group: dict[tuple[int, ...], dict[str, Tensor]] = {}
        for name, tensor in state.items():
            group, _, own = name.partition(".")
            by_group.setdefault(tuple(map(int, group.split("-"))), {})[own] = tensor
        self._groups = {}
        self._arrivals = Arrivals(self.scope, list(by_group))
        for layers, own_state in by_group.items():
            self._sums(layers).load_state(own_state)


def by_layer(computed: Mapping[tuple[int, ...], T]) -> dict[int, T]:
    """What was computed with scope="layer" of one model, by the number of the layer.

    >>> by_layer({(0,): "first", (3,): "second"})
    {0: 'first', 3: 'second'}
    """
    return {layer: value for (layer,), value in computed.items()}
