"""Predict: how much of one head a linear map of another gives, on documents that the map was not fitted on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from headscope._support.cards import Card
from headscope.likeness.measures import MEASURES, Measure
from headscope.statistics.prediction import RIDGE, check_ridge, explained_share

__all__ = ["Predict"]


@MEASURES.register("predict")
@dataclass(frozen=True)
class Predict(Measure):
    """Held-out R² of head b from head a; see `explained_share`.

    Attributes:
        ridge: of the regression, as a share of the mean variance of a's dimensions.
    """

    ridge: float = RIDGE

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
        """(head, head), [a, b] = how well a predicts b; see `headscope.statistics.prediction.explained_share`.

        The second head is one of the two dimensions of the first, and gives back 40% of its variance:

        >>> import torch
        >>> from headscope.statistics.block_sums import lift
        >>> from headscope.statistics.moments import Moments
        >>> a = torch.tensor([[[1.0, 0.0]], [[-1.0, 2.0]], [[0.0, -2.0]]], dtype=torch.float64)
        >>> zero = torch.zeros(3, dtype=torch.float64)
        >>> lifted = lift([a, a[:, :, :1]], zero)
        >>> half = Moments.of_square((2, 1), zero, lifted.T @ lifted)
        >>> Predict(ridge=1e-12).compare({"halves": (half, half)}).round(9)
        array([[1. , 1. ],
               [0.4, 1. ]])
        """
        one, other = seen["halves"]
        known = one.n > 0 and other.n > 0
        if not known:
            return np.full((len(one.dims), len(one.dims)), np.nan)
        values = (explained_share(one, other, self.ridge) + explained_share(other, one, self.ridge)) / 2
        constant = (one + other).constant
        values[constant] = np.nan
        values[:, constant] = np.nan
        return values
