"""Gradient: how steeply the metric answers when the head is turned down a little."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from headscope._support.cards import Card
from headscope.scoring.scores import SCORES, Rating, Score
from headscope.uncertainty.intervals import mean_spread

__all__ = ["Gradient"]


@SCORES.register("gradient")
@dataclass(frozen=True)
class Gradient(Score):
    """Mean over rows of |∂metric/∂ξ|, ξ the gate on a head's output that is 1 in the model as it stands.

    In the metric's unit, at least 0: 0 = the metric does not notice, higher = more sensitive. Not normalised by layer.
    For a distance to the intact model, whose first derivative is zero there, the rows hold the second-order term. The
    interval is a jackknife over blocks of documents; NaN with fewer than two.

    Source: Michel et al. 2019, arXiv:1905.10650, section 4.1, equation 2, without the normalisation that follows it.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gate_gradients"})
    unit: ClassVar[str] = "metric"
    bounds: ClassVar[tuple[float, float]] = (0.0, np.inf)
    card: ClassVar[Card] = Card(
        formula="mean over rows of |∂metric/∂ξ|, ξ the gate on a head's output that is 1 in the model as it "
        "stands; for a distance to the intact model ½ E(∂⟨r, y⟩/∂ξ)² over random directions r of what is "
        "compared.",
        unit="the metric's",
        span="at least 0; 0 = the metric does not notice, higher = more sensitive.",
        undefined="NaN for heads of sites that cannot be cut.",
        invariance="Anything that leaves the model's function as it is.",
        cost="One forward and one backward pass a batch (four backward passes for a distance), for all heads at once.",
        use="A first look at large models. It tells what a small change does, not what removal does: "
        "saturated heads come out too low. Layers are not set against each other by it alone.",
        source="Michel et al. 2019, arXiv:1905.10650, section 4.1, equation 2, without the normalisation by layer.",
    )

    def rate(self, seen: Mapping[str, Any]) -> Rating:
        """See the class."""
        gates = seen["gate_gradients"]
        rated = Rating.from_spread(mean_spread(np.abs(gates.values), gates.block))
        return replace(rated, facts={"caution": _CAUTION.format(gates.gap)}) if gates.gap > _TOLERATED else rated


_TOLERATED = 0.02  # of their size; models that have gradients all the way stay below 0.002
_CAUTION = (
    "turned down a little, heads change the metric by {:.2f} of their gradients' size otherwise than these say: part "
    "of the way has no gradient of its own (detached, rounded, routed); the ablation score needs none"
)
