"""Prediction: heads from other heads by ridge regression, all of it from second moments, judged on other documents."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from headscope.errors import InputError
from headscope.statistics.moments import Moments, contribution_energy

__all__ = [
    "RIDGE",
    "Energies",
    "StandIns",
    "best_stand_in",
    "both_ways",
    "check_ridge",
    "explained_share",
    "fit_stand_ins",
    "judge_stand_ins",
    "left_out",
    "penalty_of",
]

Floats = npt.NDArray[np.float64]
Weights = Sequence[Float64[Tensor, "width dim"]]

RIDGE = 1e-3
_VARIES = 1e-12  # of the squares: float32 makes that much out of a head that writes one and the same vector


def check_ridge(ridge: float) -> None:
    """Refuse what is no penalty of a ridge regression.

    Raises:
        InputError: it is not above 0 (a head that copies another leaves nothing to divide by then), or is no number.
    """
    if not 0 < ridge < float("inf"):
        raise InputError(f"ridge is a share of the mean variance, above 0 (1e-9 is next to none); it was {ridge}")


@dataclass(frozen=True, eq=False)
class StandIns:
    """ẑ = mean + weights (z - mean): each head of a layer predicted from the others and a constant.

    Attributes:
        dims: dimensions of each head.
        mean: (D,) mean of z where it was fitted.
        weights: (D, D); zero where a head would predict itself.
    """

    dims: tuple[int, ...]
    mean: Float64[Tensor, " dim"]
    weights: Float64[Tensor, "dim dim"]

    @property
    def constant(self) -> Float64[Tensor, " dim"]:
        """(D,) what is left of ẑ where all other heads are zero: ẑ = weights z + constant."""
        return self.mean - self.weights @ self.mean


def fit_stand_ins(moments: Moments, ridge: float = RIDGE, crossed: Moments | None = None) -> StandIns:
    """Predict every head of a layer from the others, by ridge regression with an unpenalised constant.

    With Q = (C + λ)⁻¹, C the covariances of all heads, the coefficients of head h on the others o are -Q_hh⁻¹ Q_ho:
    one inverse serves all heads. Of other documents' heads they are M_ho (Q_oo - Q_oh Q_hh⁻¹ Q_ho), where M is the
    covariance of each head with the others there.

    Args:
        moments: of one layer.
        crossed: what heads share with heads of other documents, from which each is then predicted; see
            `headscope.statistics.swapped_moments.Swapped`.
        ridge: λ as a share of the mean diagonal of C, so that an offset of z changes nothing.

    Returns:
        The stand-ins; NaN where no position was summed.

    Source: the inverse of a partitioned matrix, e.g. Lütkepohl 1996, section 3.5.3.
    """
    covariance = moments.second(moments.mean)
    precision = torch.linalg.inv(covariance + penalty_of(covariance, ridge) * torch.eye(len(covariance)).double())
    weights = torch.zeros_like(covariance)
    between = None if crossed is None else crossed.second(moments.mean)
    for own in moments.slices:
        alone = torch.linalg.solve(precision[own, own], precision[own])
        if between is None:
            weights[own] = -alone
        else:
            shared = between[own].clone()
            shared[:, own] = 0
            weights[own] = shared @ precision - (shared @ precision[:, own]) @ alone
        weights[own, own] = 0
    return StandIns(moments.dims, moments.mean, weights)


@dataclass(frozen=True, eq=False)
class Energies:
    """What heads write, what varies of it, and what of that is missed: squares summed over positions, (head,) each.

    Sums over disjoint documents add up.

    Attributes:
        whole: Σ ‖W_O z‖².
        varying: Σ ‖W_O (z - z̄)‖², z̄ the mean where the stand-ins were fitted: what a constant misses.
        residual: Σ ‖W_O (z - ẑ)‖²: what the constant and the other heads miss.
    """

    whole: Floats
    varying: Floats
    residual: Floats

    def __add__(self, other: "Energies") -> "Energies":
        """Over both texts."""
        return Energies(self.whole + other.whole, self.varying + other.varying, self.residual + other.residual)

    def shares(self) -> Float[np.ndarray, "share head"]:
        """(3, head): `replaceability`, `constant` and `restored`, no unit, each at most 1.

        replaceability = 1 - residual / varying; constant = 1 - varying / whole; restored = 1 - residual / whole, which
        is constant + (1 - constant) · replaceability. Of a head that does not vary, they are NaN, 1 and 1.
        """
        varies = (self.whole > 0) & (self.varying > _VARIES * self.whole)
        whole = np.where(varies, self.whole, 1.0)
        missed, left = (np.where(varies, own, 0.0) for own in (self.varying, self.residual))
        return np.stack([1 - left / np.where(varies, missed, np.nan), 1 - missed / whole, 1 - left / whole])


def judge_stand_ins(
    stand_ins: StandIns, judge_on: Moments, output_weights: Weights, crossed: Moments | None = None
) -> Energies:
    """What stand-ins that were fitted on some documents give back of the heads on others.

    Args:
        stand_ins: fitted elsewhere.
        judge_on: moments of the same layer, of "gated_z".
        output_weights: W_O of each head, (width, value_dim).
        crossed: as in `fit_stand_ins`: heads are judged beside those of other documents.
    """
    second = judge_on.second(stand_ins.mean)
    between = second if crossed is None else crossed.second(stand_ins.mean)
    missed, varying = [], []
    for own, weight in zip(judge_on.slices, output_weights, strict=True):
        by = stand_ins.weights[own]
        gap = second[own, own] - 2 * by @ between[:, own] + by @ second @ by.T
        missed.append(_weighted(gap, weight))
        varying.append(_weighted(second[own, own], weight))
    return Energies(contribution_energy(judge_on, output_weights), np.array(varying), np.array(missed))


def best_stand_in(
    blocks: Sequence[Moments], output_weights: Weights, ridge: float = RIDGE
) -> tuple[Int[np.ndarray, " head"], Float[np.ndarray, " head"]]:
    """For each head of a layer, the one other head that gives back most of what it adds, alone with a constant.

    Each half of the blocks is predicted by what was fitted on the other half.

    Args:
        blocks: moments of one layer, of each block of documents.
        output_weights: W_O of each head, (width, value_dim).
        ridge: as a share of the mean variance of the one head's dimensions.

    Returns:
        (head,) positions on the head axis, and (head,) the shares given back of what varies in each head, at most 1.
        Position -1 where no head does better than the constant alone, with 0; NaN for a head that does not vary, and
        where one half holds no document.
    """
    n_heads, directions = len(output_weights), both_ways(blocks)
    if not all(judging for _, judging in directions):
        return np.full(n_heads, -1), np.full(n_heads, np.nan)
    missed, whole = np.zeros((n_heads, 1 + n_heads)), np.zeros(n_heads)
    for fitted, judging in directions:
        judged = Moments.total(judging)
        missed += _missed_by_each(Moments.total(fitted), judged, output_weights, ridge)
        whole += contribution_energy(judged, output_weights)
    best = missed.argmin(1)  # the constant comes first, and wins a tie
    varies = (whole > 0) & (missed[:, 0] > _VARIES * whole)
    share = 1 - missed.min(1) / np.where(varies, missed[:, 0], np.nan)
    return np.where(varies, best - 1, -1), share


def explained_share(fit_on: Moments, judge_on: Moments, ridge: float = RIDGE) -> Float[np.ndarray, "head head"]:
    """R² of every head from every other, fitted on some positions and judged on others.

    Args:
        fit_on, judge_on: moments of the same heads.
        ridge: of the regression, as a share of the mean variance of the predicting head's dimensions.

    Returns:
        (head, head), no unit, at most 1: [a, b] = how well a predicts b. Where a head predicts itself, what the ridge
        takes away is left out: 1. NaN where b does not vary.

    Source: linear regression as a similarity, Kornblith et al. 2019, arXiv:1905.00414, table 1; here held out.

    >>> from headscope.statistics.block_sums import lift
    >>> a = torch.tensor([[[1.0], [2.0]], [[-1.0], [-2.0]], [[2.0], [4.0]], [[-2.0], [-4.0]]], dtype=torch.float64)
    >>> zero = torch.zeros(2, dtype=torch.float64)
    >>> u = lift([a], zero)
    >>> moments = Moments.of_square((1, 1), zero, u.T @ u)
    >>> explained_share(moments, moments, ridge=0.0)
    array([[1., 1.],
           [1., 1.]])
    """
    fitted = fit_on.second(fit_on.mean)
    # about the fitting half's mean, the constant of the regression is 0 on the judging half
    judged = judge_on.second(fit_on.mean)
    whole = judge_on.second(judge_on.mean).diagonal()
    values = np.empty((len(fit_on.dims), len(fit_on.dims)))
    starts = [own.start for own in fit_on.slices]
    # where a head is constant, its spread is rounding: nothing can be judged by it, and nothing fitted to it
    spread = np.where(judge_on.constant, np.nan, np.add.reduceat(whole.numpy(), starts))
    idle = fit_on.constant
    alone = judged.diagonal()
    for head, own in enumerate(fit_on.slices):
        slope = torch.zeros_like(fitted[own]) if idle[head] else _slopes(fitted, own, ridge)
        residual = alone - 2 * (slope * judged[own]).sum(0) + (slope * (judged[own, own] @ slope)).sum(0)
        values[head] = 1 - np.add.reduceat(residual.numpy(), starts) / spread
        values[head, head] = spread[head] / spread[head]
    return values


def both_ways(blocks: Sequence[Moments]) -> list[tuple[list[Moments], list[Moments]]]:
    """Fit on, judge on: every second block that holds anything against the rest, and the other way round."""
    filled = [block for block in blocks if block.n]
    return [(filled[::2], filled[1::2]), (filled[1::2], filled[::2])]


def left_out(halves: Sequence[Sequence[Moments]]) -> Iterator[tuple[int, int, list[Moments]]]:
    """Each block left out in turn, in the blocks' order: its half, its place there, and what is left of that half.

    Args:
        halves: as blocks are dealt to them, the first, third … and the second, fourth ….
    """
    for gone in range(sum(map(len, halves))):
        own, place = gone % 2, gone // 2
        yield own, place, [block for i, block in enumerate(halves[own]) if i != place]


def _missed_by_each(
    fit_on: Moments, judge_on: Moments, weights: Weights, ridge: float
) -> Float[np.ndarray, "head stand_in"]:
    """(head, 1 + head) Σ ‖W_O (z - ẑ)‖², ẑ by the constant alone, then by each head with it; inf by the head itself."""
    covariance = fit_on.second(fit_on.mean)
    second = judge_on.second(fit_on.mean)
    by_constant = [_weighted(second[own, own], weight) for own, weight in zip(fit_on.slices, weights, strict=True)]
    missed = [by_constant]
    for other in range(len(fit_on.dims)):
        by = fit_on.slices[other]
        alone = covariance[by, by]
        inverse = torch.linalg.inv(alone + penalty_of(alone, ridge) * torch.eye(len(alone)).double())
        slope = covariance[:, by] @ inverse
        change = slope @ second[by, by] - 2 * second[:, by]
        gain = [
            float((weight.T @ (weight @ slope[own]) * change[own]).sum())
            for own, weight in zip(fit_on.slices, weights, strict=True)
        ]
        missed.append([whole + part for whole, part in zip(by_constant, gain, strict=True)])
    table = np.array(missed).T
    table[:, 1:][np.diag_indices(len(weights))] = np.inf
    return table


def _slopes(fitted: Float64[Tensor, "dim dim"], own: slice, ridge: float) -> Float64[Tensor, "own dim"]:
    """(d, D) ridge coefficients of all dimensions on one head's."""
    covariance = fitted[own, own]
    return torch.linalg.solve(
        covariance + penalty_of(covariance, ridge) * torch.eye(len(covariance)).double(), fitted[own]
    )


def _weighted(second: Float64[Tensor, "dim dim"], weight: Float64[Tensor, "width dim"]) -> float:
    """Σ ‖W x‖² from Σ x xᵀ."""
    return float((weight.T @ weight * second).sum())


def penalty_of(covariance: Float64[Tensor, "dim dim"], ridge: float) -> float:
    """ridge × the mean diagonal; 1 where the diagonal is zero, and any penalty gives the same."""
    mean = float(covariance.diagonal().mean())
    return ridge * mean if mean else 1.0
