"""Cosine of attention maps: whether two heads look at the same places."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from headscope._support.cards import Card
from headscope.likeness.measures import MEASURES, Measure
from headscope.statistics.pair_sums import PairSums

__all__ = ["PatternCosine"]


@MEASURES.register("pattern_cosine")
@dataclass(frozen=True)
class PatternCosine(Measure):
    """Cosine of the maps over all queries and keys."""

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
        """(head, head) the cosine; see `headscope.statistics.pair_sums.PairSums.cosine`.

        >>> sums = PairSums(np.array([[4.0, 3.0], [3.0, 9.0]]), 10)
        >>> PatternCosine().compare({"pattern_products": sums})
        array([[1. , 0.5],
               [0.5, 1. ]])
        """
        sums: PairSums = seen["pattern_products"]
        return sums.cosine()
