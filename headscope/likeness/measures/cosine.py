"""Cosine of contributions: whether two heads write the same into the residual stream, token by token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import pad

from headscope._support.cards import Card
from headscope.likeness.measures import MEASURES, Measure
from headscope.statistics.moments import Moments, contribution_energy

__all__ = ["Cosine", "contribution_cosine"]


@MEASURES.register("cosine")
@dataclass(frozen=True)
class Cosine(Measure):
    """Cosine of the contributions over all positions; see `contribution_cosine`."""

    needs: ClassVar[frozenset[str]] = frozenset({"moments", "output_weights"})
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    sources: ClassVar[tuple[str, ...]] = ("contribution", "z", "q", "k", "v")
    card: ClassVar[Card] = Card(
        formula="Σ⟨c_a, c_b⟩ / sqrt(Σ‖c_a‖² Σ‖c_b‖²) over positions, c = W_O z, uncentred; or of z, q, k, v "
        "themselves, where asked.",
        unit="none",
        span="-1 to 1; 1 = the same vector but for one positive scale at every position, 0 = orthogonal on average, "
        "-1 = they cancel out but for scale.",
        undefined="NaN for a head that adds nothing anywhere, for heads at different positions, and for heads of "
        "unlike size where z, q, k or v is asked for.",
        invariance="One positive scale. No rotation: contributions share the coordinates of the residual stream.",
        cost="As cka, and N² d² · width for the overlaps of W_O.",
        use="Whether two heads do the same to the model's state, not only know the same. Contributions are compared "
        "unless z, q, k or v is asked for (of='z'; heads of equal size): the coordinates of two heads' own vectors "
        "have nothing to do with each other unless they were made to, so that a cosine near 0 says nothing there.",
        source="The cosine of the two (position, width) matrices in the Frobenius inner product.",
    )

    def compare(self, seen: Mapping[str, Any]) -> Float[np.ndarray, "head head"]:
        """(head, head); see `contribution_cosine`."""
        return contribution_cosine(seen["moments"], seen["output_weights"])


def contribution_cosine(
    moments: Moments, output_weights: Sequence[Float64[Tensor, "_ _"]]
) -> Float[np.ndarray, "head head"]:
    """Σ⟨c_a, c_b⟩ / sqrt(Σ‖c_a‖² Σ‖c_b‖²) over positions, with c = W_O z, uncentred.

    From Σ⟨c_a, c_b⟩ = Σ_ij (W_aᵀ W_b)_ij (Σ z_a z_bᵀ)_ij: contributions are never made.

    Args:
        moments: of what enters the output projection.
        output_weights: W_O of each head, (width, value_dim).

    Returns:
        (head, head), no unit, in [-1, 1]: 1 if one contribution is the other times a positive number, the same at every
        position; -1 if they cancel out but for scale. NaN for a head whose contribution is zero throughout, for heads
        that were not seen at the same positions, and for widths that differ.

    Source: the cosine of the two (position, width) matrices in the Frobenius inner product.

    >>> from headscope.statistics.block_sums import lift
    >>> z = torch.tensor([[[1.0], [2.0]], [[-1.0], [-2.0]], [[3.0], [6.0]]], dtype=torch.float64)   # b = 2 a
    >>> zero = torch.zeros(2, dtype=torch.float64)
    >>> u = lift([z], zero)
    >>> weights = [torch.tensor([[1.0], [0.0]]).double(), torch.tensor([[-1.0], [1.0]]).double()]
    >>> contribution_cosine(Moments.of_square((1, 1), zero, u.T @ u), weights).round(4)
    array([[ 1.    , -0.7071],
           [-0.7071,  1.    ]])
    """
    widths = np.array([len(weight) for weight in output_weights])
    joined = torch.cat([pad(weight, (0, 0, 0, int(widths.max() - len(weight)))) for weight in output_weights], dim=1)
    starts = np.array([own.start for own in moments.slices])
    mean, inner = moments.mean, np.zeros((len(starts), len(starts)))
    # One head's rows at a time: no second matrix of the size of the moments.
    for head, own in enumerate(moments.slices):
        overlap = joined[:, own].T @ joined[:, own.start :]
        raw = torch.addr(moments.centred_rows(head), mean[own], mean[own.start :], alpha=moments.n)
        inner[head, head:] = np.add.reduceat((overlap * raw).sum(0).numpy(), starts[head:] - own.start)
    inner += np.triu(inner, 1).T
    inner[widths[:, None] != widths] = np.nan
    energy = contribution_energy(moments, output_weights)
    scale = np.sqrt(np.where(energy > 0, energy, np.nan))
    return np.asarray(inner / scale[:, None] / scale)
