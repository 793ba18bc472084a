"""Gradient: how steeply the metric answers when the head is turned down a little."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from headscope.intervals import mean_spread
from headscope.scores import SCORES, Rating, Score

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

    def rate(self, seen: Mapping[str, Any]) -> Rating:
        """See the class."""
        slopes = np.abs(seen["gate_gradients"].values)
        return Rating.from_spread(mean_spread(slopes, seen["gate_gradients"].block))
