"""Moments while they are summed: one set of sums for each block of documents, added to in place."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Self

import torch
from jaxtyping import Bool, Float64, Num
from torch import Tensor

from headscope.errors import UnknownNameError
from headscope.statistics.arrivals import Together
from headscope.statistics.moments import Moments, panel_edges

__all__ = ["SOURCES", "BlockSums", "Rows", "add_products", "head_rows", "lift", "source"]

SOURCES = ("gated_z", "z", "q", "k", "v", "contribution", "written")

_LEAF = 192  # rows of the squares on the diagonal that are multiplied whole
_LINE = 8  # float64 numbers in a cache line: products of rows that start anywhere else take up to a fifth longer
_WAIT = 512  # positions that wait for each other: a product of fewer spends its time on reading and writing the sums

Rows = Num[Tensor, "token _ _"]


def source(of: str) -> str:
    """The name itself, if it is of a tensor whose positions can be summed over.

    Raises:
        UnknownNameError: it is not.
    """
    if of not in SOURCES:
        raise UnknownNameError(f"there are no moments of {of!r}; there are of: {', '.join(SOURCES)}")
    return of


def head_rows(tensor: Num[Tensor, "batch head position dim"], kept: Bool[Tensor, "batch position"]) -> Rows:
    """The positions that count, one after another, row by row."""
    if tensor.device.type == "mps":
        tensor = tensor.cpu()  # MPS has no float64
    rows = tensor.detach().transpose(1, 2)
    return rows.flatten(0, 1) if bool(kept.all()) else rows[kept.to(tensor.device)]


def lift(parts: Sequence[Rows], pivot: Float64[Tensor, " all_dims"]) -> Float64[Tensor, "token row"]:
    """u = [x ; s ; 1] of every position, float64; parts: of one site after another, of the same positions."""
    n_tokens, n_heads = len(parts[0]), sum(part.shape[1] for part in parts)
    width = len(pivot) + n_heads + 1
    lifted = pivot.new_empty(n_tokens, -(-width // _LINE) * _LINE)[:, :width]
    dim, head = 0, len(pivot)
    for part in parts:
        size = part.shape[1] * part.shape[2]
        x = lifted[:, dim : dim + size].unflatten(1, part.shape[1:])
        x.copy_(part).sub_(pivot[dim : dim + size].unflatten(0, part.shape[1:]))
        lifted[:, head : head + part.shape[1]] = torch.linalg.vecdot(x, x)
        dim, head = dim + size, head + part.shape[1]
    lifted[:, -1] = 1
    return lifted


class BlockSums:
    """Moments of heads that are seen at the same positions, for each block of documents.

    All blocks share one pivot, the heads' mean over the first positions that are added. What was handed out by
    `compute` stays as it was: a block is copied before it is added to again.

    Args:
        n_blocks: how many blocks.
    """

    def __init__(self, n_blocks: int) -> None:
        self._n_blocks = n_blocks
        self._blocks: list[Moments] = []
        self._ours = [False] * n_blocks  # whether the block's tensors are in no one else's hands
        self._waiting: list[list[list[Rows]]] = [[] for _ in range(n_blocks)]

    def add(self, group: Together) -> None:
        """Take in the positions of one batch."""
        if not self._blocks:
            first = torch.cat([part.double().mean(0).flatten() for part in group.parts])
            self._start(tuple(part.shape[2] for part in group.parts for _ in range(part.shape[1])), first)
        for number, own in group.by_block(self._n_blocks):
            waiting = self._waiting[number]
            waiting.append(own)
            if sum(len(parts[0]) for parts in waiting) >= _WAIT:
                self._flush(number)
            elif own[0] is group.parts[0]:
                waiting[-1] = [part.clone() for part in own]  # else a view keeps the whole tensor alive

    def _flush(self, number: int) -> None:
        waiting, self._waiting[number] = self._waiting[number], []
        if waiting:
            parts = [torch.cat(rows) if len(rows) > 1 else rows[0] for rows in zip(*waiting, strict=True)]
            block = self._writable(number, parts[0].device)
            add_products(block, lift(parts, block.pivot))

    def _start(self, dims: tuple[int, ...], pivot: Float64[Tensor, " dim"]) -> None:
        self._blocks = [Moments.empty(dims, pivot)] * self._n_blocks

    def _writable(self, number: int, device: torch.device) -> Moments:
        block = self._blocks[number]
        if not self._ours[number] or block.pivot.device != device:
            panels = tuple(
                panel.to(device, copy=True) if block.n else panel.new_zeros(panel.shape, device=device)
                for panel in block.panels
            )
            self._blocks[number] = Moments(block.dims, block.pivot.to(device), panels)
            self._ours[number] = True
        return self._blocks[number]

    def merge(self, other: Self) -> None:
        """Add block to block; where the pivots differ, the other's sums are moved to this one's."""
        if not other._blocks:
            return
        if not self._blocks:
            self._start(other._blocks[0].dims, other._blocks[0].pivot)
        ours = self.compute()
        for number, block in enumerate(other.compute()):
            if block.n:
                own = ours[number]
                moved = block.to(own.pivot.device)
                moved = moved if torch.equal(moved.pivot, own.pivot) else moved.about(own.pivot)
                panels = tuple(a + b for a, b in zip(own.panels, moved.panels, strict=True))
                self._blocks[number], self._ours[number] = Moments(own.dims, own.pivot, panels), True

    def compute(self) -> list[Moments]:
        """Moments of each block, on the CPU; n = 0 in an empty one."""
        for number in range(self._n_blocks):
            self._flush(number)
        self._ours = [False] * self._n_blocks
        return [block.to("cpu") for block in self._blocks]

    def state(self) -> dict[str, Tensor]:
        """pivot (D,), dims (head,), and BLOCK.PANEL for each block that holds anything."""
        blocks = self.compute()
        state = {"pivot": blocks[0].pivot, "dims": torch.tensor(blocks[0].dims)}
        for number, block in enumerate(blocks):
            if block.n:
                state |= {f"{number}.{place}": panel for place, panel in enumerate(block.panels)}
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self._start(tuple(state["dims"].tolist()), state["pivot"])
        self._ours = [False] * self._n_blocks
        self._waiting = [[] for _ in range(self._n_blocks)]
        for number, empty in enumerate(self._blocks):
            if f"{number}.0" in state:
                panels = tuple(state[f"{number}.{place}"] for place in range(len(empty.panels)))
                self._blocks[number] = Moments(empty.dims, empty.pivot, panels)


def add_products(moments: Moments, lifted: Float64[Tensor, "token row"]) -> None:
    """Add Σ u uᵀ to the panels, in place; lifted: u of every position."""
    first = [0, *accumulate(moments.dims)]
    edges = panel_edges(moments.dims)
    for panel, (a, b) in zip(moments.panels, pairwise(edges), strict=False):
        left = lifted[:, first[a] : first[b]]
        height = first[b] - first[a]
        panel[:, height:].addmm_(left.T, lifted[:, first[b] :])
        _add_triangle(panel[:, :height], left, [edge - first[a] for edge in first[a : b + 1]])
    tail = lifted[:, first[-1] :]
    moments.panels[-1].addmm_(tail.T, tail)


def _add_triangle(square: Float64[Tensor, "row row"], left: Float64[Tensor, "token row"], edges: list[int]) -> None:
    """Add left ᵀ left on and above the diagonal of heads, whose edges are given: half of the work of the square."""
    if len(edges) == 2 or len(square) <= _LEAF:
        square.addmm_(left.T, left)
        return
    middle = len(edges) // 2
    cut, start = edges[middle], edges[0]
    half = cut - start
    square[:half, half:].addmm_(left[:, :half].T, left[:, half:])
    _add_triangle(square[:half, :half], left[:, :half], edges[: middle + 1])
    _add_triangle(square[half:, half:], left[:, half:], edges[middle:])
