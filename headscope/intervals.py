"""Intervals over blocks of documents: the delete-m jackknife. Blocks may differ in size, and some may be empty.

Documents are the unit: tokens and rows of one document are never treated as independent of each other.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int, Shaped
from scipy.stats import t as student

__all__ = ["LEVEL", "jackknife", "mean_interval"]

Floats = npt.NDArray[np.float64]
B = TypeVar("B")

LEVEL = 0.95  # share of intervals that hold the true value, at every place that does not say otherwise


def jackknife(
    estimate: Callable[[Sequence[B]], Floats], blocks: Sequence[B], sizes: Sequence[int], level: float = LEVEL
) -> tuple[Floats, Floats]:
    """Interval of an estimate, from what it becomes when one block after another is left out.

    The estimate ± Student's t (blocks - 1 degrees of freedom) × the standard error of the delete-m jackknife for
    unequal m. Blocks of size 0 are dropped. Heavy sums should be reduced to what the estimate is made of before they
    come here: it is computed once more for every block.

    Args:
        estimate: from any of the blocks to an array; the same shape each time.
        blocks: sums over disjoint sets of documents.
        sizes: how much each block counts: its tokens, or its rows.
        level: wished coverage, in (0, 1).

    Returns:
        Lower and upper ends, each of the estimate's shape and unit; NaN where fewer than two blocks hold anything, or
        where the estimate is NaN, with all blocks or without one of them.

    Source: Busing, Meijer and van der Leeden 1999, Statistics and Computing 9, pp. 3-8, the delete-m_j jackknife:
        the variance is (1/g) Σ_j (θ̃_j - θ̂_J)² / (h_j - 1), with h_j = n/m_j, pseudo-values
        θ̃_j = h_j θ̂ - (h_j - 1) θ̂_(j) and θ̂_J = Σ_j θ̃_j / h_j.

    >>> blocks = [np.array([1.0, 3.0]), np.array([2.0, 2.0]), np.array([6.0, 4.0])]   # as for three means of two
    >>> low, high = jackknife(lambda left: np.concatenate(left).mean(), blocks, sizes=[2, 2, 2])
    >>> print(f"{low:.3f} {high:.3f}")   # 3 ± 4.303 × standard error 1
    -1.303 7.303
    """
    held = [(block, size) for block, size in zip(blocks, sizes, strict=True) if size > 0]
    whole = np.asarray(estimate([block for block, _ in held]), np.float64)
    if len(held) < 2:
        return np.full_like(whole, np.nan), np.full_like(whole, np.nan)
    rest = [[block for place, (block, _) in enumerate(held) if place != gone] for gone in range(len(held))]
    without = np.stack([np.asarray(estimate(blocks), np.float64) for blocks in rest])
    share = np.array([size for _, size in held]) / sum(size for _, size in held)
    parts = (1 / share).reshape(-1, *[1] * whole.ndim)
    pseudo = parts * whole - (parts - 1) * without
    centre = (pseudo / parts).sum(0)
    variance = np.asarray(((pseudo - centre) ** 2 / (parts - 1)).mean(0))
    return _around(whole, variance, len(held), level)


def mean_interval(
    values: Float[np.ndarray, "*group row"], block: Int[np.ndarray, " row"], level: float = LEVEL
) -> tuple[Shaped[np.ndarray, "*group"], Shaped[np.ndarray, "*group"]]:
    """Interval of the mean over rows: what `jackknife` gives for it, in closed form.

    For a mean, a block's pseudo-value is the block's own mean.

    Args:
        values: (…, row), any unit.
        block: the block of documents that each row belongs to; blocks count by their rows.
        level: wished coverage, in (0, 1).

    Returns:
        Lower and upper ends, (…), in the values' unit; NaN with fewer than two blocks.

    Source: see `jackknife`.

    >>> low, high = mean_interval(np.array([1.0, 3.0, 2.0, 2.0, 6.0, 4.0]), np.array([0, 0, 1, 1, 2, 2]))
    >>> print(f"{low:.3f} {high:.3f}")
    -1.303 7.303
    """
    names, place, rows = np.unique(block, return_inverse=True, return_counts=True)
    whole = np.asarray(values.mean(-1), np.float64)
    if len(names) < 2:
        return np.full_like(whole, np.nan), np.full_like(whole, np.nan)
    member = place[:, None] == np.arange(len(names))
    means = values @ (member / rows)
    variance = np.asarray(((means - whole[..., None]) ** 2 / (len(block) / rows - 1)).mean(-1))
    return _around(whole, variance, len(names), level)


def _around(centre: Floats, variance: Floats, n_blocks: int, level: float) -> tuple[Floats, Floats]:
    half = student.ppf((1 + level) / 2, n_blocks - 1) * np.sqrt(variance)
    return np.asarray(centre - half), np.asarray(centre + half)
