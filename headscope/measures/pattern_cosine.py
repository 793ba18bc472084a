"""Cosine of attention maps: whether two heads look at the same places."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from headscope.cards import Card
from headscope.measures import MEASURES, Measure
from headscope.statistics.pair_sums import PairSums

__all__ = ["PatternCosine", "map_cosine"]


@MEASURES.register("pattern_cosine")
@dataclass(frozen=True)
class PatternCosine(Measure):
    """Cosine of the maps over all queries and keys; see `map_cosine`."""

    needs: ClassVar[frozenset[str]] = frozenset({"pattern_products"})
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    sources: ClassVar[tuple[str, ...]] = ("pattern",)
    card: ClassVar[Card] = Card(
        formula="Σ⟨p_a, p_b⟩ / sqrt(Σ‖p_a‖² Σ‖p_b‖²), the sums over queries, p the row of the map.",
        unit="none",
        span="0 to 1; 1 = the same map, 0 = never a key in common. Two heads that only agree on the sink come out "
        "high.",
        undefined="NaN for a head without a map, and for heads whose queries or keys are not the same.",
        invariance="None.",
        cost="Makes the maps; N² of work a query and key.",
        use="Beside its null, the same on random tokens: what is left there is position and sink, not meaning (Bian "
        "et al. 2021). Peaked rows weigh more than flat ones; pattern_js weighs all rows alike.",
        source="The cosine of two maps in the Frobenius inner product; the null after Bian et al. 2021, "
        "arXiv:2103.05847.",
    )

    def compare(self, seen: Mapping[str, Any]) -> Float[np.ndarray, "head head"]:
        """(head, head); see `map_cosine`."""
        return map_cosine(seen["pattern_products"])


def map_cosine(sums: PairSums) -> Float[np.ndarray, "head head"]:
    """Cosine of every two maps, from their inner products summed over queries.

    Returns:
        (head, head), no unit, in [0, 1]: 1 = the same map throughout; NaN for a map that is zero.

    Source: the cosine in the Frobenius inner product.

    >>> map_cosine(PairSums(np.array([[2.0, 1.0], [1.0, 2.0]]), 2))
    array([[1. , 0.5],
           [0.5, 1. ]])
    """
    own = sums.values.diagonal()
    scale = np.sqrt(np.where(own > 0, own, np.nan))
    return np.asarray(sums.values / scale[:, None] / scale)
