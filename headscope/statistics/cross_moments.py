"""Moments of heads of several layers together: what pairs of heads in different layers need."""

from collections.abc import Mapping
from typing import Self

from jaxtyping import Bool, Int
from torch import Tensor

from headscope.heads import Site
from headscope.statistics import N_BLOCKS, STATISTICS, Statistic
from headscope.statistics.arrivals import Arrivals, key_side
from headscope.statistics.block_sums import BlockSums, head_rows, source
from headscope.statistics.moments import Moments

__all__ = ["CrossMoments"]


@STATISTICS.register("cross_moments")
class CrossMoments(Statistic):
    """Moments over the heads of every site that sees the same positions, for each block of documents.

    Sites may run in any order: a batch's are kept until its end, then all are multiplied with each other. The two sides
    of an encoder-decoder are told apart and kept apart. Memory: half of (D + N)² float64 for D dimensions of N heads in
    all, a block.

    Args:
        of: what is summed; see `headscope.statistics.layer_moments.LayerMoments`.
        scope: "model": all sites come together; "layer": those of one layer, which are several where two models are
            watched.
        blocks: how many blocks documents are counted in; 1 keeps one sum, from which no interval can be made.
    """

    def __init__(self, of: str = "gated_z", scope: str = "model", blocks: int = N_BLOCKS) -> None:
        self.of, self.scope, self.blocks = source(of), scope, blocks
        self._groups: dict[tuple[int, ...], BlockSums] = {}
        self._arrivals = Arrivals(scope)

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
        self._arrivals.take(site, key_side(site, self.of), head_rows(tensors[self.of], kept), kept, block)

    def end_batch(self) -> None:
        """Multiply all sites of the batch that saw the same positions."""
        for group in self._arrivals.release():
            self._groups.setdefault(group.layers, BlockSums(self.blocks)).add(group)

    def merge(self, other: Self) -> None:
        """Add block to block, the other's moved to the pivots held here.

        Raises:
            InputError: the other grouped its layers in another way.
        """
        self._arrivals.join(other._arrivals)
        for layers, sums in other._groups.items():
            self._groups.setdefault(layers, BlockSums(self.blocks)).merge(sums)

    def compute(self) -> dict[tuple[int, ...], list[Moments]]:
        """For each group of layers that see the same positions, Moments of each block over all their heads."""
        return {layers: sums.compute() for layers, sums in self._groups.items()}

    def state(self) -> dict[str, Tensor]:
        """LAYER-LAYER-….NAME for each tensor of a group's `BlockSums`."""
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
        self._groups = {layers: BlockSums(self.blocks) for layers in by_group}
        self._arrivals.groups = list(by_group)
        for layers, sums in self._groups.items():
            sums.load_state(by_group[layers])
