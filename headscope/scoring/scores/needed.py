"""Needed: what would be lost with the head and could not be had from the others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from headscope._support.cards import Card
from headscope.scoring.scores import SCORES, Rating, Score
from headscope.scoring.scores.ablation import effect_spread
from headscope.statistics.prediction import RIDGE, check_ridge
from headscope.uncertainty.intervals import LEVEL

__all__ = ["Needed", "needed"]

Floats = npt.NDArray[np.float64]


@SCORES.register("needed")
@dataclass(frozen=True)
class Needed(Score):
    """max(importance, 0) × (1 - restored clipped to [0, 1]), importance being that of `Ablation`.

    It presumes a repair: that what a constant and the layer's other heads can give back (`restored`, see
    `Replaceability`) is given back. In the metric's unit, at least 0: 0 = not missed, or given back wholly. NaN where
    either factor is. The interval runs from the least to the most that the factors' intervals allow; each of them has a
    coverage of 97.5%, so that both hold, and with them their product, in 95%: a cautious interval, whatever the
    dependence of the two.

    Attributes:
        mode: of ablation: "zero" or "mean".
        ridge: of the regression; see `Replaceability`.

    Source: our own definition.
    """

    mode: str = "zero"
    ridge: float = RIDGE

    needs: ClassVar[frozenset[str]] = frozenset({"effects", "replaceability"})
    least_documents: ClassVar[int] = 4  # without any one block, either half must hold another
    unit: ClassVar[str] = "metric"
    bounds: ClassVar[tuple[float, float]] = (0.0, np.inf)
    card: ClassVar[Card] = Card(
        formula="max(ablation, 0) × (1 - restored clipped to [0, 1]), restored as beside replaceability: what a "
        "constant and the layer's other heads give back.",
        unit="the metric's",
        span="at least 0; 0 = not missed, or given back wholly by the layer's other heads.",
        undefined="NaN where either factor is.",
        invariance="That of both factors.",
        cost="That of ablation and of replaceability.",
        use="What a head would still cost if the cut were repaired, the constant included. It presumes that repair: no "
        "cut is repaired here yet, and without repair the order of ablation chooses better: MiniLM without 4 heads "
        "drifts on texts that chose nothing by 0.0089 in that order, by 0.0138 in this one. Its interval is cautious: "
        "both factors at 97.5%.",
        source="Our own definition.",
    )

    def __post_init__(self) -> None:
        check_ridge(self.ridge)

    def rate(self, seen: Mapping[str, Any]) -> Rating:
        """See the class."""
        each = (1 + LEVEL) / 2
        importance = effect_spread(seen["effects"])
        replaced = seen["replaceability"]
        restored = replaced.beside["restored"]
        (least, most), (worst, best) = importance.interval(each), restored.interval(each)
        facts = (
            {"caution": f"too high where restored is {replaced.facts['caution']}"}
            if "caution" in replaced.facts
            else {}
        )
        ends = needed(least, best), needed(most, worst)
        return Rating(needed(importance.centre, restored.centre), *ends, facts=facts)


def needed(importance: Floats, restored: Floats) -> Floats:
    """max(importance, 0) × (1 - restored clipped to [0, 1]), elementwise.

    >>> needed(np.array([0.2, 0.2, -0.1]), np.array([0.75, -3.0, 0.5]))
    array([0.05, 0.2 , 0.  ])
    """
    return np.maximum(importance, 0) * (1 - np.clip(restored, 0, 1))
