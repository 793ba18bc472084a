"""Ablation: what the metric loses when the head is taken out, measured by taking it out."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar

from headscope._support.cards import Card
from headscope.effects.sweep import Effects
from headscope.errors import InputError
from headscope.scoring.scores import SCORES, Rating, Score
from headscope.uncertainty.intervals import Spread, mean_spread
from headscope.uncertainty.significance import false_discovery, sign_flip

__all__ = ["Ablation", "effect_spread"]

_NEVER_NEGATIVE = (
    "effects on a distance to the intact model are never negative, so their sign says nothing; give size= to test them "
    "against"
)


@SCORES.register("ablation")
@dataclass(frozen=True)
class Ablation(Score):
    """Mean over rows of metric(without the head) - metric(intact): positive = needed, in the metric's unit.

    Near zero the head is not missed; below zero the model does better without it. A distance to the intact model (kl,
    drift) never goes below zero. The interval is a jackknife over blocks of documents; NaN with fewer than two.

    Two further columns: "p_value", of a sign-flip test over documents that the effect is `size`, and "q_value", the
    share of false discoveries over all heads. Of a distance, whose effects have one sign, only a stated size can be
    tested; without one the columns are left out.

    Attributes:
        mode: what the head's output is replaced by: "zero", or "mean", its mean over the text.
        size: effect that is tested against, in the metric's unit; None is zero, and no test for a distance.

    Source: the exact effect, as in Michel et al. 2019, arXiv:1905.10650, section 3; the test: see
        `headscope.uncertainty.significance`.
    """

    mode: str = "zero"
    size: float | None = None

    needs: ClassVar[frozenset[str]] = frozenset({"effects"})
    unit: ClassVar[str] = "metric"
    card: ClassVar[Card] = Card(
        formula="mean over rows of metric(without the head) - metric(intact).",
        unit="the metric's, e.g. nats per token",
        span="any number; positive = needed, about 0 = not missed, negative = the model does better without "
        "it. A distance to the intact model (kl, drift) is at least 0.",
        undefined="NaN for heads of sites that cannot be cut.",
        invariance="Anything that leaves the model's function as it is.",
        cost="One forward pass a head and batch.",
        use="The exact effect, and the reference for every cheaper score. Zero ablation overstates what a "
        'head with a large constant output is worth: mode="mean" takes the mean instead. Two heads that '
        "stand in for each other both come out low: see needed.",
        source="Michel et al. 2019, arXiv:1905.10650, section 3; the test: Fisher 1935, section 21, with "
        "Benjamini and Hochberg 1995.",
    )

    def __post_init__(self) -> None:
        if self.size is not None and not isfinite(self.size):
            raise InputError(f"size is an effect in the metric's unit, or None; it was {self.size}")

    def rate(self, seen: Mapping[str, Any]) -> Rating:
        """See the class."""
        effects: Effects = seen["effects"]
        if self.size is None and effects.is_distance:
            return Rating.from_spread(effect_spread(effects), why_no_test=_NEVER_NEGATIVE)
        p = sign_flip(effects.values - (self.size or 0.0), effects.document)
        return Rating.from_spread(effect_spread(effects), {"p_value": p, "q_value": false_discovery(p)})


def effect_spread(effects: Effects) -> Spread:
    """The mean effect of each group of heads, over rows.

    Args:
        effects: of taking out each group.
    """
    return mean_spread(effects.values, effects.block)
