"""Replaceability: how much of what varies in a head its layer's other heads could give, on unseen documents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64
from torch import Tensor

from headscope._support.cards import Card
from headscope.scoring.scores import SCORES, Rating, Score
from headscope.statistics.moments import Moments
from headscope.statistics.prediction import RIDGE, Energies, check_ridge, fit_stand_ins, judge_stand_ins, left_out
from headscope.statistics.swapped_moments import Swapped, has_pairs, why_no_chance
from headscope.uncertainty.intervals import Spread, jackknife_spread, join_spreads

__all__ = ["Replaceability", "rate_replaceability"]

Floats = npt.NDArray[np.float64]
Weights = Sequence[Float64[Tensor, "width dim"]]

_SHARES = ("replaceability", "constant", "restored")
_LITTLE = 0.1  # of what varies: fits that lose more than that where there is nothing to find have too little text


@SCORES.register("replaceability")
@dataclass(frozen=True)
class Replaceability(Score):
    """1 - ‖(z - ẑ) W_O‖² / ‖(z - z̄) W_O‖², ẑ predicted from the layer's other heads; higher = more replaceable.

    No unit, at most 1: 1 = a linear map of the other heads gives all that varies in this one; 0 = they give no more
    than a constant does; below 0 = the prediction makes things worse on unseen documents. ẑ and z̄, the mean, are fitted
    on one half of the blocks of documents and judged on the other, the squares of both directions summed. NaN for a
    head that does not vary, and where one half holds no document; a layer's only head has 0. The interval is a
    jackknife over blocks, in which fits are made anew without each block.

    Columns beside it, each with its interval:
        constant: 1 - ‖(z - z̄) W_O‖² / ‖z W_O‖², the share of what the head writes that a constant gives; 1 for a head
            that does not vary.
        restored: 1 - ‖(z - ẑ) W_O‖² / ‖z W_O‖² = constant + (1 - constant) · replaceability: what a linear repair
            within the layer gives back if this head alone goes.
        chance: the replaceability of the same head beside the other heads at the same positions of other documents:
            what fits as large as these give on so much text. NaN where no batch holds two documents.

    Attributes:
        ridge: of the regression, as a share of the mean variance of the layer's dimensions.

    Source: our own definition; the regression is that of least-squares repair, e.g. OSSCAR, arXiv:2403.12983.
    """

    ridge: float = RIDGE

    needs: ClassVar[frozenset[str]] = frozenset({"moments", "swapped_moments", "output_weights"})
    least_documents: ClassVar[int] = 4  # without any one block, either half must hold another
    unit: ClassVar[str] = ""
    bounds: ClassVar[tuple[float, float]] = (-np.inf, 1.0)
    of_what_varies: ClassVar[bool] = True
    card: ClassVar[Card] = Card(
        formula="1 - Σ‖W_O (z - ẑ)‖² / Σ‖W_O (z - z̄)‖², ẑ a ridge regression on the layer's other heads and a "
        "constant, z̄ the mean, both fitted on one half of the documents and judged on the other; both directions "
        "summed. Beside it `constant`, 1 - Σ‖W_O (z - z̄)‖² / Σ‖W_O z‖², and `restored`, constant + (1 - constant) × "
        "replaceability; and `chance`, the same of heads that are paired with the others as they are in other "
        "documents.",
        unit="none",
        span="at most 1; 1 = the others give all that varies in the head, 0 = no more than a constant gives, below 0 = "
        "worse than a constant on unseen text. Higher = more replaceable, not more needed.",
        undefined="NaN for a head that does not vary (its constant and restored are 1), where one half holds no "
        "document, and for heads of sites that cannot be cut.",
        invariance="Invertible maps of the other heads (up to the ridge); rotation of the residual stream; an offset.",
        cost="One pass, and for each layer an inverse of its D dimensions for each block of documents: D³.",
        use="Whether a layer could make up for a head by a linear map of what stays. It is counted of what varies, "
        "since a constant needs no other head: 85% of what one head of MiniLM writes is a constant. An untrained model "
        "scores higher: heads of MiniLM's copy come to 0.75 to 0.87 on 74 tokens for each dimension, to 0.95 to 0.98 "
        "on 272. Set it beside its untrained copy. It needs text: MiniLM's median head "
        "comes to 0.17 on 18 tokens for each of its layer's dimensions, to 0.45 on 74, to 0.55 on 272. Little text "
        "makes it too low, and its interval does not mend that: `chance`, which more text brings to 0, shows by how "
        "much (facts, caution). Compare numbers of as much text.",
        source="Our own definition; the regression is that of least-squares repair, e.g. OSSCAR, arXiv:2403.12983.",
    )

    def __post_init__(self) -> None:
        check_ridge(self.ridge)

    def rate(self, seen: Mapping[str, Any]) -> Rating:
        """See the class."""
        return rate_replaceability(seen["moments"], seen["swapped_moments"], seen["output_weights"], self.ridge)


def rate_replaceability(
    moments: Mapping[int, Sequence[Moments]],
    swapped: Mapping[int, Sequence[Swapped]],
    output_weights: Mapping[int, Weights],
    ridge: float = RIDGE,
) -> Rating:
    """`Replaceability` of every head, layer after layer, with what stands beside it.

    Args:
        moments: by layer, of each block of documents.
        swapped: by layer, of both halves of pairs of documents; a layer that made no pair has no chance.
        output_weights: by layer, W_O of each head.
        ridge: see `Replaceability`.
    """
    layers = [_rate_layer(blocks, output_weights[layer], ridge) for layer, blocks in sorted(moments.items())]
    spreads = {name: join_spreads([layer[name] for layer in layers]) for name in _SHARES}
    chance = [_chance(swapped.get(layer, ()), weights, ridge) for layer, weights in sorted(output_weights.items())]
    columns, without = {"chance": np.concatenate(chance)}, why_no_chance(sorted(output_weights), swapped)
    facts = {"why_no_chance": without} if without else {}
    if lost := _lost(columns["chance"]):
        facts["caution"] = lost
    return Rating.from_spread(spreads.pop("replaceability"), columns, spreads, **facts)


def _rate_layer(blocks: Sequence[Moments], weights: Weights, ridge: float) -> dict[str, Spread]:
    filled = [block for block in blocks if block.n]
    if len(filled) < 2:
        unknown = jackknife_spread(np.full(len(weights), np.nan), [], [block.n for block in filled])
        return dict.fromkeys(_SHARES, unknown)
    halves = filled[::2], filled[1::2]
    fits = [fit_stand_ins(Moments.total(half), ridge) for half in halves]
    parts = [[judge_stand_ins(fits[1 - own], block, weights) for block in half] for own, half in enumerate(halves)]
    without = []
    for own, place, left in left_out(halves):
        if not left:
            without.append(np.full((len(_SHARES), len(weights)), np.nan))
            continue
        refitted = judge_stand_ins(fit_stand_ins(Moments.total(left), ridge), Moments.total(halves[1 - own]), weights)
        kept = [part for i, part in enumerate(parts[own]) if i != place]
        without.append(_sum([refitted, *kept]).shares())
    whole, sizes = _sum([*parts[0], *parts[1]]).shares(), [block.n for block in filled]
    return {
        name: jackknife_spread(whole[place], [shares[place] for shares in without], sizes)
        for place, name in enumerate(_SHARES)
    }


def _chance(halves: Sequence[Swapped], weights: Weights, ridge: float) -> Floats:
    """(head,) replaceability where each half is predicted by what heads of other documents gave in the other half."""
    if not has_pairs(halves):
        return np.full(len(weights), np.nan)
    parts = [
        judge_stand_ins(fit_stand_ins(fit.own, ridge, fit.crossed), judge.own, weights, judge.crossed)
        for fit, judge in (halves, halves[::-1])
    ]
    return np.asarray(_sum(parts).shares()[0])


def _lost(chance: Floats) -> str:
    """What little text costs the fits, in words; "" where it costs next to nothing.

    Heads of other documents share position at the most, so endless text would bring the fits to 0 or above: how far
    they stay below is what text is missing.
    """
    known = chance[~np.isnan(chance)]
    if not len(known) or known.mean() >= -_LITTLE:
        return ""
    return (
        "too low for want of text: beside heads of other documents, which share the position alone, the same fits "
        f"come to {known.mean():.0%} on average in place of 0%; with more text replaceability and restored rise"
    )


def _sum(parts: Sequence[Energies]) -> Energies:
    return reduce(add, parts)
