"""Intervals of shares, by the bootstrap over documents: a share of heads is a step function, so no jackknife."""

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from headscope.uncertainty.intervals import LEVEL, Spread

__all__ = ["share_above"]

Floats = npt.NDArray[np.float64]

_DRAWS = 2000


def share_above(spread: Spread, size: float, *, seed: int = 0, draws: int = _DRAWS) -> tuple[float, float, float]:
    """Share of numbers above a size, with a 95% interval over documents that holds where many numbers lie at the line.

    Noise moves numbers over the line, and where many lie just beside it the share that is counted is far from the true
    one, on one side. Resampled shares are as far off again, so that their percentiles miss the truth. The question is
    turned round: at least so many numbers are truly above as stand beyond a line, less as many as noise alone puts
    there. Several lines are asked, and hold at once; so it is from below.

    What noise does is drawn: blocks of documents with replacement, as many as there are, the same for all numbers, so
    that those that err together still do. A number's noise is its mean over the drawn blocks' pseudo-values, less their
    mean over all blocks, in standard errors of the draw: few blocks make it wide, as Student's t is.

    Skewed noise and few documents remain a weakness. Where all numbers lay at the line, their noise leaned to the low
    side and documents had very unlike lengths, 95% intervals held in 86% of texts of 5 documents, 91% of 10, 96% of 24.

    Args:
        spread: (number,) a jackknife over blocks, or `mean_spread`; numbers that are NaN are left out.
        size: in the unit of the numbers.
        seed: of the draws.
        draws: how many.

    Returns:
        The share that is counted, its lower and its upper end, in [0, 1]; NaN for the ends where there is no jackknife,
        and for all where there is no number. With fewer than five blocks the interval is often all of [0, 1].

    Source: Blanchard, Neuvial and Roquain 2020, Annals of Statistics 48, pp. 1281-1303 (bounds from several lines, each
        as rarely passed as the others); Efron and Tibshirani 1993, An Introduction to the Bootstrap, sections 12.5
        (bootstrap-t) and 11.5 (the jackknife's linear form).

    >>> from headscope.uncertainty.intervals import mean_spread
    >>> far = mean_spread(np.array([[0.0], [5.0]]) + np.linspace(-1, 1, 12), np.arange(12))
    >>> share_above(far, 1.5)
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
    standing, noise = _in_errors(centre - size, spread.error[known]), _noise(centre, left, sizes, seed, draws)
    least, most = _surely(standing, noise), len(known) - _surely(-standing, -noise)
    return share, least / len(known), most / len(known)


def _noise(centre: Floats, left: Floats, sizes: Floats, seed: int, draws: int) -> Floats:
    """(draw, number) how far numbers are from where they stood, with blocks drawn anew, in errors of the draw."""
    weight = np.nan_to_num(sizes)
    parts = weight.sum(0) / np.where(weight > 0, weight, np.nan)
    pseudo = np.nan_to_num(parts * centre - (parts - 1) * left)
    blocks = len(weight)
    drawn = np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), size=draws).astype(np.float64)
    there = drawn @ weight
    means = drawn @ (weight * pseudo) / np.where(there > 0, there, np.nan)
    variance = np.zeros_like(means)
    for times, own, value in zip(drawn.T[:, :, None], weight, pseudo, strict=True):  # as of `jackknife_spread`
        others = there - own  # of no account where the block was not drawn
        variance += times * (means - value) ** 2 * own / np.where(times * others > 0, others, np.inf)
    variance /= np.maximum(drawn @ (weight > 0), 1)
    middle = (weight * pseudo).sum(0) / weight.sum(0)
    return _in_errors(np.nan_to_num(means - middle), np.sqrt(variance))


def _in_errors(distance: Floats, error: Floats) -> Floats:
    """Distances in standard errors; 0 where there is neither."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(distance == 0, 0.0, distance / error))


def _surely(standing: Floats, noise: Floats) -> int:
    """How many numbers are above at the least, but for 2.5% of texts: the most that any line says.

    The k-th line is passed by more than k numbers' noise in few draws, each line in as few as the others, and any of
    them in 2.5% of all. So beyond it there are k at most that are not truly above.
    """
    ordered = -np.sort(-noise, axis=1)  # (draw, k): the noise that k others pass
    rarest = np.sort(rankdata(-ordered, method="max", axis=0).min(1))
    lines = -np.sort(-ordered, axis=0)[int(rarest[int((1 - LEVEL) / 2 * len(noise))]) - 1]
    beyond = (standing[:, None] > np.maximum(lines, 0)).sum(0) - np.arange(len(lines))
    return max(int(beyond.max()), 0)
