"""Jensen–Shannon similarity of attention maps: whether two heads spread their attention alike, query by query."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from headscope._support.cards import Card
from headscope.likeness.measures import MEASURES, Measure
from headscope.statistics.pair_sums import PairSums

__all__ = ["PatternJs", "map_agreement"]


@MEASURES.register("pattern_js")
@dataclass(frozen=True)
class PatternJs(Measure):
    """1 - the mean Jensen–Shannon divergence of the maps' rows, in bits; see `map_agreement`."""

    needs: ClassVar[frozenset[str]] = frozenset({"pattern_divergence"})
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    sources: ClassVar[tuple[str, ...]] = ("pattern",)
    card: ClassVar[Card] = Card(
        formula="1 - mean over queries of JS(p_a, p_b), JS = H((p_a + p_b) / 2) - (H(p_a) + H(p_b)) / 2 in bits.",
        unit="none",
        span="0 to 1; 1 = the same map, 0 = never a key in common.",
        undefined="NaN without a query, and for heads whose queries or keys are not the same.",
        invariance="None.",
        cost="Makes the maps; N² logarithms a query and key.",
        use="Beside its null, the same on random tokens. Every query counts alike, so flat rows count as much as "
        "peaked ones; the first queries of a causal model see few keys and agree by necessity: see skip_first.",
        source="Lin 1991, IEEE Trans. Inf. Theory 37(1), equation 3.3 with equal weights; of heads: Clark et al. 2019, "
        "arXiv:1906.04341, section 6.",
    )

    def compare(self, seen: Mapping[str, Any]) -> Float[np.ndarray, "head head"]:
        """(head, head); see `map_agreement`."""
        return map_agreement(seen["pattern_divergence"])


def map_agreement(sums: PairSums) -> Float[np.ndarray, "head head"]:
    """1 - mean divergence, from divergences summed over queries.

    Returns:
        (head, head), no unit, in [0, 1]: 1 = the same map at every query; NaN where no query was summed.

    Source: Lin 1991, see `PatternJs`.

    >>> map_agreement(PairSums(np.array([[0.0, 2.0], [2.0, 0.0]]), 4))
    array([[1. , 0.5],
           [0.5, 1. ]])
    """
    return np.asarray(1 - sums.values / (sums.n or np.nan))
