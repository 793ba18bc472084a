"""Replaceability: how much of what a head adds its layer's other heads could add in its place, on unseen documents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from headscope._support.cards import Card
from headscope.errors import InputError
from headscope.scoring.scores import SCORES, Rating, Score
from headscope.statistics.moments import Moments, contribution_energy, total
from headscope.uncertainty.intervals import Spread, jackknife_spread, join_spreads

__all__ = [
    "RIDGE",
    "Replaceability",
    "StandIns",
    "best_stand_in",
    "check_ridge",
    "fit_stand_ins",
    "rate_replaceability",
    "replaceability",
    "residual_energy",
    "unexplained_share",
]

Floats = npt.NDArray[np.float64]
Weights = Sequence[Float64[Tensor, "width dim"]]

RIDGE = 1e-3


@SCORES.register("replaceability")
@dataclass(frozen=True)
class Replaceability(Score):
    """1 - ‖(z - ẑ) W_O‖² / ‖z W_O‖², ẑ predicted from the layer's other heads; higher = more replaceable, not needed.

    No unit, at most 1: 1 = the other heads and a constant give back all that this head adds; 0 = nothing of it; below
    0 = the prediction makes things worse on unseen documents. ẑ is fitted on one half of the blocks of documents and
    judged on the other; both directions are averaged. A zero or constant head has 1; a layer's only head is predicted
    by the constant alone; NaN where one half holds no document. The interval is a jackknife over blocks, in which
    fits are made anew without each block.

    Attributes:
        ridge: of the regression, as a share of the mean diagonal of Σ z zᵀ.

    Source: our own definition; the regression is that of least-squares repair, e.g. OSSCAR, arXiv:2403.12983.
    """

    ridge: float = RIDGE

    needs: ClassVar[frozenset[str]] = frozenset({"moments", "output_weights"})
    least_documents: ClassVar[int] = 4  # without any one block, either half must hold another
    unit: ClassVar[str] = ""
    card: ClassVar[Card] = Card(
        formula="1 - Σ‖W_O (z - ẑ)‖² / Σ‖W_O z‖², ẑ a ridge regression on the layer's other heads and a constant, "
        "fitted on one half of the documents and judged on the other; both directions averaged.",
        unit="none",
        span="at most 1; 1 = the others give back all that the head writes, 0 = nothing of it, below 0 = worse "
        "than nothing on unseen text. Higher = more replaceable, not more needed.",
        undefined="NaN where one half holds no document, and for heads of sites that cannot be cut. A zero or "
        "constant head has 1.",
        invariance="Invertible maps of the other heads (up to the ridge); rotation of the residual stream.",
        cost="One pass, and for each layer an inverse of its D dimensions for each block of documents: D³.",
        use="Whether a layer could make up for a head by a linear map of what stays. It needs text: some ten "
        "tokens for each of the layer's dimensions. Little text makes it too low, and its interval does "
        "not mend that.",
        source="Our own definition; the regression is that of least-squares repair, e.g. OSSCAR, arXiv:2403.12983.",
    )

    def __post_init__(self) -> None:
        check_ridge(self.ridge)

    def rate(self, seen: Mapping[str, Any]) -> Rating:
        """See the class."""
        return rate_replaceability(seen["moments"], seen["output_weights"], self.ridge)


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


def rate_replaceability(
    moments: Mapping[int, Sequence[Moments]],
    output_weights: Mapping[int, Weights],
    ridge: float = RIDGE,
) -> Rating:
    """`Replaceability` of every head, layer after layer.

    Args:
        moments: by layer, of each block of documents.
        output_weights: by layer, W_O of each head.
        ridge: see `Replaceability`.
    """
    layers = [_rate_layer(blocks, output_weights[layer], ridge) for layer, blocks in sorted(moments.items())]
    return Rating.from_spread(join_spreads(layers))


def replaceability(
    fit_on: Moments, judge_on: Moments, output_weights: Weights, ridge: float = RIDGE
) -> Float[np.ndarray, " head"]:
    """(head,) `Replaceability` in one direction: stand-ins fitted on some documents, judged on others.

    Args:
        fit_on, judge_on: moments of one layer, of "gated_z".
        output_weights: W_O of each head, (width, value_dim).
        ridge: see `Replaceability`.
    """
    return 1 - unexplained_share(fit_stand_ins(fit_on, ridge), judge_on, output_weights)


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
    covariance = _about(moments, moments.mean)
    precision = torch.linalg.inv(covariance + _penalty(moments, ridge) * torch.eye(len(covariance)).double())
    weights = torch.zeros_like(covariance)
    for own in moments.slices:
        weights[own] = -torch.linalg.solve(precision[own, own], precision[own])
        weights[own, own] = 0
    return StandIns(moments.dims, moments.mean, weights)


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
    return _share(residual, contribution_energy(judge_on, output_weights))


def residual_energy(stand_ins: StandIns, judge_on: Moments, output_weights: Weights) -> Float[np.ndarray, " head"]:
    """(head,) Σ ‖(z - ẑ) W_O‖² over positions; sums of disjoint documents add up.

    Args:
        stand_ins: fitted elsewhere.
        judge_on: moments of the same layer.
        output_weights: W_O of each head, (width, value_dim).
    """
    second = _about(judge_on, stand_ins.mean)
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

    Fitted and judged as in `Replaceability`, with one head in place of all others.

    Args:
        blocks: moments of one layer, of each block of documents.
        output_weights: W_O of each head, (width, value_dim).
        ridge: as a share of the mean diagonal of Σ z zᵀ of the one head.

    Returns:
        (head,) positions on the head axis, and (head,) the shares given back, at most 1. Position -1 where no head does
        better than the constant alone (a layer's only head; a zero or constant head), with the constant's share; NaN
        with it where one half holds no document.
    """
    directions = _directions(blocks)
    if not all(judging for _, judging in directions):
        return np.full(len(output_weights), -1), np.full(len(output_weights), np.nan)
    shares = np.mean(
        [_single_shares(total(fitted), total(judging), output_weights, ridge) for fitted, judging in directions], axis=0
    )
    best = shares.argmax(1)  # the constant comes first, and wins a tie
    return best - 1, shares.max(1)


def _rate_layer(blocks: Sequence[Moments], weights: Weights, ridge: float) -> Spread:
    filled, directions = [block for block in blocks if block.n], _directions(blocks)
    if not all(judging for _, judging in directions):
        unknown = np.full(len(weights), np.nan)
        return Spread(unknown, unknown, np.asarray(np.nan))
    (odd_judged, even_fitted, forth), (even_judged, odd_fitted, back) = (
        _one_way(fitted, judging, weights, ridge) for fitted, judging in directions
    )
    without = [
        _mean(*pair)
        for pair in (*zip(even_fitted, even_judged, strict=True), *zip(odd_judged, odd_fitted, strict=True))
    ]
    sizes = [block.n for block in (*filled[::2], *filled[1::2])]
    return jackknife_spread(_mean(forth, back), without, sizes)


def _one_way(
    fitted: Sequence[Moments], judging: Sequence[Moments], weights: Weights, ridge: float
) -> tuple[list[Floats], list[Floats], Floats]:
    """Shares given back: without each block that judges, without each block that was fitted on, and with all."""
    stand_ins, judged = fit_stand_ins(total(fitted), ridge), total(judging)
    energies = [(residual_energy(stand_ins, block, weights), contribution_energy(block, weights)) for block in judging]
    residual, energy = np.sum(energies, axis=0)
    less_judged = [1 - _share(residual - own, energy - whole) for own, whole in energies]
    if len(judging) == 1:
        less_judged = [np.full(len(weights), np.nan)]
    less_fitted = [
        replaceability(total(rest), judged, weights, ridge) if rest else np.full(len(weights), np.nan)
        for rest in ([*fitted[:gone], *fitted[gone + 1 :]] for gone in range(len(fitted)))
    ]
    return less_judged, less_fitted, 1 - _share(residual, energy)


def _mean(one: Floats, other: Floats) -> Floats:
    return np.asarray((one + other) / 2)


def _directions(blocks: Sequence[Moments]) -> list[tuple[list[Moments], list[Moments]]]:
    """Fit on, judge on: every second block that holds anything against the rest, and the other way round."""
    filled = [block for block in blocks if block.n]
    return [(filled[::2], filled[1::2]), (filled[1::2], filled[::2])]


def _share(residual: Floats, energy: Floats) -> Floats:
    """residual / energy; 0 where there is no energy to explain."""
    return np.where(energy > 0, residual / np.where(energy > 0, energy, 1), 0.0)


def _single_shares(
    fit_on: Moments, judge_on: Moments, weights: Weights, ridge: float
) -> Float[np.ndarray, "head stand_in"]:
    """(head, 1 + head) share given back by the constant alone, then by each head; -inf by the head itself."""
    covariance = _about(fit_on, fit_on.mean)
    second = _about(judge_on, fit_on.mean)
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
    shares = 1 - _share(np.array(residual).T, contribution_energy(judge_on, weights)[:, None])
    shares[:, 1:][np.diag_indices(len(weights))] = -np.inf
    return shares


def _weighted(second: Float64[Tensor, "dim dim"], weight: Float64[Tensor, "width dim"]) -> float:
    """Σ ‖W x‖² from Σ x xᵀ."""
    return float((weight.T @ weight * second).sum())


def _about(moments: Moments, point: Float64[Tensor, " dim"]) -> Float64[Tensor, "dim dim"]:
    """Σ (z - point)(z - point)ᵀ."""
    return moments.second(point)


def _penalty(moments: Moments, ridge: float) -> float:
    """ridge × the mean diagonal of Σ z zᵀ; 1 where that is zero, and any penalty gives the same."""
    return ridge * float(moments.second(torch.zeros_like(moments.pivot)).diagonal().mean()) or 1.0
