"""The effective number of heads: how many unrelated ones a group of heads amounts to."""

from collections.abc import Sequence
from functools import reduce
from operator import add

import numpy as np
from jaxtyping import Float

from headscope.likeness.measures.cka_biased import cka_biased
from headscope.likeness.measures.pattern_js import map_agreement
from headscope.statistics.moments import Moments
from headscope.statistics.pair_sums import PairSums
from headscope.uncertainty.intervals import Spread, jackknife, jackknife_spread

__all__ = ["effective_heads", "effective_maps", "effective_rank", "effective_spread", "vendi"]


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
    return jackknife(
        lambda left: np.asarray(effective_heads(Moments.total(left))), blocks, [block.n for block in blocks]
    )


def effective_maps(blocks: Sequence[PairSums]) -> Spread:
    """How many different maps a layer's heads amount to: the Vendi score of 1 − Jensen-Shannon divergence in bits.

    1 − JS is positive semi-definite, as the score asks, and so is its mean over queries.

    Args:
        blocks: divergences of the same heads, summed over the queries of each block of documents.

    Returns:
        No unit, in [1, N], with the delete-m jackknife over the blocks: 1 = all heads look alike at every query; N = no
        two ever look at the same key; NaN where no query was summed.

    Source: Martins et al. 2009, Journal of Machine Learning Research 10, pp. 935-975, proposition 6 (ln 2 − JS is a
        positive definite kernel); Friedman and Dieng 2023, arXiv:2210.02410, definition 3.1.
    """
    filled = [block for block in blocks if block.n]
    if not filled:
        return jackknife_spread(np.asarray(np.nan), [], [])
    return jackknife(
        lambda left: np.asarray(vendi(map_agreement(reduce(add, left)))), filled, [block.n for block in filled]
    )


def effective_rank(singular_values: Float[np.ndarray, " dim"]) -> float:
    """exp(-Σ p log p) with p the singular values over their sum: how many directions a matrix amounts to.

    Args:
        singular_values: at least 0; of a covariance, the square roots of its eigenvalues.

    Returns:
        No unit, in [1, number of values]: 1 = all in one direction; that number = as much in each; NaN where all are 0.

    Source: Roy and Vetterli 2007, "The effective rank", EUSIPCO, definition 1.

    >>> round(effective_rank(np.array([2.0, 2.0, 0.0])), 9), round(effective_rank(np.array([5.0])), 9)
    (2.0, 1.0)
    """
    whole = singular_values.sum()
    if not whole > 0:
        return float("nan")
    shares = singular_values[singular_values > 0] / whole
    return float(np.exp(-(shares * np.log(shares)).sum()))
