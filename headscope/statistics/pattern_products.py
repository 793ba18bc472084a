"""Inner products of attention maps, for every two heads."""

from collections.abc import Sequence

import torch
from jaxtyping import Float64, Num
from torch import Tensor

from headscope.statistics import STATISTICS
from headscope.statistics.grouped import GroupedStatistic
from headscope.statistics.pair_sums import PairBlocks

__all__ = ["PatternProducts"]


@STATISTICS.register("pattern_products")
class PatternProducts(GroupedStatistic):
    """Σ over queries of ⟨pattern_a, pattern_b⟩, the product over keys.

    Args:
        scope: see `headscope.statistics.grouped.GroupedStatistic`.
    """

    def __init__(self, scope: str = "layer") -> None:
        super().__init__("pattern", scope)

    def start(self) -> PairBlocks:
        """Sums of nothing."""
        return PairBlocks(self.relate)

    def relate(self, parts: Sequence[Num[Tensor, "token _ _"]]) -> tuple[Float64[Tensor, "head head"], int]:
        """Products of float32 maps are summed over keys and queries in float64."""
        rows = torch.cat(list(parts), dim=1).transpose(0, 1).flatten(1).double()
        return rows @ rows.T, len(parts[0])
