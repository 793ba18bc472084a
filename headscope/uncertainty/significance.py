"""Tests of significance over documents, and control of false discoveries over heads."""

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int
from scipy.stats import false_discovery_control

__all__ = ["false_discovery", "sign_flip"]

Floats = npt.NDArray[np.float64]

_EXACT = 12  # documents up to which every choice of signs is tried: 4,096
_DRAWS = 9_999
_TIE = 1e-12  # of the observed sum: another choice of signs that comes so near it counts as equal


def sign_flip(
    values: Float[np.ndarray, "group row"], document: Int[np.ndarray, " row"], seed: int = 0
) -> Float[np.ndarray, " group"]:
    """Two-sided p-values of means over rows, under the null that each document's sum may as well have the other sign.

    Documents are the unit: all rows of one flip together. Up to 12 documents, every choice of signs is tried; beyond
    that 9,999 are drawn, the same for all groups, and the observed one counts among them.

    Args:
        values: (group, row), e.g. effects of heads.
        document: (row,) the document of each row.
        seed: of the draws.

    Returns:
        (group,) in (0, 1], no unit; NaN where a value is NaN, and with fewer than two documents, of which no
        choice of signs can say anything.

    Source: Fisher 1935, The Design of Experiments, section 21; the count of draws: Phipson and Smyth 2010,
        arXiv:1603.05766, equation 2.

    >>> sign_flip(np.array([[1.0, 2.0, 3.0, 4.0], [1.0, -1.0, 2.0, -2.0]]), np.array([0, 1, 2, 3]))   # 2 of 16 signs
    array([0.125, 1.   ])
    """
    names, place = np.unique(document, return_inverse=True)
    if len(names) < 2:
        return np.full(len(values), np.nan)
    sums = values @ (place[:, None] == np.arange(len(names))).astype(np.float64)
    signs, drawn = _signs(len(names), seed)
    observed = np.abs(sums.sum(1))
    reach = observed * (1 - _TIE)
    as_far = (np.abs(sums @ signs.T) >= reach[:, None]).sum(1)
    p = (as_far + 1) / (len(signs) + 1) if drawn else as_far / len(signs)
    return np.where(np.isnan(observed), np.nan, p)


def false_discovery(p: Float[np.ndarray, " head"]) -> Float[np.ndarray, " head"]:
    """q-values: the share of false discoveries if this head and all with smaller p are called discoveries.

    Returns:
        (head,) in [0, 1]; NaN where p is.

    Source: Benjamini and Hochberg 1995, JRSS B 57, pp. 289-300.

    >>> false_discovery(np.array([0.01, 0.04, np.nan, 0.03]))
    array([0.03, 0.04,  nan, 0.04])
    """
    known = ~np.isnan(p)
    q = np.full(len(p), np.nan)
    if known.any():
        q[known] = false_discovery_control(p[known])
    return q


def _signs(n: int, seed: int) -> tuple[Floats, bool]:
    """(choice, document) signs, and whether they are drawn rather than all there are."""
    if n <= _EXACT:
        flipped = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return 1.0 - 2.0 * flipped.astype(np.float64), False
    flipped = np.random.default_rng(seed).integers(0, 2, size=(_DRAWS, n))
    return 1.0 - 2.0 * flipped.astype(np.float64), True
