"""Replaceability: how much of what a head adds its layer's other heads could add in its place, on unseen documents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64
from torch import Tensor

from headscope._support.cards import Card
from headscope.scoring.scores import SCORES, Rating, Score
from headscope.statistics.moments import Moments, contribution_energy
from headscope.statistics.prediction import (
    RIDGE,
    both_ways,
    check_ridge,
    fit_stand_ins,
    residual_energy,
    restored_share,
    share_of,
)
from headscope.uncertainty.intervals import Spread, jackknife_spread, join_spreads

__all__ = ["Replaceability", "rate_replaceability"]

Floats = npt.NDArray[np.float64]
Weights = Sequence[Float64[Tensor, "width dim"]]


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
    bounds: ClassVar[tuple[float, float]] = (-np.inf, 1.0)
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


def _rate_layer(blocks: Sequence[Moments], weights: Weights, ridge: float) -> Spread:
    filled, directions = [block for block in blocks if block.n], both_ways(blocks)
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
    stand_ins, judged = fit_stand_ins(Moments.total(fitted), ridge), Moments.total(judging)
    energies = [(residual_energy(stand_ins, block, weights), contribution_energy(block, weights)) for block in judging]
    residual, energy = np.sum(energies, axis=0)
    less_judged = [1 - share_of(residual - own, energy - whole) for own, whole in energies]
    if len(judging) == 1:
        less_judged = [np.full(len(weights), np.nan)]
    less_fitted = [
        restored_share(Moments.total(rest), judged, weights, ridge) if rest else np.full(len(weights), np.nan)
        for rest in ([*fitted[:gone], *fitted[gone + 1 :]] for gone in range(len(fitted)))
    ]
    return less_judged, less_fitted, 1 - share_of(residual, energy)


def _mean(one: Floats, other: Floats) -> Floats:
    return np.asarray((one + other) / 2)
