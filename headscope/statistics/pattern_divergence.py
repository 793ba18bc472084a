"""Jensen–Shannon divergence of attention maps, for every two heads."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64, Num
from torch import Tensor

from headscope.statistics import STATISTICS
from headscope.statistics.grouped import GroupedStatistic
from headscope.statistics.pair_sums import PairBlocks

__all__ = ["PatternDivergence"]


@STATISTICS.register("pattern_divergence")
class PatternDivergence(GroupedStatistic):
    """Σ over queries of the Jensen–Shannon divergence of pattern_a and pattern_b, in bits.

    Where rows sum to less than 1 (a learned sink), what is missing counts as one more key. Divergences are taken in
    the maps' own precision, float32 at least, and summed in float64.

    Args:
        scope: see `headscope.statistics.grouped.GroupedStatistic`.
    """

    def __init__(self, scope: str = "layer") -> None:
        super().__init__("pattern", scope)

    def start(self) -> PairBlocks:
        """Sums of nothing."""
        return PairBlocks(self.relate)

    def relate(self, parts: Sequence[Num[Tensor, "token _ _"]]) -> tuple[Float64[Tensor, "head head"], int]:
        """JS = H(mean of the two) - mean of H, H the entropy."""
        rows = torch.cat(list(parts), dim=1)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32)).transpose(0, 1)
        rows = torch.cat([rows, (1 - rows.sum(-1, keepdim=True)).clamp(min=0)], dim=-1)
        alone = _entropies(rows)
        summed = rows.new_zeros(len(rows), len(rows), dtype=torch.float64)
        for head in range(len(rows) - 1):
            mixed = _entropies((rows[head] + rows[head + 1 :]) / 2)
            summed[head, head + 1 :] = mixed - (alone[head] + alone[head + 1 :]) / 2
        return (summed + summed.T) / math.log(2), len(parts[0])


def _entropies(rows: Float[Tensor, "head token key"]) -> Float64[Tensor, " head"]:
    """Σ over positions of the entropy over keys, in nats."""
    return -torch.xlogy(rows, rows).sum(-1, dtype=torch.float64).sum(-1)
