"""The effective number of heads: how many unrelated ones a group of heads amounts to."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from headscope.intervals import Spread, jackknife
from headscope.measures.cka_biased import cka_biased
from headscope.statistics.moments import Moments, total

__all__ = ["effective_heads", "effective_spread", "vendi"]


def effective_heads(moments: Moments) -> float:
    """The effective number of heads: the Vendi score of biased CKA, exp(-Σ λ log λ), λ the eigenvalues of K / N.

    Biased CKA is positive semi-definite, as the score asks. Unrelated heads come out alike by about
    sqrt(d_a d_b) / n, so that few tokens make heads look fewer than they are: see tokens per dimension.

    Args:
        moments: of the heads.

    Returns:
        No unit, in [1, N]: 1 = all heads are equal up to a rotation, a scale and an offset; N = all are uncorrelated.
        A constant head counts for nothing; NaN where no head varies.

    Source: Friedman and Dieng 2023, arXiv:2210.02410, definition 3.1.
    """
    return vendi(cka_biased(moments)) if moments.n else float("nan")


def vendi(similarity: Float[np.ndarray, "head head"]) -> float:
    """exp of the entropy of the eigenvalues of K / N, from a positive semi-definite K with ones on its diagonal.

    Args:
        similarity: K; rows and columns that are NaN on the diagonal are left out.

    Returns:
        No unit, in [1, N]; NaN where nothing is left.

    Source: Friedman and Dieng 2023, arXiv:2210.02410, definition 3.1.

    >>> round(vendi(np.ones((3, 3))), 9), round(vendi(np.eye(4)), 9)
    (1.0, 4.0)
    """
    kept = np.flatnonzero(~np.isnan(similarity.diagonal()))
    if not len(kept):
        return float("nan")
    values = np.linalg.eigvalsh(similarity[np.ix_(kept, kept)] / len(kept))
    values = values[values > 0]
    return float(np.exp(-(values * np.log(values)).sum()))


def effective_spread(blocks: Sequence[Moments]) -> Spread:
    """`effective_heads` of all blocks of documents together, with the delete-m jackknife over them.

    Args:
        blocks: moments of the same heads, of each block.
    """
    return jackknife(lambda left: np.asarray(effective_heads(total(left))), blocks, [block.n for block in blocks])
