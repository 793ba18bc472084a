"""The curve of redundancy: how much of what a layer's heads write together the best k of them give back."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from headscope.statistics.moments import Moments
from headscope.statistics.prediction import RIDGE
from headscope.uncertainty.intervals import Spread, jackknife_spread

__all__ = ["LEAST_BLOCKS", "Best", "Weights", "curve_spread", "fit_best", "residuals", "total_energy"]

Floats = npt.NDArray[np.float64]
Weights = Sequence[Float64[Tensor, "width dim"]]

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
        ridge: λ as a share of the mean diagonal of Σ z zᵀ.

    Returns:
        The order and the predictions; among heads that help equally the first is taken.
    """
    mean, output = moments.mean, torch.cat(list(weights), dim=1)
    covariance = moments.second(mean)
    scale = float((covariance.diagonal() + moments.n * mean**2).mean())
    penalised = covariance + (ridge * scale or 1.0) * torch.eye(len(mean), dtype=torch.float64)
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
    """(N + 1,) Σ over positions of ‖y - ŷ‖², ŷ from the best k heads and a constant, k = 0 … N.

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
    return np.array([whole, *(left[end - 1] for end in best.ends[1:])])


def total_energy(moments: Moments, weights: Weights) -> float:
    """Σ over positions of ‖Σ_h W_O^h z^h‖², not centred: the energy of all that a layer's heads write together.

    Args:
        moments: of one layer.
        weights: W_O of each head, (width, value_dim).
    """
    output = torch.cat(list(weights), dim=1)
    return float((output @ moments.second(torch.zeros_like(moments.pivot)) * output).sum())


def curve_spread(blocks: Sequence[Moments], weights: Weights, ridge: float = RIDGE) -> Spread:
    """Share of a layer's output energy that its best k heads give back, on documents that did not choose them.

    1 - Σ ‖y - ŷ‖² / Σ ‖y‖² over positions, y what all heads write together, not centred, and ŷ predicted from the
    k heads and a constant; see `fit_best`. Heads are chosen and ŷ is fitted on every second block of documents and
    judged on the rest, then the other way round; the two shares are averaged.

    Args:
        blocks: moments of one layer, of each block of documents.
        weights: W_O of each head, (width, value_dim).
        ridge: see `fit_best`.

    Returns:
        (N + 1,) for k = 0 (the constant alone) … N; no unit, at most 1: 1 = the k heads give back everything; below 0 =
        worse than nothing on unseen documents. A layer that writes nothing has 1. NaN with fewer than two blocks that
        hold anything. The error is that of the delete-m jackknife with choice and fit made anew each time; NaN with
        fewer than four blocks.

    Source: our own definition; the greedy choice is that of forward selection, the estimate of the error that of
        `headscope.uncertainty.intervals.jackknife_spread`.
    """
    filled = [block for block in blocks if block.n]
    if len(filled) < 2:
        return jackknife_spread(np.full(len(weights) + 1, np.nan), [], [block.n for block in filled])
    halves = filled[::2], filled[1::2]
    fits = [fit_best(Moments.total(half), weights, ridge) for half in halves]
    whole = _both_ways(fits, halves, weights)
    if len(filled) < LEAST_BLOCKS:
        return Spread(whole, np.full_like(whole, np.nan), np.asarray(np.float64(len(filled) - 1)))
    without = []
    for gone in range(len(filled)):
        own, place = gone % 2, gone // 2
        left = [block for i, block in enumerate(halves[own]) if i != place]
        refitted = fit_best(Moments.total(left), weights, ridge)
        pair = ([refitted, fits[1]], [left, halves[1]]) if own == 0 else ([fits[0], refitted], [halves[0], left])
        without.append(_both_ways(*pair, weights))
    return jackknife_spread(whole, without, [block.n for block in filled])


def _both_ways(fits: Sequence[Best], halves: Sequence[Sequence[Moments]], weights: Weights) -> Floats:
    """(N + 1,) shares given back, each half's fit judged on the other half, averaged."""
    return np.asarray(np.mean([_share(fits[way], Moments.total(halves[1 - way]), weights) for way in (0, 1)], axis=0))


def _share(best: Best, judge_on: Moments, weights: Weights) -> Floats:
    energy = total_energy(judge_on, weights)
    return 1 - residuals(best, judge_on) / energy if energy > 0 else np.ones(len(weights) + 1)
