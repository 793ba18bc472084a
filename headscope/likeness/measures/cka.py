"""Linear CKA: how alike two heads are up to rotation, reflection and one common scale."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from headscope._support.cards import Card
from headscope.likeness.measures import MEASURES, Measure
from headscope.statistics.moments import Moments, pair_norms, spreads

__all__ = ["Cka", "cka", "unbiased_hsic"]

# HSIC(x, x) below this share of ‖XᵀX‖² is what rounding leaves of zero: the two cancel to about 1e-15.
_NOTHING = 1e-12


@MEASURES.register("cka")
@dataclass(frozen=True)
class Cka(Measure):
    """Exact unbiased linear CKA over all positions; see `cka`."""

    needs: ClassVar[frozenset[str]] = frozenset({"moments"})
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    card: ClassVar[Card] = Card(
        formula="HSIC(a, b) / sqrt(HSIC(a, a) HSIC(b, b)), HSIC being the unbiased estimate with linear kernels over "
        "all positions.",
        unit="none",
        span="-1 to 1; 1 = the same up to the invariance, about 0 = unrelated (on either side of it).",
        undefined="NaN for a constant head, for one with HSIC(a, a) ≤ 0, with fewer than 4 positions, and for heads at "
        "different positions.",
        invariance="Rotation and reflection of a head's dimensions, one common scale, and an offset.",
        cost="One pass; D² of work a position and D²/2 numbers of memory for D dimensions in all.",
        use="The default. Heads that it calls alike carry the same information with the same emphasis; two heads that "
        "differ in small directions only still come out alike: for those see predict.",
        source="Kornblith et al. 2019, arXiv:1905.00414, section 3; unbiased HSIC: Song et al. 2012, JMLR 13, "
        "equation 5; bounds: Székely and Rizzo 2014, arXiv:1310.2926, section 2.",
    )

    def compare(self, seen: Mapping[str, Any]) -> Float[np.ndarray, "head head"]:
        """(head, head); see `cka`."""
        return cka(seen["moments"])


def cka(moments: Moments) -> Float[np.ndarray, "head head"]:
    """Linear CKA of every two heads, HSIC(a, b) / sqrt(HSIC(a, a) HSIC(b, b)) with the unbiased HSIC.

    Returns:
        (head, head), no unit, in [-1, 1], never clipped: 1 if equal up to an orthogonal map, a scale and an offset;
        near 0, on either side of it, if independent. NaN in row and column of a constant head and of one with
        HSIC(a, a) ≤ 0 up to rounding, and with fewer than 4 positions.

    "Unbiased" is said of HSIC over independent positions; the ratio is biased by O(1/n), and what depends within
    documents shows only in an interval over documents.

    Source: Kornblith et al. 2019, arXiv:1905.00414, section 3 (CKA); see `unbiased_hsic`.

    >>> import torch
    >>> from headscope.statistics.block_sums import lift
    >>> a = torch.tensor([[0.0, 1.0], [2.0, 5.0], [4.0, 1.0], [7.0, 3.0], [1.0, 1.0]], dtype=torch.float64)
    >>> turned = torch.stack([3 * a[:, 1], -3 * a[:, 0]], dim=1)
    >>> zero = torch.zeros(4, dtype=torch.float64)
    >>> u = lift([torch.stack([a, turned], dim=1)], zero)
    >>> cka(Moments.of_square((2, 2), zero, u.T @ u)).round(12)
    array([[1., 1.],
           [1., 1.]])
    """
    norms = pair_norms(moments)
    hsic = unbiased_hsic(moments, norms)
    own, n = hsic.diagonal(), moments.n
    nothing = own * n * (n - 3) <= _NOTHING * norms.diagonal()
    scale = np.sqrt(np.where(nothing | moments.constant, np.nan, own))
    return hsic / scale[:, None] / scale


def unbiased_hsic(moments: Moments, norms: Float[np.ndarray, "head head"]) -> Float[np.ndarray, "head head"]:
    """The unbiased HSIC with linear kernels of every two heads.

    With K = X Xᵀ, L = Y Yᵀ and their diagonals set to zero (K̃, L̃), n (n - 3) HSIC =
    tr(K̃ L̃) + (1ᵀK̃1)(1ᵀL̃1) / ((n - 1)(n - 2)) - 2/(n - 2) · 1ᵀK̃L̃1. About the mean, Σx = Σy = 0, and what is left is
    ‖XᵀY‖² - n/(n - 2) · Σ‖x‖²‖y‖² + Σ‖x‖² Σ‖y‖² / ((n - 1)(n - 2)): exact, with no second pass over positions.

    Args:
        moments: of the heads.
        norms: their `pair_norms`, ‖XᵀY‖².

    Returns:
        (head, head), in the square of the product of the heads' units; NaN with fewer than 4 positions.

    Source: Song et al. 2012, JMLR 13, pp. 1393-1434, equation 5.
    """
    n = moments.n if moments.n >= 4 else np.nan
    alone = spreads(moments)
    products = np.outer(alone, alone) / ((n - 1) * (n - 2))
    return np.asarray((norms - n / (n - 2) * moments.squares(moments.mean) + products) / (n * (n - 3)))
