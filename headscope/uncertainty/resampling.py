"""Intervals of shares, by the bootstrap over documents: a share of heads is a step function, so no jackknife."""

import numpy as np
import numpy.typing as npt
from scipy.stats import norm
from scipy.stats import t as student

from headscope.uncertainty.intervals import LEVEL, Spread

__all__ = ["share_above"]

_DRAWS = 2000


def share_above(spread: Spread, size: float, *, seed: int = 0, draws: int = _DRAWS) -> tuple[float, float, float]:
    """Share of numbers above a size, with its 95% interval over documents.

    Blocks of documents are drawn with replacement, as many as there are, the same for all numbers, so that those that
    vary together still do. What a number becomes is its mean over the drawn blocks' pseudo-values: for a mean that is
    the bootstrap itself, for anything else its linear form, which takes no fit anew. Few blocks vary less than the
    truth does: deviations are widened as Student's t widens intervals.

    Args:
        spread: (number,) a jackknife over blocks, or `mean_spread`; numbers that are NaN are left out.
        size: in the unit of the numbers.
        seed: of the draws.
        draws: how many.

    Returns:
        The share, its lower and its upper end, in [0, 1]; NaN for the ends where there is no jackknife, and for all
        where there is no number.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, sections 13.3 (percentiles) and 11.5 (the
        jackknife's linear form); pseudo-values as in `headscope.uncertainty.intervals.jackknife_spread`.

    >>> from headscope.uncertainty.intervals import mean_spread
    >>> far = mean_spread(np.array([[0.0, 0.1, 0.0], [5.0, 5.1, 5.0]]), np.array([0, 1, 2]))
    >>> share_above(far, 1.0)
    (0.5, 0.5, 0.5)
    """
    known = np.flatnonzero(~np.isnan(spread.centre))
    if not len(known):
        return np.nan, np.nan, np.nan
    centre = spread.centre[known]
    share = float((centre > size).mean())
    if spread.without is None or spread.sizes is None or len(spread.without) < 2:
        return share, np.nan, np.nan
    left, sizes = spread.without[:, known], spread.sizes[:, known]
    if np.isnan(left[~np.isnan(sizes)]).any():
        return share, np.nan, np.nan
    freedom = np.broadcast_to(spread.freedom, spread.centre.shape)[known]
    shares = (centre + _deviations(centre, left, sizes, freedom, seed, draws) > size).mean(1)
    low, high = np.quantile(shares, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return share, float(min(low, share)), float(max(high, share))


def _deviations(
    centre: npt.NDArray[np.float64],
    left: npt.NDArray[np.float64],
    sizes: npt.NDArray[np.float64],
    freedom: npt.NDArray[np.float64],
    seed: int,
    draws: int,
) -> npt.NDArray[np.float64]:
    """(draw, number) how far numbers are from where they stood, with blocks drawn anew."""
    weight = np.nan_to_num(sizes)
    parts = weight.sum(0) / np.where(weight > 0, weight, np.nan)
    pseudo = np.nan_to_num(parts * centre - (parts - 1) * left)
    middle = (weight * pseudo).sum(0) / weight.sum(0)
    blocks = len(weight)
    drawn = np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), size=draws).astype(np.float64)
    there = drawn @ weight
    means = drawn @ (weight * pseudo) / np.where(there > 0, there, np.nan)
    end = (1 + LEVEL) / 2
    widened = np.sqrt(blocks / (blocks - 1)) * student.ppf(end, freedom) / norm.ppf(end)
    return np.asarray(np.nan_to_num(means - middle) * widened)
