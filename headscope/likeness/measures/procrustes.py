"""Procrustes: how well one head can be laid over another by a rotation and a scale."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float

from headscope._support.cards import Card
from headscope.likeness.measures import MEASURES, Measure
from headscope.statistics.moments import Moments, spreads

__all__ = ["Procrustes", "procrustes"]


@MEASURES.register("procrustes")
@dataclass(frozen=True)
class Procrustes(Measure):
    """The cosine of the angular shape distance; see `procrustes`."""

    needs: ClassVar[frozenset[str]] = frozenset({"moments"})
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    card: ClassVar[Card] = Card(
        formula="‖AᵀB‖_* / (‖A‖ ‖B‖): nuclear norm of the cross-products over Frobenius norms, A and B centred.",
        unit="none",
        span="0 to 1; 1 = the same up to the invariance, 0 = uncorrelated in every direction. Its arc cosine is the "
        "angular shape distance. Unrelated heads come out above 0, the more so the fewer positions there are.",
        undefined="NaN for a constant head, and for heads at different positions.",
        invariance="Rotation and reflection of a head's dimensions, one common scale, and an offset.",
        cost="As cka, and a singular value decomposition for each pair: N² d³.",
        use="Where small directions should count more than they do in cka: it adds singular values where cka adds "
        "their squares. A metric, so fit for clusters and maps.",
        source="Williams et al. 2021, arXiv:2110.14739, section 2 (angular shape distance); Ding et al. 2021, "
        "arXiv:2108.01661.",
    )

    def compare(self, seen: Mapping[str, Any]) -> Float[np.ndarray, "head head"]:
        """(head, head); see `procrustes`."""
        return procrustes(seen["moments"])


def procrustes(moments: Moments) -> Float[np.ndarray, "head head"]:
    """max over orthogonal Q of ⟨A, B Q⟩ / (‖A‖ ‖B‖) = ‖AᵀB‖_* / (‖A‖ ‖B‖) of every two heads, centred.

    Returns:
        (head, head), no unit, in [0, 1]: 1 if equal up to an orthogonal map, a scale and an offset; heads of different
        dimensions are compared as if the smaller one had zeros beside it. NaN in row and column of a constant head.

    Source: Williams et al. 2021, arXiv:2110.14739, section 2.

    >>> from headscope.statistics.block_sums import lift
    >>> a = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    >>> b = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    >>> zero = torch.zeros(4, dtype=torch.float64)
    >>> u = lift([torch.stack([a, b], dim=1)], zero)
    >>> procrustes(Moments.of_square((2, 2), zero, u.T @ u)).round(4)   # half of a's spread lies along b: sqrt(1/2)
    array([[1.    , 0.7071],
           [0.7071, 1.    ]])
    """
    n_heads = len(moments.dims)
    norms = np.zeros((n_heads, n_heads))
    for head, own in enumerate(moments.slices):
        rows = moments.centred_rows(head)
        blocks = [rows[:, other.start - own.start : other.stop - own.start] for other in moments.slices[head:]]
        if len({block.shape for block in blocks}) == 1:
            norms[head, head:] = torch.linalg.svdvals(torch.stack(blocks)).sum(-1).numpy()
        else:
            norms[head, head:] = [float(torch.linalg.svdvals(block).sum()) for block in blocks]
    norms += np.triu(norms, 1).T
    scale = np.sqrt(np.where(moments.constant, np.nan, spreads(moments)))
    return np.asarray(norms / scale[:, None] / scale)
