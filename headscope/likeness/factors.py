"""Likeness of products of weights, from their low-rank factors, never as (width, width)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch.nn.functional import pad

from headscope.anatomy.weights import Factors

__all__ = ["factor_cosine"]

_NOTHING = 1e-14  # of ‖left‖² ‖right‖², the most that ‖M‖² can be: below it is what rounding leaves of zero


def factor_cosine(factors: Sequence[Factors]) -> Float[np.ndarray, "head head"]:
    """⟨M_a, M_b⟩ / (‖M_a‖ ‖M_b‖) of every two heads, M = leftᵀ right, Frobenius.

    Args:
        factors: of each head.

    Returns:
        (head, head), no unit, in [-1, 1]; NaN in row and column of a head whose product is zero, and for widths that
        differ.

    Source: tr((L_aᵀR_a)ᵀ(L_bᵀR_b)) = Σ (L_a L_bᵀ) ∘ (R_a R_bᵀ), the trace being cyclic.
    """
    widths = np.array([own.left.shape[1] for own in factors])
    left, right = (
        torch.cat([pad(getattr(own, side), (0, int(widths.max()) - own.left.shape[1])) for own in factors])
        for side in ("left", "right")
    )
    edges = np.cumsum([0, *(len(own.left) for own in factors)])
    starts = edges[:-1]
    inner = np.zeros((len(factors), len(factors)))
    for head in range(len(factors)):
        rows, rest = slice(edges[head], edges[head + 1]), slice(edges[head], None)
        products = (left[rows] @ left[rest].T) * (right[rows] @ right[rest].T)
        inner[head, head:] = np.add.reduceat(products.sum(0).numpy(), starts[head:] - starts[head])
    inner += np.triu(inner, 1).T
    inner[widths[:, None] != widths] = np.nan
    own = inner.diagonal()
    greatest = np.array([float(one.left.square().sum() * one.right.square().sum()) for one in factors])
    scale = np.sqrt(np.where(own > _NOTHING * greatest, own, np.nan))
    return np.asarray(inner / scale[:, None] / scale)
