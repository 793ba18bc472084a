"""Linear CKA: how alike two heads are up to rotation, reflection and one common scale."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from headscope.measures import MEASURES, Measure
from headscope.statistics.moments import Moments, constant_heads, pair_norms

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

    def compare(self, seen: Mapping[str, Any]) -> Float[np.ndarray, "head head"]:
        """(head, head); see `cka`."""
        return cka(seen["moments"])


def cka(moments: Moments) -> Float[np.ndarray, "head head"]:
    """Linear CKA of every two heads, HSIC(a, b) / sqrt(HSIC(a, a) HSIC(b, b)) with the unbiased HSIC.

    Returns:
        (head, head), no unit, in [-1, 1], never clipped: 1 if equal up to an orthogonal map, a scale and an offset;
        near 0, on either side of it, if independent. NaN in row and column of a constant head and of one with
        HSIC(a, a) ≤ 0 up to rounding, with fewer than 4 positions, and for heads seen at different positions.

    "Unbiased" is said of HSIC over independent positions; the ratio is biased by O(1/n), and what depends within
    documents shows only in an interval over documents.

    Source: Kornblith et al. 2019, arXiv:1905.00414, section 3 (CKA); see `unbiased_hsic`. The bounds: the unbiased
        HSIC is an inner product of U-centred Gram matrices, Székely and Rizzo 2014, arXiv:1310.2926, section 2.

    >>> import torch
    >>> from headscope.statistics.moments import lift
    >>> a = torch.tensor([[0.0, 1.0], [2.0, 5.0], [4.0, 1.0], [7.0, 3.0], [1.0, 1.0]], dtype=torch.float64)
    >>> turned = torch.stack([3 * a[:, 1], -3 * a[:, 0]], dim=1)
    >>> u = lift(torch.stack([a, turned], dim=1), torch.zeros(2, 2, dtype=torch.float64))
    >>> cka(Moments((2, 2), torch.zeros(4, dtype=torch.float64), u.T @ u)).round(12)
    array([[1., 1.],
           [1., 1.]])
    """
    centred = moments.about(moments.mean)
    hsic = unbiased_hsic(centred)
    own = hsic.diagonal()
    n = centred.counts
    nothing = own * n * (n - 3) <= _NOTHING * pair_norms(centred).diagonal()
    scale = np.sqrt(np.where(nothing | constant_heads(centred), np.nan, own))
    return hsic / scale[:, None] / scale


def unbiased_hsic(moments: Moments) -> Float[np.ndarray, "head head"]:
    """The unbiased HSIC with linear kernels of every two heads.

    With K = X Xᵀ, L = Y Yᵀ and their diagonals set to zero (K̃, L̃), n (n - 3) HSIC =
    tr(K̃ L̃) + (1ᵀK̃1)(1ᵀL̃1) / ((n - 1)(n - 2)) - 2/(n - 2) · 1ᵀK̃L̃1. About the mean, Σx = Σy = 0, and what is left is
    ‖XᵀY‖² - n/(n - 2) · Σ‖x‖²‖y‖² + Σ‖x‖² Σ‖y‖² / ((n - 1)(n - 2)): exact, with no second pass over positions.

    Args:
        moments: about their mean.

    Returns:
        (head, head), in the square of the product of the heads' units; NaN with fewer than 4 positions, and for heads
        seen at different positions.

    Source: Song et al. 2012, JMLR 13, pp. 1393-1434, equation 5.
    """
    n_dims, n_heads = sum(moments.dims), len(moments.dims)
    squares = moments.gram[n_dims : n_dims + n_heads].numpy()
    ones = n_dims + n_heads + np.array(moments.group)
    alone = squares[np.arange(n_heads), ones]
    both = squares[:, n_dims : n_dims + n_heads]
    # between groups the sums are NaN, so that whose count is taken does not matter
    n = np.where(moments.counts >= 4, moments.counts, np.nan)[:, None]
    products = alone[:, None] * alone / ((n - 1) * (n - 2))
    return (pair_norms(moments) - n / (n - 2) * both + products) / (n * (n - 3))
