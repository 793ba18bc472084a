"""Second moments of heads, about a pivot: most of what is said about heads follows from this one sum.

Raw sums lose everything where a head's output sits far from zero (an offset of 1e4 costs eight digits of a variance,
sixteen of its square); sums about any point near the mean lose nothing, and can be moved to another point exactly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Float64, Int, Num
from torch import Tensor

from headscope.errors import UnknownNameError
from headscope.heads import Site
from headscope.statistics import N_BLOCKS, STATISTICS, Statistic

__all__ = [
    "SOURCES",
    "Moments",
    "MomentsStatistic",
    "constant_heads",
    "contribution_energy",
    "head_rows",
    "lift",
    "pair_norms",
    "shift_rows",
    "source",
    "total",
]

Floats = npt.NDArray[np.float64]

SOURCES = ("gated_z", "z", "q", "k", "v", "contribution")

# A head counts as constant where its spread is below 1e-6 of its size (1e-12 of the squares): rounding in float32 alone
# makes that much out of a head that adds one and the same vector at every position.
_CONSTANT = 1e-12
_NOTHING = 1e-14  # of ‖W_O‖² Σ‖z‖², the most that Σ‖W_O z‖² can be


@dataclass(frozen=True, eq=False)
class Moments:
    """Σ u uᵀ over positions, with u = [x ; s ; 1]: x = z - pivot of all heads, s = ‖x‖² of each head.

    D dimensions of N heads make D + N + 1 rows. The fourth powers in s are what unbiased CKA needs beside G = Σ x xᵀ.
    Nothing is ever changed in place: a value may be kept while the sums behind it go on.

    Attributes:
        dims: dimensions of each head.
        pivot: (D,) the point about which sums are taken, head after head.
        gram: (D + N + G, D + N + G) the sum; symmetric.
        group: for each head, which positions it was seen at; all 0 but for heads of the two sides of an
            encoder-decoder. Each of the G groups has its own row for the 1 in u, and gram is NaN between groups.
    """

    dims: tuple[int, ...]
    pivot: Float64[Tensor, " dim"]
    gram: Float64[Tensor, "row row"]
    group: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", (0,) * len(self.dims))

    @classmethod
    def empty(cls, dims: tuple[int, ...], pivot: Float64[Tensor, " dim"]) -> Self:
        """The sum over nothing."""
        n_rows = sum(dims) + len(dims) + 1
        return cls(dims, pivot, pivot.new_zeros(n_rows, n_rows))

    @property
    def slices(self) -> tuple[slice, ...]:
        """Each head's rows of gram and pivot."""
        return _slices(self.dims)

    @property
    def counts(self) -> Floats:
        """(head,) how many positions each head was seen at."""
        ones = sum(self.dims) + len(self.dims) + np.array(self.group)
        return self.gram.diagonal().cpu().numpy()[ones]

    @property
    def n(self) -> int:
        """How many positions were summed; the most, where heads were seen at different positions."""
        return int(max(self.counts, default=0))

    @property
    def sums(self) -> Float64[Tensor, " dim"]:
        """(D,) Σ x."""
        ones = self.gram[sum(self.dims) + len(self.dims) :]
        return torch.cat([ones[group, own] for group, own in zip(self.group, self.slices, strict=True)])

    @property
    def mean(self) -> Float64[Tensor, " dim"]:
        """(D,) mean of z; NaN where no position was summed."""
        counts = torch.from_numpy(np.repeat(self.counts, self.dims)).to(self.pivot.device)
        return self.pivot + self.sums / counts

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return replace(self, pivot=self.pivot.to(device), gram=self.gram.to(device))

    def about(self, pivot: Float64[Tensor, " dim"]) -> Self:
        """The same sum about another point: x' = x + δ, s' = s + 2 δ·x + ‖δ‖², so gram' = T gram Tᵀ."""
        delta = self.pivot - pivot
        half = shift_rows(self.gram, self.dims, delta, self.group)
        return replace(self, pivot=pivot, gram=shift_rows(half.T, self.dims, delta, self.group).T)

    def select(self, heads: Sequence[int]) -> Self:
        """The moments of some heads, of one group, in the order given."""
        n_dims, n_heads = sum(self.dims), len(self.dims)
        own = [i for head in heads for i in range(n_dims)[self.slices[head]]]
        rows = own + [n_dims + head for head in heads] + [n_dims + n_heads + self.group[heads[0]]]
        gram = self.gram[rows][:, rows]
        return replace(self, dims=tuple(self.dims[h] for h in heads), pivot=self.pivot[own], gram=gram, group=())

    def raw(self) -> Float64[Tensor, "row row"]:
        """(D + G, D + G) G = Σ [z ; 1][z ; 1]ᵀ, about zero."""
        n_dims = sum(self.dims)
        kept = [*range(n_dims), *range(n_dims + len(self.dims), len(self.gram))]
        return self.about(torch.zeros_like(self.pivot)).gram[kept][:, kept]

    def __add__(self, other: Self) -> Self:
        """The sum over both texts, about the left one's pivot."""
        if not self.n:
            return other
        other = other.to(self.pivot.device)
        moved = other if torch.equal(self.pivot, other.pivot) else other.about(self.pivot)
        return replace(self, gram=self.gram + moved.gram)


def total(blocks: Sequence[Moments]) -> Moments:
    """The sum of all blocks, about the first one's pivot."""
    merged = blocks[0]
    for block in blocks[1:]:
        merged = merged + block
    return merged


def shift_rows(
    gram: Float64[Tensor, "row column"],
    dims: Sequence[int],
    delta: Float64[Tensor, " dim"],
    group: Sequence[int] | None = None,
) -> Float64[Tensor, "row column"]:
    """T gram, for the T that moves rows [x ; s ; 1] to x + δ. One head after another: no copy but the result."""
    shifted = gram.clone()
    n_dims, n_heads = sum(dims), len(dims)
    for head, own in enumerate(_slices(dims)):
        one = gram[n_dims + n_heads + (0 if group is None else group[head])]
        shifted[n_dims + head] += 2 * (delta[own] @ gram[own]) + delta[own].square().sum() * one
        shifted[own].addr_(delta[own], one)
    return shifted


def pair_norms(moments: Moments) -> Float[np.ndarray, "head head"]:
    """‖X_aᵀX_b‖² (Frobenius) of every two heads, X = the positions' x about the pivot; NaN between groups."""
    gram = moments.gram[: sum(moments.dims), : sum(moments.dims)].numpy()
    starts = [own.start for own in moments.slices]
    # A panel of one head's rows at a time: no second matrix of the size of gram.
    panels = (np.einsum("ij,ij->j", gram[own], gram[own]) for own in moments.slices)
    return np.stack([np.add.reduceat(panel, starts) for panel in panels])


def constant_heads(moments: Moments) -> Bool[np.ndarray, " head"]:
    """(head,) whether a head gave the same vector at every position, zero included, up to rounding in float32."""
    counts = np.repeat(np.where(moments.counts > 0, moments.counts, np.nan), moments.dims)
    squares = moments.gram.diagonal()[: len(counts)].numpy()
    spread = squares - moments.sums.numpy() ** 2 / counts
    size = squares + moments.mean.numpy() ** 2 * counts
    starts = [own.start for own in moments.slices]
    constant: npt.NDArray[np.bool_] = np.add.reduceat(spread, starts) <= _CONSTANT * np.add.reduceat(size, starts)
    return constant


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
        second = moments.select([head]).raw()[:-1, :-1]
        energy = float((weight.T @ weight * second).sum())
        greatest = float(weight.square().sum() * second.diagonal().sum())
        energies.append(energy if energy > _NOTHING * greatest else 0.0)
    return np.array(energies)


def source(of: str) -> str:
    """The name itself, if it is of a tensor whose positions can be summed over.

    Raises:
        UnknownNameError: it is not.
    """
    if of not in SOURCES:
        raise UnknownNameError(f"there are no moments of {of!r}; there are of: {', '.join(SOURCES)}")
    return of


def head_rows(
    tensor: Num[Tensor, "batch head position dim"], kept: Bool[Tensor, "batch position"]
) -> Num[Tensor, "token head dim"]:
    """The positions that count, one after another, row by row."""
    if tensor.device.type == "mps":
        tensor = tensor.cpu()  # MPS has no float64
    return tensor.detach().transpose(1, 2)[kept.to(tensor.device)]


def lift(rows: Num[Tensor, "token head dim"], pivot: Float64[Tensor, "head dim"]) -> Float64[Tensor, "token row"]:
    """u = [x ; s ; 1] of every position, float64."""
    n_tokens, n_heads, dim = rows.shape
    lifted = pivot.new_ones(n_tokens, n_heads * dim + n_heads + 1)
    x = lifted[:, : n_heads * dim].unflatten(1, (n_heads, dim))
    torch.sub(rows, pivot, out=x)
    torch.sum(x.square(), -1, out=lifted[:, n_heads * dim : -1])
    return lifted


@STATISTICS.register("moments")
class MomentsStatistic(Statistic):
    """Moments of each layer's heads, for each block of documents.

    All blocks of a layer share one pivot, the heads' mean over the first batch. Memory: N_BLOCKS (D + N + 1)² float64
    a layer, whatever the length of the text.

    Args:
        of: what is summed: "gated_z" (what enters the output projection, = z where nothing stands between), "z", "q",
            "k", "v" or "contribution" (which has the width of the model for every head, and costs its square).
    """

    def __init__(self, of: str = "gated_z") -> None:
        self.of = source(of)
        self._blocks: dict[int, list[Moments]] = {}

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
        if not len(rows):
            return
        if site.layer not in self._blocks:
            first = rows.double().mean(0).flatten()
            self._blocks[site.layer] = [Moments.empty((rows.shape[2],) * rows.shape[1], first)] * N_BLOCKS
        blocks = self._blocks[site.layer]
        lifted = lift(rows, blocks[0].pivot.to(rows.device).unflatten(0, rows.shape[1:]))
        of_token = block.repeat_interleave(kept.sum(1))
        for number in of_token.unique().tolist():
            own = lifted[(of_token == number).to(lifted.device)]
            old = blocks[number].to(lifted.device)
            blocks[number] = replace(old, gram=torch.addmm(old.gram, own.T, own))

    def merge(self, other: Self) -> None:
        """Add block to block; where the pivots differ, the other's sums are moved to this one's."""
        for layer, blocks in other._blocks.items():
            own = self._blocks.get(layer)
            if own is None:
                self._blocks[layer] = list(blocks)
            else:
                pivot = own[0].pivot
                self._blocks[layer] = [a + b.about(pivot.to(b.pivot.device)) for a, b in zip(own, blocks, strict=True)]

    def compute(self) -> dict[int, list[Moments]]:
        """By layer, Moments of each block, on the CPU: n = 0 in an empty one. A layer without a token has no entry."""
        return {layer: [block.to("cpu") for block in self._blocks[layer]] for layer in sorted(self._blocks)}

    def state(self) -> dict[str, Tensor]:
        """LAYER.pivot (head, dim), and LAYER.gram.BLOCK for each block that holds anything."""
        state = {}
        for layer, blocks in self.compute().items():
            state[f"{layer}.pivot"] = blocks[0].pivot.unflatten(0, (len(blocks[0].dims), -1)).clone()
            state |= {f"{layer}.gram.{number}": block.gram for number, block in enumerate(blocks) if block.n}
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self._blocks = {}
        for name, pivot in state.items():
            layer, _, what = name.partition(".")
            if what == "pivot":
                nothing = Moments.empty((pivot.shape[1],) * pivot.shape[0], pivot.flatten())
                self._blocks[int(layer)] = [
                    replace(nothing, gram=state.get(f"{layer}.gram.{number}", nothing.gram))
                    for number in range(N_BLOCKS)
                ]


def _slices(dims: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in pairwise(accumulate(dims, initial=0)))
