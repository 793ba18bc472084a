"""Ablation: what the metric loses when the head is taken out, measured by taking it out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from headscope.intervals import Spread, mean_spread
from headscope.scores import SCORES, Rating, Score
from headscope.sweep import Effects

__all__ = ["Ablation", "effect_spread"]


@SCORES.register("ablation")
@dataclass(frozen=True)
class Ablation(Score):
    """Mean over rows of metric(without the head) - metric(intact): positive = needed, in the metric's unit.

    Near zero the head is not missed; below zero the model does better without it. A distance to the intact model (kl,
    drift) never goes below zero. The interval is a jackknife over blocks of documents; NaN with fewer than two.

    Attributes:
        mode: what the head's output is replaced by: "zero", or "mean", its mean over the text.

    Source: the exact effect, as in Michel et al. 2019, arXiv:1905.10650, section 3.
    """

    mode: str = "zero"

    needs: ClassVar[frozenset[str]] = frozenset({"effects"})
    unit: ClassVar[str] = "metric"

    def rate(self, seen: Mapping[str, Any]) -> Rating:
        """See the class."""
        return Rating.from_spread(effect_spread(seen["effects"]))


def effect_spread(effects: Effects) -> Spread:
    """The mean effect of each group of heads, over rows.

    Args:
        effects: of taking out each group.
    """
    return mean_spread(effects.values, effects.block)
