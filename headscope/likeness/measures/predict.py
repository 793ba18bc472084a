"""Predict: how much of one head a linear map of another gives, on documents that the map was not fitted on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from headscope._support.cards import Card
from headscope.likeness.measures import MEASURES, Measure
from headscope.scoring.scores.replaceability import check_ridge
from headscope.statistics.moments import Moments, constant_heads

__all__ = ["Predict", "explained_share"]

_RIDGE = 1e-3


@MEASURES.register("predict")
@dataclass(frozen=True)
class Predict(Measure):
    """Held-out R² of head b from head a; see `explained_share`.

    Attributes:
        ridge: of the regression, as a share of the mean variance of a's dimensions.
    """

    ridge: float = _RIDGE

    needs: ClassVar[frozenset[str]] = frozenset({"halves"})
    symmetric: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (-np.inf, 1.0)
    card: ClassVar[Card] = Card(
        formula="1 - Σ‖b - b̂‖² / Σ‖b - b̄‖², b̂ a ridge regression on a and a constant, fitted on one half of the "
        "documents and judged on the other; both directions averaged.",
        unit="none",
        span="at most 1; 1 = b is a linear function of a, 0 = no better than b's own mean, below 0 = worse than that.",
        undefined="NaN for a constant head, for b constant in one half, where one half holds no document, and for "
        "heads at different positions.",
        invariance="Of a: any invertible linear map (up to the ridge) and an offset. Of b: rotation, one common scale "
        "and an offset.",
        cost="As cka on two halves, and N d³ + N² d³ for the fits.",
        use="Whether b could be rebuilt from a alone. Not symmetric: a rich head predicts a poor one. Where several "
        "heads may stand in together, see the score replaceability.",
        source="Linear regression as a similarity: Kornblith et al. 2019, arXiv:1905.00414, table 1; here held out.",
    )

    def __post_init__(self) -> None:
        check_ridge(self.ridge)

    def compare(self, seen: Mapping[str, Any]) -> Float[np.ndarray, "head head"]:
        """(head, head), [a, b] = how well a predicts b; see `explained_share`."""
        one, other = seen["halves"]
        known = one.n > 0 and other.n > 0
        if not known:
            return np.full((len(one.dims), len(one.dims)), np.nan)
        values = (explained_share(one, other, self.ridge) + explained_share(other, one, self.ridge)) / 2
        constant = constant_heads(one + other)
        values[constant] = np.nan
        values[:, constant] = np.nan
        return values


def explained_share(fit_on: Moments, judge_on: Moments, ridge: float = _RIDGE) -> Float[np.ndarray, "head head"]:
    """R² of every head from every other, fitted on some positions and judged on others.

    Args:
        fit_on, judge_on: moments of the same heads.
        ridge: see `Predict`.

    Returns:
        (head, head), no unit, at most 1: [a, b] = how well a predicts b. Where a head predicts itself, what the ridge
        takes away is left out: 1. NaN where b does not vary.

    Source: see `Predict`.

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
    total = judge_on.second(judge_on.mean).diagonal()
    values = np.empty((len(fit_on.dims), len(fit_on.dims)))
    starts = [own.start for own in fit_on.slices]
    # where a head is constant, its spread is rounding: nothing can be judged by it, and nothing fitted to it
    spread = np.where(constant_heads(judge_on), np.nan, np.add.reduceat(total.numpy(), starts))
    idle = constant_heads(fit_on)
    alone = judged.diagonal()
    for head, own in enumerate(fit_on.slices):
        slope = torch.zeros_like(fitted[own]) if idle[head] else _slopes(fitted, own, ridge)
        residual = alone - 2 * (slope * judged[own]).sum(0) + (slope * (judged[own, own] @ slope)).sum(0)
        values[head] = 1 - np.add.reduceat(residual.numpy(), starts) / spread
        values[head, head] = spread[head] / spread[head]
    return values


def _slopes(fitted: Float64[Tensor, "dim dim"], own: slice, ridge: float) -> Float64[Tensor, "own dim"]:
    """(d, D) ridge coefficients of all dimensions on one head's."""
    covariance = fitted[own, own]
    penalty = ridge * float(covariance.diagonal().mean())
    return torch.linalg.solve(covariance + penalty * torch.eye(len(covariance)).double(), fitted[own])
