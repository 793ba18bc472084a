"""Measures: how alike two heads are. Pure functions of statistics; a measure never sees a model or a batch.

A new measure is one new file in this folder.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from headscope._support.cards import Card
from headscope._support.registry import Registry

__all__ = ["MEASURES", "VECTORS", "Measure"]

VECTORS = ("z", "q", "k", "v", "contribution")  # what has one vector for each position


class Measure(ABC):
    """One number for each ordered pair of heads; 1 = interchangeable up to the measure's invariance.

    Class facts:
        needs: what `compare` is given. "moments": the `headscope.statistics.moments.Moments` of the heads compared;
            "halves": two Moments, of two halves of the documents; "output_weights": for each head its W_O, (width,
            value_dim), float64; "qk_factors", "ov_factors": a `headscope.anatomy.weights.Factors` of each head; any
            other is the name of a `headscope.statistics.grouped.GroupedStatistic`, the sum of its blocks over those
            heads.
        symmetric: whether value(a, b) = value(b, a).
        bounds: (least, greatest) value in exact arithmetic; -inf or inf where there is none.
        sources: what can be compared; the first is what is compared unless the user asks for something else.
        card: what a reader must know of it.
    """

    needs: ClassVar[frozenset[str]]
    symmetric: ClassVar[bool]
    bounds: ClassVar[tuple[float, float]]
    sources: ClassVar[tuple[str, ...]] = VECTORS
    card: ClassVar[Card]

    @abstractmethod
    def compare(self, seen: Mapping[str, Any]) -> npt.NDArray[np.float64]:
        """(head, head) values; never clipped; NaN in the row and column of a constant head."""


MEASURES: Registry[Measure] = Registry("measure", "headscope.likeness.measures")
