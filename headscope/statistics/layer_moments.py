"""Moments of each layer's heads: what pairs of heads of one layer need, and all that is said about single heads."""

from collections.abc import Mapping
from typing import Self

from jaxtyping import Bool, Int
from torch import Tensor

from headscope.heads import Site
from headscope.statistics import N_BLOCKS, STATISTICS, Statistic
from headscope.statistics.arrivals import Together
from headscope.statistics.block_sums import BlockSums, head_rows, source
from headscope.statistics.moments import Moments

__all__ = ["LayerMoments"]


@STATISTICS.register("moments")
class LayerMoments(Statistic):
    """Moments of each layer's heads, for each block of documents.

    Memory: half of N_BLOCKS (D + N + 1)² float64 a layer, whatever the length of the text.

    Args:
        of: what is summed: "gated_z" (what enters the output projection, = z where nothing stands between), "z", "q",
            "k", "v" or "contribution" (which has the width of the model for every head, and costs its square).
    """

    def __init__(self, of: str = "gated_z") -> None:
        self.of = source(of)
        self._layers: dict[int, BlockSums] = {}

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
        """Take in one site's tensor; positions that are not kept do not count, whatever they hold."""
        rows = head_rows(tensors[self.of], kept)
        if len(rows):
            sums = self._layers.setdefault(site.layer, BlockSums(N_BLOCKS))
            sums.add(Together((site.layer,), [rows], block.repeat_interleave(kept.sum(1))))

    def merge(self, other: Self) -> None:
        """Add block to block; where the pivots differ, the other's sums are moved to this one's."""
        for layer, sums in other._layers.items():
            self._layers.setdefault(layer, BlockSums(N_BLOCKS)).merge(sums)

    def compute(self) -> dict[int, list[Moments]]:
        """By layer, Moments of each block, on the CPU: n = 0 in an empty one. A layer without a token has no entry."""
        return {layer: self._layers[layer].compute() for layer in sorted(self._layers)}

    def state(self) -> dict[str, Tensor]:
        """LAYER.NAME for each tensor of the layer's `BlockSums`."""
        return {f"{layer}.{name}": t for layer, sums in self._layers.items() for name, t in sums.state().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        by_layer: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            layer, _, own = name.partition(".")
            by_layer.setdefault(int(layer), {})[own] = tensor
        self._layers = {layer: BlockSums(N_BLOCKS) for layer in by_layer}
        for number, sums in self._layers.items():
            sums.load_state(by_layer[number])
