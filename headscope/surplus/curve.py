"""The curve of redundancy: how much of what varies in a layer's output the best k of its heads give back."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from headscope.statistics.moments import Moments
from headscope.statistics.prediction import RIDGE, left_out, penalty_of
from headscope.statistics.swapped_moments import Swapped, has_pairs
from headscope.uncertainty.intervals import Spread, jackknife_spread

__all__ = ["LEAST_BLOCKS", "Best", "Weights", "curve_by_chance", "curve_spreads", "fit_best", "residuals"]

Floats = npt.NDArray[np.float64]
Weights = Sequence[Float64[Tensor, "width dim"]]

_VARIES = 1e-12  # of the squares: what float32 makes of a layer that writes one and the same vector
LEAST_BLOCKS = 4  # of an interval: leaving one out must leave something in either half


@dataclass(frozen=True, eq=False)
class Best:
    """A layer's heads in the order in which they help most, and the layer's output predicted from the first k of them.

    With C + λ = L Lᵀ in that order and u = L⁻¹ (z - mean), the prediction from the first k heads is B u, cut off after
    their dimensions: one factorisation serves every k.

    Attributes:
        order: heads, best first.
        ends: how many dimensions the first k heads have, k from 0.
        rows: the dimensions of z in that order.
        mean: (D,) mean of z where it was fitted.
        lower: (D, D) L.
        own: (D, D) BᵀB, with B = W C L⁻ᵀ (width, D).
        hit: (D, D) BᵀW.
        gram: (D, D) WᵀW.
    """

    order: tuple[int, ...]
    ends: tuple[int, ...]
    rows: tuple[int, ...]
    mean: Float64[Tensor, " dim"]
    lower: Float64[Tensor, "dim dim"]
    own: Float64[Tensor, "dim dim"]
    hit: Float64[Tensor, "dim dim"]
    gram: Float64[Tensor, "dim dim"]


def fit_best(moments: Moments, weights: Weights, ridge: float = RIDGE) -> Best:
    """Choose heads one after another, each the one that then helps most to predict the layer's whole output.

    The prediction is a ridge regression with an unpenalised constant; what is made smallest is what it minimises, the
    squared error with the penalty. Kept heads are swept out of [[C + λ, C Wᵀ], [W C, W C Wᵀ]], block after block: the
    gain of each head that is left is then tr(P⁻¹ Y Yᵀ), P its own block and Y its rows of C Wᵀ. About D³ in all.

    Args:
        moments: of one layer, of what enters the output projection.
        weights: W_O of each head, (width, value_dim).
        ridge: λ as a share of the mean diagonal of C.

    Returns:
        The order and the predictions; among heads that help equally the first is taken.
    """
    mean, output = moments.mean, torch.cat(list(weights), dim=1)
    covariance = moments.second(mean)
    penalised = covariance + penalty_of(covariance, ridge) * torch.eye(len(mean), dtype=torch.float64)
    cross = covariance @ output.T
    order = _greedy_order(penalised.clone(), cross.clone(), moments.slices)
    rows = [row for head in order for row in range(len(mean))[moments.slices[head]]]
    lower = torch.linalg.cholesky(penalised[rows][:, rows])
    slope = torch.linalg.solve_triangular(lower, cross[rows], upper=False)
    ordered = output[:, rows]
    ends = np.cumsum([0, *(moments.dims[head] for head in order)]).tolist()
    sums = slope @ slope.T, slope @ ordered, ordered.T @ ordered
    return Best(tuple(order), tuple(ends), tuple(rows), mean, lower, *sums)


def _greedy_order(
    left: Float64[Tensor, "dim dim"], cross: Float64[Tensor, "dim width"], slices: Sequence[slice]
) -> list[int]:
    """Heads, best first; `left` (C + λ) and `cross` (C Wᵀ) are swept in place."""
    order: list[int] = []
    remaining = list(range(len(slices)))
    while remaining:
        gains = []
        for head in remaining:
            own = slices[head]
            half = torch.linalg.solve_triangular(torch.linalg.cholesky(left[own, own]), cross[own], upper=False)
            gains.append(float(half.square().sum()))
        chosen = remaining.pop(int(np.argmax(gains)))
        order.append(chosen)
        own = slices[chosen]
        explained = torch.cholesky_solve(left[own], torch.linalg.cholesky(left[own, own]))  # P⁻¹ [row block]
        columns = left[:, own].clone()
        cross -= explained.T @ cross[own]
        left -= columns @ explained
    return order


def residuals(best: Best, judge_on: Moments) -> Float[np.ndarray, " k"]:
    """(N + 2,) Σ over positions of ‖y‖², then of ‖y - ŷ‖², ŷ from the best k heads and a constant, k = 0 … N.

    y is what all heads together add to the output projection's output. Sums of disjoint documents add up.

    Args:
        best: fitted elsewhere.
        judge_on: moments of the same layer.
    """
    second = judge_on.second(best.mean)[list(best.rows)][:, list(best.rows)]
    half = torch.linalg.solve_triangular(best.lower, second, upper=False)
    among = torch.linalg.solve_triangular(best.lower, half.T, upper=False)  # Σ u uᵀ
    whole = float((best.gram * second).sum())
    hit = (best.hit * half).sum(1).numpy().cumsum()  # Σ ⟨ŷ, y⟩ with each dimension more
    nested = (best.own * among).numpy().cumsum(0).cumsum(1).diagonal()  # and Σ ‖ŷ‖²
    left = whole - 2 * hit + nested
    return np.array([_energy(judge_on, best), whole, *(left[end - 1] for end in best.ends[1:])])


def _energy(judge_on: Moments, best: Best) -> float:
    """Σ over positions of ‖y‖²."""
    second = judge_on.second(torch.zeros_like(judge_on.pivot))[list(best.rows)][:, list(best.rows)]
    return float((best.gram * second).sum())


def curve_spreads(blocks: Sequence[Moments], weights: Weights, ridge: float = RIDGE) -> tuple[Spread, Spread]:
    """Share of what varies in a layer's output that its best k heads give back, on documents that did not choose them.

    1 - Σ ‖y - ŷ‖² / Σ ‖y - ȳ‖² over positions, y what all heads write together, ŷ predicted from the k heads and a
    constant, see `fit_best`, and ȳ by the constant alone. Heads are chosen and ŷ and ȳ are fitted on every second block
    of documents and judged on the rest, then the other way round; the squares of both directions are summed.

    Args:
        blocks: moments of one layer, of each block of documents.
        weights: W_O of each head, (width, value_dim).
        ridge: see `fit_best`.

    Returns:
        (N + 1,) twice, for k = 0 … N; no unit, at most 1. First the share: 0 for k = 0, 1 = the k heads give back all
        that varies; below 0 = worse than a constant on unseen documents; NaN for a layer whose output does not vary.
        Then what constant and k heads give back of the whole, 1 - Σ ‖y - ŷ‖² / Σ ‖y‖²; 1 for such a layer. Both NaN
        with fewer than two blocks that hold anything. The error is that of the delete-m jackknife with choice and fit
        made anew each time; NaN with fewer than four blocks.

    Source: our own definition; the greedy choice is that of forward selection, the estimate of the error that of
        `headscope.uncertainty.intervals.jackknife_spread`.
    """
    filled = [block for block in blocks if block.n]
    sizes = [block.n for block in filled]
    if len(filled) < 2:
        unknown = jackknife_spread(np.full(len(weights) + 1, np.nan), [], sizes)
        return unknown, unknown
    halves = filled[::2], filled[1::2]
    fits = [fit_best(Moments.total(half), weights, ridge) for half in halves]
    whole = _both_ways(fits, halves)
    if len(filled) < LEAST_BLOCKS:
        freedom = np.asarray(np.float64(len(filled) - 1))
        share, restored = (Spread(own, np.full_like(own, np.nan), freedom) for own in whole)
        return share, restored
    without = []
    for own, _, left in left_out(halves):
        refitted = fit_best(Moments.total(left), weights, ridge)
        pair = ([refitted, fits[1]], [left, halves[1]]) if own == 0 else ([fits[0], refitted], [halves[0], left])
        without.append(_both_ways(*pair))
    share, restored = (jackknife_spread(whole[i], [left[i] for left in without], sizes) for i in (0, 1))
    return share, restored


def curve_by_chance(
    halves: Sequence[Swapped], order: Sequence[int], weights: Weights, ridge: float = RIDGE
) -> Float[np.ndarray, " k"]:
    """(N + 1,) the same share where the heads that are kept share nothing with those that are not.

    The heads that are not kept are taken as they are in other documents; what they write there nobody else can know.

    Args:
        halves: of one layer; each is predicted by what was fitted on the other.
        order: heads, best first.
        weights: W_O of each head, (width, value_dim).
        ridge: see `fit_best`.

    Returns:
        For k = 0 … N; NaN where a half is empty, or the output does not vary.
    """
    if not has_pairs(halves):
        return np.full(len(weights) + 1, np.nan)
    output = torch.cat(list(weights), dim=1)
    ways = [
        [_missed_apart(fit, judge, order[:k], output, ridge) for k in range(len(order) + 1)]
        for fit, judge in (halves, halves[::-1])
    ]
    varying, left = np.sum(ways, axis=0).T
    whole = sum(_written(judge.own, output) for judge in halves)
    return np.asarray(1 - left / np.where(varying > _VARIES * whole, varying, np.nan))


def _missed_apart(
    fit: Swapped, judge: Swapped, kept: Sequence[int], output: Float64[Tensor, "width dim"], ridge: float
) -> Floats:
    """Σ ‖y - ȳ‖² and Σ ‖y - ŷ‖² where the kept heads are of one document and the others of another."""
    mean = fit.own.mean
    rows = torch.tensor([row for head in kept for row in range(len(mean))[fit.own.slices[head]]], dtype=torch.long)
    there = torch.zeros(len(mean), dtype=torch.bool)
    there[rows] = True
    together = there[:, None] == there

    def mixed(seen: Swapped) -> Float64[Tensor, "dim dim"]:
        return torch.where(together, seen.own.second(mean), seen.crossed.second(mean))

    left = output.clone()
    if len(rows):
        covariance = mixed(fit)
        alone = covariance[rows][:, rows] + penalty_of(fit.own.second(mean), ridge) * torch.eye(len(rows)).double()
        left[:, rows] -= torch.linalg.solve(alone, (output @ covariance[:, rows]).T).T
    judged = mixed(judge)
    return np.array([float((own @ judged * own).sum()) for own in (output, left)])


def _written(seen: Moments, output: Float64[Tensor, "width dim"]) -> float:
    """Σ over positions of ‖y‖²."""
    return float((output @ seen.second(torch.zeros_like(seen.mean)) * output).sum())


def _both_ways(fits: Sequence[Best], halves: Sequence[Sequence[Moments]]) -> Floats:
    """(2, N + 1) shares of what varies, and of the whole, each half's fit judged on the other half."""
    whole, *missed = np.sum([residuals(fits[way], Moments.total(halves[1 - way])) for way in (0, 1)], axis=0)
    varying = missed[0] if missed[0] > _VARIES * whole else 0.0
    if not varying:
        return np.array([np.full(len(missed), np.nan), np.ones(len(missed))])
    return 1 - np.array(missed) / np.array([[varying], [whole]])
