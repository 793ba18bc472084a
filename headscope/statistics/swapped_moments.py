"""Moments of heads beside those of other documents: what numbers of pairs are where the position alone is shared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from headscope._support.formatting import brief_list
from headscope.sites import Site
from headscope.statistics import STATISTICS, Statistic
from headscope.statistics.block_sums import Rows, add_products, head_rows, lift, source
from headscope.statistics.moments import Moments, panel_edges
from headscope.text.batches import Batch, document_ids

__all__ = ["Swapped", "SwappedMoments", "has_pairs", "why_no_chance"]

_HALVES = 2


@dataclass(frozen=True, eq=False)
class Swapped:
    """What heads are by themselves, and what each shares with the others as they are in another document.

    Attributes:
        own: moments over the positions of all pairs of rows, both rows of each.
        crossed: Σ u u'ᵀ, u of one row of a pair and u' of the other at the same position, both ways round: symmetric,
            and read as `Moments` are.
    """

    own: Moments
    crossed: Moments

    @property
    def n(self) -> int:
        """How many positions were summed."""
        return self.own.n

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return replace(self, own=self.own.to(device), crossed=self.crossed.to(device))

    @property
    def of_strangers(self) -> Moments:
        """Moments as of heads that each saw another document: their own of each head, the crossed ones of every two.

        Only what is said of heads two by two may be read off it.
        """
        panels = [panel.clone() for panel in self.crossed.panels]
        slices, edges = self.own.slices, panel_edges(self.own.dims)
        for panel, held, (a, b) in zip(panels, self.own.panels, pairwise(edges), strict=False):
            for head in range(a, b):
                start, dim = slices[head].start - slices[a].start, self.own.dims[head]
                square = slice(start, start + dim)
                panel[square, square] = held[square, square]
                # Σ x s of one head stands in its rows, at the column of its own s
                beside = sum(self.own.dims) - slices[a].start + head
                panel[square, beside] = held[square, beside]
        tail = torch.arange(len(self.own.dims))
        panels[-1][tail, tail] = self.own.panels[-1][tail, tail]
        return replace(self.own, panels=tuple(panels))

    def __add__(self, other: Self) -> Self:
        """Over both sets of pairs."""
        return replace(self, own=self.own + other.own, crossed=self.crossed + other.crossed)

    @classmethod
    def of_rows(cls, one: Rows, other: Rows, pivot: Float64[Tensor, " dim"]) -> Self:
        """Of positions of one document and the same positions of another, (token, head, dim) each.

        With p = u + u' and q = u - u', Σ u uᵀ + u' u'ᵀ is half of Σ p pᵀ + q qᵀ, and Σ u u'ᵀ + u' uᵀ half of their
        difference: both for the work of one.
        """
        dims = (one.shape[2],) * one.shape[1]
        u, v = (lift([side], pivot) for side in (one, other))
        p, q = (_products(dims, pivot, lifted) for lifted in (u + v, u - v))
        summed = [[(a + sign * b) / 2 for a, b in zip(p.panels, q.panels, strict=True)] for sign in (1, -1)]
        return cls(*(replace(p, panels=tuple(panels)) for panels in summed))


def _products(dims: tuple[int, ...], pivot: Float64[Tensor, " dim"], lifted: Float64[Tensor, "token row"]) -> Moments:
    empty = Moments.empty(dims, pivot)
    summed = replace(empty, panels=tuple(panel.new_zeros(panel.shape) for panel in empty.panels))
    add_products(summed, lifted)
    return summed


@STATISTICS.register("swapped_moments")
class SwappedMoments(Statistic):
    """`Swapped` moments of each layer, in two halves that have no document in common.

    Rows of one batch that are of different documents are paired, each row once, where their blocks of documents are
    both even or both odd, which makes the halves; a position counts where it does in both rows. Batches of few rows
    may make no pair. Memory: twice the moments of a layer, in two halves.

    Args:
        of: what is summed; see `headscope.statistics.summed_moments.SummedMoments`.
    """

    def __init__(self, of: str = "gated_z") -> None:
        self.of = source(of)
        self._documents: Int[Tensor, " batch"] = torch.zeros(0, dtype=torch.long)
        self._sums: dict[int, list[Swapped]] = {}

    @property
    def needs(self) -> frozenset[str]:
        """The tensor that is summed."""
        return frozenset({self.of})

    def begin_batch(self, batch: Batch) -> None:
        """Learn the documents of its rows."""
        ((_, self._documents),) = document_ids([batch])

    def update(
        self,
        site: Site,
        tensors: Mapping[str, Tensor],
        kept: Bool[Tensor, "batch position"],
        block: Int[Tensor, " batch"],
    ) -> None:
        """Take in one site's tensor. Rows that are not those of the batch make no pair: their document is not known."""
        if len(kept) != len(self._documents):
            return
        for half in range(_HALVES):
            free = (kept.any(1) & (block % _HALVES == half)).nonzero().flatten()
            sides = [free[list(side)] for side in _pairs(self._documents[free].tolist())]
            both = kept[sides[0]] & kept[sides[1]]
            if bool(both.any()):
                tensor = tensors[self.of]
                self._add(site.layer, half, [head_rows(tensor[side.to(tensor.device)], both) for side in sides])

    def _add(self, layer: int, half: int, rows: Sequence[Rows]) -> None:
        held = self._sums.get(layer)
        pivot = rows[0].double().mean(0).flatten() if held is None else held[0].own.pivot.to(rows[0].device)
        self._put(layer, half, Swapped.of_rows(rows[0], rows[1], pivot))

    def _put(self, layer: int, half: int, more: Swapped) -> None:
        nothing = Moments.empty(more.own.dims, more.own.pivot)
        halves = self._sums.setdefault(layer, [Swapped(nothing, nothing)] * _HALVES)
        halves[half] = halves[half] + more

    def merge(self, other: Self) -> None:
        """Add half to half of each layer."""
        for layer, halves in other._sums.items():
            for half, theirs in enumerate(halves):
                self._put(layer, half, theirs)

    def compute(self) -> dict[int, list[Swapped]]:
        """By layer, both halves, on the CPU; n = 0 in an empty one. A layer without a pair is left out."""
        return {layer: [half.to("cpu") for half in self._sums[layer]] for layer in sorted(self._sums)}

    def state(self) -> dict[str, Tensor]:
        """LAYER.HALF.pivot, LAYER.HALF.dims, LAYER.HALF.own.PANEL and LAYER.HALF.crossed.PANEL."""
        state: dict[str, Tensor] = {}
        for layer, halves in self._sums.items():
            for number, half in enumerate(halves):
                own = f"{layer}.{number}"
                state |= {f"{own}.pivot": half.own.pivot.cpu().clone(), f"{own}.dims": torch.tensor(half.own.dims)}
                for name, moments in (("own", half.own), ("crossed", half.crossed)):
                    state |= {f"{own}.{name}.{place}": panel.cpu() for place, panel in enumerate(moments.panels)}
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self._sums = {}
        for name in [name for name in state if name.endswith(".pivot")]:
            own = name.removesuffix(".pivot")
            layer, half = map(int, own.split("."))
            empty = Moments.empty(tuple(state[f"{own}.dims"].tolist()), state[name])
            parts = [
                replace(empty, panels=tuple(state[f"{own}.{part}.{place}"] for place in range(len(empty.panels))))
                for part in ("own", "crossed")
            ]
            self._put(layer, half, Swapped(*parts))


def has_pairs(halves: Sequence[Swapped]) -> bool:
    """Whether both halves of a layer hold a pair of documents, so that each can be judged by the other."""
    return bool(halves) and all(half.n for half in halves)


def why_no_chance(layers: Sequence[int], computed: Mapping[int, Sequence[Swapped]]) -> str | None:
    """Why numbers of some of these layers stand beside no chance, in words; None where all do.

    Args:
        layers: numbers of the layers.
        computed: what `SwappedMoments` computed.
    """
    without = [layer for layer in layers if not has_pairs(computed.get(layer, ()))]
    if not without:
        return None
    which = "" if len(without) == len(layers) else f"for layers {brief_list([*map(str, without)])}: "
    return which + "no two documents of a batch could be paired; give batches of four documents or more"


def _pairs(documents: Sequence[int]) -> tuple[list[int], list[int]]:
    """Places of rows and of their partners: each row with the next one that is free and of another document.

    >>> _pairs([7, 7, 8, 9, 9])
    ([0, 1], [2, 3])
    """
    free, pairs = list(range(len(documents))), []
    while free:
        row = free.pop(0)
        other = next((one for one in free if documents[one] != documents[row]), None)
        if other is not None:
            free.remove(other)
            pairs.append((row, other))
    return [row for row, _ in pairs], [other for _, other in pairs]
