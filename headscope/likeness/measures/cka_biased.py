"""Biased linear CKA: the plug-in estimate, whose matrix is positive semi-definite and whose arc cosine is a metric."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from headscope._support.cards import Card
from headscope.likeness.measures import MEASURES, Measure
from headscope.statistics.moments import Moments, pair_norms

__all__ = ["CkaBiased", "cka_biased"]


@MEASURES.register("cka_biased")
@dataclass(frozen=True)
class CkaBiased(Measure):
    """Linear CKA with the biased HSIC; see `cka_biased`."""

    needs: ClassVar[frozenset[str]] = frozenset({"moments"})
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    card: ClassVar[Card] = Card(
        formula="‖AᵀB‖² / (‖AᵀA‖ ‖BᵀB‖), A and B centred over positions, Frobenius norms.",
        unit="none",
        span="0 to 1; 1 = the same up to the invariance, 0 = uncorrelated in every direction. Unrelated heads come out "
        "above 0: by about sqrt(d_a d_b) / n for n positions.",
        undefined="NaN for a constant head, and for heads at different positions.",
        invariance="Rotation and reflection of a head's dimensions, one common scale, and an offset.",
        cost="As cka, less a few sums.",
        use="Where a metric or a positive semi-definite matrix is needed: clusters, maps (arccos of it is an angle), "
        "the effective number of heads. To compare sizes across models or text lengths take cka.",
        source="Kornblith et al. 2019, arXiv:1905.00414, table 1; its bias: Murphy et al. 2024, arXiv:2405.01012; "
        "its arc cosine as a metric: Williams et al. 2021, arXiv:2110.14739.",
    )

    def compare(self, seen: Mapping[str, Any]) -> Float[np.ndarray, "head head"]:
        """(head, head); see `cka_biased`."""
        return cka_biased(seen["moments"])


def cka_biased(moments: Moments) -> Float[np.ndarray, "head head"]:
    """‖AᵀB‖² / (‖AᵀA‖ ‖BᵀB‖) of every two heads, centred over positions.

    Returns:
        (head, head), no unit, in [0, 1]: 1 if equal up to an orthogonal map, a scale and an offset. NaN in row and
        column of a constant head.

    Source: Kornblith et al. 2019, arXiv:1905.00414, table 1.

    >>> import torch
    >>> from headscope.statistics.block_sums import lift
    >>> a = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64)
    >>> b = torch.tensor([[1.0], [-1.0], [-1.0], [1.0]], dtype=torch.float64)
    >>> zero = torch.zeros(3, dtype=torch.float64)
    >>> u = lift([torch.stack([a, 2 * a + 1, b], dim=1)], zero)
    >>> cka_biased(Moments.of_square((1, 1, 1), zero, u.T @ u))
    array([[1., 1., 0.],
           [1., 1., 0.],
           [0., 0., 1.]])
    """
    norms = pair_norms(moments)
    undefined = moments.constant | (moments.n == 0)
    scale = np.sqrt(np.sqrt(np.where(undefined, np.nan, norms.diagonal())))
    # twice divided by square roots: the product of two fourth powers may overflow
    return np.asarray(norms / scale[:, None] / scale / scale[:, None] / scale)
