"""Moments of all heads of a model together: what pairs of heads in different layers need."""

from collections.abc import Mapping
from itertools import combinations_with_replacement
from typing import NamedTuple, Self

import torch
from jaxtyping import Bool, Float64, Int, Num
from torch import Tensor

from headscope.heads import Site
from headscope.statistics import STATISTICS, Statistic
from headscope.statistics.moments import Moments, head_rows, lift, shift_rows, source

__all__ = ["CrossMoments"]


class _Arrived(NamedTuple):
    """One site's positions that count, waiting for the other sites of the batch."""

    is_self: bool
    kept: Bool[Tensor, "batch position"]
    rows: Num[Tensor, "token head dim"]

    def fits(self, other: "_Arrived") -> bool:
        """Whether both hold the same positions: "self" sites see an encoder's, the others a decoder's."""
        return self.is_self == other.is_self and torch.equal(self.kept, other.kept)


@STATISTICS.register("cross_moments")
class CrossMoments(Statistic):
    """Moments over the heads of every site, one total over the whole text.

    Sites may run in any order: a batch's are kept until its end, then every two are multiplied. Sums are held for
    layer pairs a ≤ b only, in float64: half of (D + N)² numbers for D dimensions of N heads in all; `compute` lays out
    the whole square beside them. Documents are not told apart (ten squares would not fit), so there is no interval.

    Args:
        of: what is summed; see `headscope.statistics.moments.MomentsStatistic`.
    """

    def __init__(self, of: str = "gated_z") -> None:
        self.of = source(of)
        self._pivot: dict[int, Float64[Tensor, "head dim"]] = {}
        self._sum: dict[tuple[int, int], Float64[Tensor, "row row_b"]] = {}
        self._batch: dict[int, _Arrived] = {}

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
        rows = head_rows(tensors[self.of], kept)
        if len(rows):
            self._batch[site.layer] = _Arrived(site.kind == "self", kept, rows)

    def end_batch(self) -> None:
        """Multiply every two sites of the batch that saw the same positions."""
        lifted = {}
        for layer, arrived in self._batch.items():
            pivot = self._pivot.setdefault(layer, arrived.rows.double().mean(0))
            lifted[layer] = lift(arrived.rows, pivot.to(arrived.rows.device))
        for a, b in combinations_with_replacement(sorted(lifted), 2):
            if self._batch[a].fits(self._batch[b]):
                self._add((a, b), lifted[a], lifted[b].to(lifted[a].device))
        self._batch = {}

    def _add(self, pair: tuple[int, int], left: Tensor, right: Tensor) -> None:
        held = self._sum.get(pair)
        self._sum[pair] = left.T @ right if held is None else torch.addmm(held.to(left.device), left.T, right)

    def merge(self, other: Self) -> None:
        """Add pair to pair, the other's moved to the pivots held here."""
        for layer, pivot in other._pivot.items():
            self._pivot.setdefault(layer, pivot)
        for (a, b), moments in other._sum.items():
            for layer in (a, b):
                delta = other._pivot[layer] - self._pivot[layer].to(moments.device)
                moments = shift_rows(moments, [delta.shape[1]] * len(delta), delta.flatten()).T
            held = self._sum.get((a, b))
            self._sum[a, b] = moments if held is None else held + moments.to(held.device)

    def compute(self) -> Moments:
        """Moments over all heads, layer after layer, on the CPU.

        Pairs of layers that did not see the same positions in every batch (encoder and decoder) are in different
        groups, and what would relate them is NaN.
        """
        group = self._groups()
        dims = {layer: (self._pivot[layer].shape[1],) * len(self._pivot[layer]) for layer in group}
        rows = _rows(dims, group)
        size = sum(map(len, rows.values())) - len(group) + len({*group.values()})
        gram = torch.full((size, size), torch.nan, dtype=torch.float64)
        for (a, b), moments in self._sum.items():
            if group[a] == group[b]:
                gram[rows[a][:, None], rows[b]] = moments.cpu()
                gram[rows[b][:, None], rows[a]] = moments.cpu().T
        pivot = torch.cat([gram.new_empty(0), *(self._pivot[layer].flatten().cpu() for layer in group)])
        of_head = tuple(group[layer] for layer in group for _ in dims[layer])
        return Moments(tuple(dim for own in dims.values() for dim in own), pivot, gram, of_head)

    def _groups(self) -> dict[int, int]:
        """For each layer, in order, the number of its group: layers that always saw the same positions share one."""
        group: dict[int, int] = {}
        for layer in sorted(self._pivot):
            company = (group[other] for other in group if self._together(other, layer))
            group[layer] = next(company, len({*group.values()}))
        return group

    def _together(self, a: int, b: int) -> bool:
        """Whether two layers saw the same positions in every batch: as many in their product as in each alone."""
        pair = self._sum.get((a, b))
        return pair is not None and float(pair[-1, -1]) == self._count(a) == self._count(b)

    def _count(self, layer: int) -> float:
        return float(self._sum[layer, layer][-1, -1])

    def state(self) -> dict[str, Tensor]:
        """LAYER.pivot (head, dim), and LAYER.LAYER.gram for each pair that met."""
        state = {f"{layer}.pivot": pivot.cpu().contiguous() for layer, pivot in self._pivot.items()}
        return state | {f"{a}.{b}.gram": moments.cpu().contiguous() for (a, b), moments in self._sum.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self._pivot, self._sum, self._batch = {}, {}, {}
        for name, tensor in state.items():
            *layers, what = name.split(".")
            if what == "pivot":
                self._pivot[int(layers[0])] = tensor
            else:
                self._sum[int(layers[0]), int(layers[1])] = tensor


def _rows(dims: Mapping[int, tuple[int, ...]], group: Mapping[int, int]) -> dict[int, Int[Tensor, " row"]]:
    """Where a layer's [x ; s ; 1] lies in the sum over all heads."""
    n_dims, n_heads = sum(map(sum, dims.values())), sum(map(len, dims.values()))
    rows, dim, head = {}, 0, n_dims
    for layer, own in dims.items():
        one = n_dims + n_heads + group[layer]
        rows[layer] = torch.tensor([*range(dim, dim + sum(own)), *range(head, head + len(own)), one])
        dim, head = dim + sum(own), head + len(own)
    return rows
