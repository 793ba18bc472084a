"""Second moments of heads, about a pivot: most of what is said about heads follows from this one sum.

Raw sums lose everything where a head's output sits far from zero (an offset of 1e4 costs eight digits of a variance,
sixteen of its square); sums about any point near the mean lose nothing, and can be moved to another point exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import accumulate, pairwise
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

__all__ = ["PANEL", "Moments", "contribution_energy", "pair_norms", "panel_edges", "spreads"]

Floats = npt.NDArray[np.float64]

# A head counts as constant where its spread is below 1e-6 of its size (1e-12 of the squares): rounding in float32 alone
# makes that much out of a head that adds one and the same vector at every position.
_CONSTANT = 1e-12
_NOTHING = 1e-14  # of ‖W_O‖² Σ‖z‖², the most that Σ‖W_O z‖² can be
PANEL = 768  # rows of a panel: large enough for a fast product, small enough to waste little below the diagonal


@dataclass(frozen=True, eq=False)
class Moments:
    """Σ u uᵀ over positions, with u = [x ; s ; 1]: x = z - pivot of all heads, s = ‖x‖² of each head.

    D dimensions of N heads make D + N + 1 rows. The fourth powers in s are what unbiased CKA needs beside Σ x xᵀ. The
    sum is symmetric, and only its upper triangle is held, in panels of rows. Nothing is ever changed in place.

    Attributes:
        dims: dimensions of each head.
        pivot: (D,) the point about which sums are taken, head after head.
        panels: for the heads of `panel_edges(dims)`, their rows of x, and last the rows of [s ; 1]; each panel's
            columns run from its first row's own to the end. Within a panel, blocks below the heads on the diagonal
            hold nothing.
    """

    dims: tuple[int, ...]
    pivot: Float64[Tensor, " dim"]
    panels: tuple[Float64[Tensor, "_ _"], ...]

    @classmethod
    def empty(cls, dims: tuple[int, ...], pivot: Float64[Tensor, " dim"]) -> Self:
        """The sum over nothing; it takes no memory, and can be read but not added to in place."""
        last = len(dims) + 1
        starts = [own.start for own in _slices(dims)]
        sizes = [(sum(dims[a:b]), sum(dims) - starts[a] + last) for a, b in pairwise(panel_edges(dims))]
        zero = pivot.new_zeros(())
        return cls(dims, pivot, tuple(zero.expand(size) for size in [*sizes, (last, last)]))

    @classmethod
    def of_square(
        cls, dims: tuple[int, ...], pivot: Float64[Tensor, " dim"], square: Float64[Tensor, "row row"]
    ) -> Self:
        """From the whole sum, (D + N + 1, D + N + 1)."""
        first = [0, *accumulate(dims)]
        edges = [first[edge] for edge in panel_edges(dims)]
        panels = [square[a:b, a:] for a, b in pairwise([*edges, len(square)])]
        return cls(dims, pivot, tuple(panel.clone() for panel in panels))

    @classmethod
    def total(cls, blocks: Sequence["Moments"]) -> "Moments":
        """The sum of all blocks, about the first one's pivot."""
        merged = blocks[0]
        for block in blocks[1:]:
            merged = merged + block
        return merged

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """Each head's rows of the pivot."""
        return _slices(self.dims)

    @property
    def n(self) -> int:
        """How many positions were summed."""
        return int(self.panels[-1][-1, -1])

    @cached_property
    def sums(self) -> Float64[Tensor, " dim"]:
        """(D,) Σ x."""
        return torch.cat([self.pivot.new_empty(0), *(panel[:, -1] for panel in self.panels[:-1])])

    @property
    def mean(self) -> Float64[Tensor, " dim"]:
        """(D,) mean of z; NaN where no position was summed."""
        return self.pivot + self.sums / (self.n or torch.nan)

    def rows(self, head: int) -> Float64[Tensor, "dim column"]:
        """Σ x_head [x ; s ; 1]ᵀ, x from this head's own on: (d, D - start + N + 1), a view."""
        place = next(i for i, (a, b) in enumerate(pairwise(panel_edges(self.dims))) if a <= head < b)
        own = self.slices[head]
        offset = own.start - self.slices[panel_edges(self.dims)[place]].start
        return self.panels[place][offset : offset + self.dims[head], offset:]

    def centred_rows(self, head: int) -> Float64[Tensor, "dim column"]:
        """(d, D - start) Σ (z_head - mean)(z - mean)ᵀ, z from this head's own on."""
        start, n_dims = self.slices[head].start, len(self.pivot)
        sums = self.sums[start:]
        return torch.addr(self.rows(head)[:, : n_dims - start], sums[: self.dims[head]], sums, alpha=-1 / (self.n or 1))

    def own(self, head: int, point: Float64[Tensor, " dim"]) -> Float64[Tensor, "dim dim"]:
        """(d, d) Σ (z - point)(z - point)ᵀ of one head; point: (d,)."""
        rows, dim = self.rows(head), self.dims[head]
        delta, sums = self.pivot[self.slices[head]] - point, rows[:, -1]
        moved = torch.outer(delta, sums)
        return rows[:, :dim] + moved + moved.T + self.n * torch.outer(delta, delta)

    def second(self, point: Float64[Tensor, " dim"]) -> Float64[Tensor, "dim dim"]:
        """(D, D) Σ (z - point)(z - point)ᵀ of all heads; point: (D,)."""
        n_dims, delta = len(self.pivot), self.pivot - point
        moved = torch.outer(delta, self.sums + self.n / 2 * delta)
        return self.square()[:n_dims, :n_dims].add_(moved).add_(moved.T)

    def squares(self, point: Float64[Tensor, " dim"]) -> Float[np.ndarray, "head head"]:
        """Σ ‖z_a - point_a‖² ‖z_b - point_b‖² of every two heads; point: (D,).

        With δ = pivot - point, ‖z - point‖² = s + 2 δ·x + ‖δ‖²: sums of s, of x and of their products are all it takes.
        """
        delta = self.pivot - point
        starts = np.array([own.start for own in self.slices])
        n_dims, n_heads = len(delta), len(starts)
        shift = np.add.reduceat(delta.square().numpy(), starts)
        x_by_s, x_by_x = np.empty((n_heads, n_heads)), np.zeros((n_heads, n_heads))
        for head, own in enumerate(self.slices):
            along = delta[own] @ self.rows(head)
            x_by_s[head] = along[n_dims - own.start : -1].numpy()
            weighted = (along[: n_dims - own.start] * delta[own.start :]).numpy()
            x_by_x[head, head:] = np.add.reduceat(weighted, starts[head:] - own.start)
        x_by_x += np.triu(x_by_x, 1).T
        tail = self.panels[-1].numpy()
        once = tail[:-1, -1] + 2 * np.add.reduceat((delta * self.sums).numpy(), starts)
        crossed = 2 * x_by_s + np.outer(once, shift)
        products: Floats = tail[:-1, :-1] + crossed + crossed.T + 4 * x_by_x + self.n * np.outer(shift, shift)
        return products

    def square(self) -> Float64[Tensor, "row row"]:
        """(D + N + 1, D + N + 1) the whole sum."""
        square = self.pivot.new_empty(2 * (len(self.pivot) + len(self.dims) + 1,))
        for head, own in enumerate(self.slices):
            rows = self.rows(head)
            square[own, own.start :] = rows
            square[own.start :, own] = rows.T
        square[len(self.pivot) :, len(self.pivot) :] = self.panels[-1]
        return square

    @property
    def constant(self) -> Bool[np.ndarray, " head"]:
        """(head,) whether a head gave the same vector at every position, zero included, up to rounding in float32."""
        squares = np.concatenate([self.rows(head).diagonal().numpy() for head in range(len(self.dims))])
        size = squares + self.mean.numpy() ** 2 * self.n
        starts = [own.start for own in self.slices]
        constant: npt.NDArray[np.bool_] = spreads(self) <= _CONSTANT * np.add.reduceat(size, starts)
        return constant

    def about(self, pivot: Float64[Tensor, " dim"]) -> Self:
        """The same sum about another point: x' = x + δ, s' = s + 2 δ·x + ‖δ‖², a linear map of u."""
        delta = self.pivot - pivot
        half = _shift_rows(self.square(), self.slices, delta)
        return self.of_square(self.dims, pivot, _shift_rows(half.T, self.slices, delta).T)

    def select(self, heads: Sequence[int]) -> Self:
        """The moments of some heads, in the order given."""
        n_dims = len(self.pivot)
        own = [i for head in heads for i in range(n_dims)[self.slices[head]]]
        rows = [*own, *(n_dims + head for head in heads), n_dims + len(self.dims)]
        return self.of_square(tuple(self.dims[h] for h in heads), self.pivot[own], self.square()[rows][:, rows])

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return replace(self, pivot=self.pivot.to(device), panels=tuple(panel.to(device) for panel in self.panels))

    def __add__(self, other: Self) -> Self:
        """The sum over both texts, about the left one's pivot."""
        if not self.n:
            return other
        other = other.to(self.pivot.device)
        moved = other if torch.equal(self.pivot, other.pivot) else other.about(self.pivot)
        return replace(self, panels=tuple(a + b for a, b in zip(self.panels, moved.panels, strict=True)))


@cache
def panel_edges(dims: tuple[int, ...]) -> tuple[int, ...]:
    """The first head of each panel of rows, and the number of heads: panels of whole heads, of 768 rows at most.

    >>> panel_edges((64,) * 20), panel_edges((600, 600)), panel_edges(())
    ((0, 12, 20), (0, 1, 2), (0,))
    """
    edges, height = [0], 0
    for head, dim in enumerate(dims):
        if height and height + dim > PANEL:
            edges.append(head)
            height = 0
        height += dim
    return (*edges, len(dims)) if dims else (0,)


def spreads(moments: Moments) -> Float[np.ndarray, " head"]:
    """(head,) Σ ‖z - mean‖² of each head."""
    squares = np.concatenate([moments.rows(head).diagonal().numpy() for head in range(len(moments.dims))])
    centred = squares - moments.sums.numpy() ** 2 / (moments.n or np.nan)
    return np.asarray(np.add.reduceat(centred, [own.start for own in moments.slices]))


def pair_norms(moments: Moments) -> Float[np.ndarray, "head head"]:
    """‖Σ (z_a - mean_a)(z_b - mean_b)ᵀ‖² (Frobenius) of every two heads."""
    starts = np.array([own.start for own in moments.slices])
    norms = np.zeros((len(starts), len(starts)))
    for head, start in enumerate(starts):
        squares = moments.centred_rows(head).square_().sum(0).numpy()
        norms[head, head:] = np.add.reduceat(squares, starts[head:] - start)
    return np.asarray(norms + np.triu(norms, 1).T)


def contribution_energy(
    moments: Moments, output_weights: Sequence[Float64[Tensor, "_ _"]]
) -> Float[np.ndarray, " head"]:
    """(head,) Σ ‖W_O z‖² over positions: how much each head adds to the output projection's output, squared.

    Exactly 0 where only rounding is left: z zero, or in the null space of W_O.

    Args:
        moments: of what enters the projection.
        output_weights: W_O of each head, (width, value_dim).
    """
    energies = []
    for head, weight in enumerate(output_weights):
        second = moments.own(head, torch.zeros(moments.dims[head], dtype=torch.float64))
        energy = float((weight.T @ weight * second).sum())
        greatest = float(weight.square().sum() * second.diagonal().sum())
        energies.append(energy if energy > _NOTHING * greatest else 0.0)
    return np.array(energies)


def _slices(dims: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in pairwise(accumulate(dims, initial=0)))


def _shift_rows(
    square: Float64[Tensor, "row column"], slices: Sequence[slice], delta: Float64[Tensor, " dim"]
) -> Float64[Tensor, "row column"]:
    """T square, for the T that moves rows [x ; s ; 1] to x + δ."""
    shifted, one = square.clone(), square[-1]
    for head, own in enumerate(slices):
        shifted[len(delta) + head] += 2 * (delta[own] @ square[own]) + delta[own].square().sum() * one
    shifted[: len(delta)].addr_(delta, one)
    return shifted
