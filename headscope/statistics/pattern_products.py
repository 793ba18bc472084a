"""Inner products of attention maps, for every two heads."""

from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Float64, Num
from torch import Tensor

from headscope.heads import Site
from headscope.statistics import STATISTICS
from headscope.statistics.pair_sums import PairStatistic

__all__ = ["PatternProducts"]


@STATISTICS.register("pattern_products")
class PatternProducts(PairStatistic):
    """Σ over queries of ⟨pattern_a, pattern_b⟩, the product over keys.

    Args:
        scope: see `headscope.statistics.pair_sums.PairStatistic`.
    """

    def __init__(self, scope: str = "layer") -> None:
        super().__init__("pattern", scope)

    def side(self, site: Site, tensor: Tensor) -> Hashable:
        """Maps can be compared where queries and keys are the same."""
        return site.kind == "self", site.kind == "cross"

    def relate(self, parts: Sequence[Num[Tensor, "token _ _"]]) -> tuple[Float64[Tensor, "head head"], int]:
        """Products of float32 maps are summed over keys and queries in float64."""
        rows = torch.cat(list(parts), dim=1).transpose(0, 1).flatten(1).double()
        return rows @ rows.T, len(parts[0])
