"""Moments of heads, streamed: what pairs of heads need, and all that is said about single heads."""

from headscope.statistics import STATISTICS
from headscope.statistics.block_sums import BlockSums, source
from headscope.statistics.grouped import GroupedStatistic
from headscope.uncertainty.blocks import N_BLOCKS

__all__ = ["SummedMoments"]


@STATISTICS.register("moments")
class SummedMoments(GroupedStatistic):
    """Moments over the heads of each group of layers, for each block of documents.

    The two sides of an encoder-decoder are told apart and kept apart. Memory: half of (D + N)² float64 for D dimensions
    of N heads that come together, a block, whatever the length of the text; and the positions of each block that wait
    for others, up to a fixed number.

    Args:
        of: what is summed: "gated_z" (what enters the output projection, = z where nothing stands between), "z", "q",
            "k", "v", "written", or "contribution" (the width of the model for every head, and it costs its square).
        scope: see `headscope.statistics.grouped.GroupedStatistic`.
        blocks: how many blocks documents are counted in; 1 keeps one sum, from which no interval can be made.
    """

    def __init__(self, of: str = "gated_z", scope: str = "layer", blocks: int = N_BLOCKS) -> None:
        super().__init__(source(of), scope)
        self.blocks = blocks

    def start(self) -> BlockSums:
        """Moments of nothing."""
        return BlockSums(self.blocks)
