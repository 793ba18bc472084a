"""Scores: what one head is worth. Pure functions of statistics and effects; a score never sees a model or a batch.

A new score is one new file in this folder.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from headscope._support.cards import Card
from headscope._support.registry import Registry
from headscope.uncertainty.intervals import Spread

__all__ = ["SCORES", "Rating", "Score"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rating:
    """A score's numbers, (head,) each, in the order of the anatomy.

    Attributes:
        score: NaN where it is not defined.
        low, high: ends of the 95% interval; NaN where there is none.
        spread: what the interval was made of, for a score that is made of this one.
        beside: further numbers of each head by name, with intervals of their own.
        columns: further numbers of each head by name.
        facts: what a reader must be told of the numbers, such as why there is no test; JSON values.
    """

    score: Floats
    low: Floats
    high: Floats
    spread: Spread | None = None
    beside: Mapping[str, Spread] = field(default_factory=dict)
    columns: Mapping[str, Floats] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_spread(
        cls,
        spread: Spread,
        columns: Mapping[str, Floats] | None = None,
        beside: Mapping[str, Spread] | None = None,
        **facts: Any,
    ) -> Self:
        """The centre of a spread with its 95% interval."""
        return cls(spread.centre, *spread.interval(), spread, beside or {}, columns or {}, facts)

    def every_column(self) -> dict[str, Floats]:
        """What stands beside the score: NAME, NAME_low, NAME_high of numbers with an interval, then the others."""
        made: dict[str, Floats] = {}
        for name, spread in self.beside.items():
            made[name] = spread.centre
            made[f"{name}_low"], made[f"{name}_high"] = spread.interval()
        return made | dict(self.columns)


class Score(ABC):
    """One number for each head; higher = more needed (but for `replaceability`, which says so).

    Class facts:
        needs: what `rate` is given. "moments": {layer: list of Moments, one per block of documents}, of "gated_z";
            "swapped_moments": {layer: both halves of `headscope.statistics.swapped_moments.Swapped`}, of "gated_z";
            "output_weights": {layer: list of W_O, (width, value_dim) float64, a head each};
            "effects": a `headscope.effects.sweep.Effects`; "gate_gradients": a
            `headscope.effects.gradients.GateGradients`; the name of another score: its `Rating`, made with the settings
            that the two have in common.
        unit: unit of the score; "metric" stands for the metric's own.
        card: what a reader must know of it.
        least_documents: how many documents an interval takes.
        bounds: least and greatest value that a head can have.
        of_what_varies: whether a head that writes one and the same vector has no number.
    """

    needs: ClassVar[frozenset[str]]
    unit: ClassVar[str]
    least_documents: ClassVar[int] = 2
    bounds: ClassVar[tuple[float, float]] = (-np.inf, np.inf)
    of_what_varies: ClassVar[bool] = False
    card: ClassVar[Card]

    @abstractmethod
    def rate(self, seen: Mapping[str, Any]) -> Rating:
        """Score every head of the model."""


SCORES: Registry[Score] = Registry("score", "headscope.scoring.scores")
