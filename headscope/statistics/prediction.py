"""Prediction: heads from other heads by ridge regression, all of it from second moments, judged on other documents."""

from collections.abc import Sequence
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
    "StandIns",
    "best_stand_in",
    "both_ways",
    "check_ridge",
    "explained_share",
    "fit_stand_ins",
    "residual_energy",
    "restored_share",
    "share_of",
    "unexplained_share",
]

Floats = npt.NDArray[np.float64]
Weights = Sequence[Float64[Tensor, "width dim"]]

RIDGE = 1e-3


def check_ridge(ridge: float) -> None:
    """Refuse what is no penalty of a ridge regression.

    Raises:
        InputError: it is negative, NaN or infinite.
    """
    if not 0 <= ridge < float("inf"):
        raise InputError(f"ridge is a share of the mean square or variance, from 0; it was {ridge}")


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


def fit_stand_ins(moments: Moments, ridge: float = RIDGE) -> StandIns:
    """Predict every head of a layer from the others, by ridge regression with an unpenalised constant.

    With Q = (C + λ)⁻¹, C the covariances of all heads, the coefficients of head h on the others o are -Q_hh⁻¹ Q_ho:
    one inverse serves all heads.

    Args:
        moments: of one layer.
        ridge: λ as a share of the mean diagonal of Σ z zᵀ.

    Returns:
        The stand-ins; NaN where no position was summed.

    Source: the inverse of a partitioned matrix, e.g. Lütkepohl 1996, section 3.5.3.
    """
    covariance = moments.second(moments.mean)
    precision = torch.linalg.inv(covariance + _penalty(moments, ridge) * torch.eye(len(covariance)).double())
    weights = torch.zeros_like(covariance)
    for own in moments.slices:
        weights[own] = -torch.linalg.solve(precision[own, own], precision[own])
        weights[own, own] = 0
    return StandIns(moments.dims, moments.mean, weights)


def restored_share(
    fit_on: Moments, judge_on: Moments, output_weights: Weights, ridge: float = RIDGE
) -> Float[np.ndarray, " head"]:
    """(head,) 1 - `unexplained_share` of stand-ins fitted on some documents and judged on others.

    Args:
        fit_on, judge_on: moments of one layer, of "gated_z".
        output_weights: W_O of each head, (width, value_dim).
        ridge: see `fit_stand_ins`.
    """
    return 1 - unexplained_share(fit_stand_ins(fit_on, ridge), judge_on, output_weights)


def unexplained_share(stand_ins: StandIns, judge_on: Moments, output_weights: Weights) -> Float[np.ndarray, " head"]:
    """(head,) ‖(z - ẑ) W_O‖² / ‖z W_O‖²; 0 for a head that adds nothing, NaN where no position was summed.

    Args:
        stand_ins: fitted elsewhere.
        judge_on: moments of the same layer.
        output_weights: W_O of each head, (width, value_dim).
    """
    if not judge_on.n:
        return np.full(len(output_weights), np.nan)
    residual = residual_energy(stand_ins, judge_on, output_weights)
    return share_of(residual, contribution_energy(judge_on, output_weights))


def residual_energy(stand_ins: StandIns, judge_on: Moments, output_weights: Weights) -> Float[np.ndarray, " head"]:
    """(head,) Σ ‖(z - ẑ) W_O‖² over positions; sums of disjoint documents add up.

    Args:
        stand_ins: fitted elsewhere.
        judge_on: moments of the same layer.
        output_weights: W_O of each head, (width, value_dim).
    """
    second = judge_on.second(stand_ins.mean)
    residual = torch.eye(len(second)).double() - stand_ins.weights
    product = residual @ second
    energies = []
    for own, weight in zip(judge_on.slices, output_weights, strict=True):
        energies.append(float((weight.T @ (weight @ residual[own]) * product[own]).sum()))
    return np.array(energies)


def best_stand_in(
    blocks: Sequence[Moments], output_weights: Weights, ridge: float = RIDGE
) -> tuple[Int[np.ndarray, " head"], Float[np.ndarray, " head"]]:
    """For each head of a layer, the one other head that gives back most of what it adds, alone with a constant.

    Fitted on one half of the blocks and judged on the other, both ways; the two shares are averaged.

    Args:
        blocks: moments of one layer, of each block of documents.
        output_weights: W_O of each head, (width, value_dim).
        ridge: as a share of the mean diagonal of Σ z zᵀ of the one head.

    Returns:
        (head,) positions on the head axis, and (head,) the shares given back, at most 1. Position -1 where no head does
        better than the constant alone (a layer's only head; a zero or constant head), with the constant's share; NaN
        with it where one half holds no document.
    """
    directions = both_ways(blocks)
    if not all(judging for _, judging in directions):
        return np.full(len(output_weights), -1), np.full(len(output_weights), np.nan)
    shares = np.mean(
        [
            _single_shares(Moments.total(fitted), Moments.total(judging), output_weights, ridge)
            for fitted, judging in directions
        ],
        axis=0,
    )
    best = shares.argmax(1)  # the constant comes first, and wins a tie
    return best - 1, shares.max(1)


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


def share_of(residual: Floats, energy: Floats) -> Floats:
    """residual / energy; 0 where there is no energy to explain."""
    return np.where(energy > 0, residual / np.where(energy > 0, energy, 1), 0.0)


def _single_shares(
    fit_on: Moments, judge_on: Moments, weights: Weights, ridge: float
) -> Float[np.ndarray, "head stand_in"]:
    """(head, 1 + head) share given back by the constant alone, then by each head; -inf by the head itself."""
    covariance = fit_on.second(fit_on.mean)
    second = judge_on.second(fit_on.mean)
    own_energy = [_weighted(second[own, own], weight) for own, weight in zip(fit_on.slices, weights, strict=True)]
    residual = [own_energy]
    for other in range(len(fit_on.dims)):
        by = fit_on.slices[other]
        penalty = _penalty(fit_on.select([other]), ridge)
        inverse = torch.linalg.inv(covariance[by, by] + penalty * torch.eye(fit_on.dims[other]).double())
        slope = covariance[:, by] @ inverse
        change = slope @ second[by, by] - 2 * second[:, by]
        gain = [
            float((weight.T @ (weight @ slope[own]) * change[own]).sum())
            for own, weight in zip(fit_on.slices, weights, strict=True)
        ]
        residual.append([whole + part for whole, part in zip(own_energy, gain, strict=True)])
    shares = 1 - share_of(np.array(residual).T, contribution_energy(judge_on, weights)[:, None])
    shares[:, 1:][np.diag_indices(len(weights))] = -np.inf
    return shares


def _slopes(fitted: Float64[Tensor, "dim dim"], own: slice, ridge: float) -> Float64[Tensor, "own dim"]:
    """(d, D) ridge coefficients of all dimensions on one head's."""
    covariance = fitted[own, own]
    penalty = ridge * float(covariance.diagonal().mean())
    return torch.linalg.solve(covariance + penalty * torch.eye(len(covariance)).double(), fitted[own])


def _weighted(second: Float64[Tensor, "dim dim"], weight: Float64[Tensor, "width dim"]) -> float:
    """Σ ‖W x‖² from Σ x xᵀ."""
    return float((weight.T @ weight * second).sum())


def _penalty(moments: Moments, ridge: float) -> float:
    """ridge × the mean diagonal of Σ z zᵀ; 1 where that is zero, and any penalty gives the same."""
    return ridge * float(moments.second(torch.zeros_like(moments.pivot)).diagonal().mean()) or 1.0
