"""Means of what heads hand to the output projection: what ablation by the mean puts in their place."""

from collections.abc import Mapping
from typing import Self

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from headscope.sites import Site
from headscope.statistics import STATISTICS, Statistic
from headscope.statistics.block_sums import head_rows

__all__ = ["Means"]


@STATISTICS.register("means")
class Means(Statistic):
    """Mean of gated_z over the positions that count, for every head; float64."""

    def __init__(self) -> None:
        self._sum: dict[int, Float64[Tensor, "head value_dim"]] = {}
        self._count: dict[int, int] = {}

    @property
    def needs(self) -> frozenset[str]:
        """What enters the output projection."""
        return frozenset({"gated_z"})

    def update(
        self,
        site: Site,
        tensors: Mapping[str, Tensor],
        kept: Bool[Tensor, "batch position"],
        block: Int[Tensor, " batch"],
    ) -> None:
        """Take in one site's tensor; positions that are not kept do not count, whatever they hold."""
        rows = head_rows(tensors["gated_z"], kept)
        if len(rows):
            self._add(site.layer, rows.double().sum(0), len(rows))

    def merge(self, other: Self) -> None:
        """Add the other's sums and counts."""
        for layer, summed in other._sum.items():
            self._add(layer, summed, other._count[layer])

    def _add(self, layer: int, summed: Float64[Tensor, "head value_dim"], count: int) -> None:
        held = self._sum.get(layer)
        self._sum[layer] = summed if held is None else held.to(summed.device) + summed
        self._count[layer] = self._count.get(layer, 0) + count

    def compute(self) -> dict[int, Float64[Tensor, "head value_dim"]]:
        """By layer, (head, value_dim), on the CPU; a layer without a token is left out."""
        return {layer: (self._sum[layer] / self._count[layer]).cpu() for layer in sorted(self._sum)}

    def state(self) -> dict[str, Tensor]:
        """LAYER.sum (head, value_dim) and LAYER.count ()."""
        state = {f"{layer}.sum": summed.cpu() for layer, summed in self._sum.items()}
        return state | {f"{layer}.count": torch.tensor(count) for layer, count in self._count.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self._sum = {int(name[:-4]): tensor for name, tensor in state.items() if name.endswith(".sum")}
        self._count = {int(name[:-6]): int(tensor) for name, tensor in state.items() if name.endswith(".count")}
