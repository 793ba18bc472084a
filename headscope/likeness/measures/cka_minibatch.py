"""Minibatch CKA: an estimate of linear CKA whose cost does not grow with the square of the heads' dimensions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from headscope._support.cards import Card
from headscope.likeness.measures import MEASURES, Measure
from headscope.statistics.pair_sums import PairSums

__all__ = ["CkaMinibatch"]


@MEASURES.register("cka_minibatch")
@dataclass(frozen=True)
class CkaMinibatch(Measure):
    """Linear CKA from the unbiased HSIC of minibatches."""

    needs: ClassVar[frozenset[str]] = frozenset({"minibatch_hsic"})
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    card: ClassVar[Card] = Card(
        formula="Σ HSIC(a, b) / sqrt(Σ HSIC(a, a) Σ HSIC(b, b)), the sums over minibatches: what one batch holds of "
        "one block of documents, in parts of at most 256 positions; parts of fewer than 4 are left out. HSIC the "
        "unbiased estimate with linear kernels, weighed by positions.",
        unit="none",
        span="-1 to 1; 1 = the same up to the invariance, about 0 = unrelated.",
        undefined="NaN for a constant head, for one whose Σ HSIC(a, a) ≤ 0, and for heads at different positions.",
        invariance="Rotation and reflection of a head's dimensions, one common scale; an offset of each minibatch.",
        cost="b of work a position and pair of heads for minibatches of b: less than cka where d² is more than b. N² "
        "numbers of memory.",
        use="For heads of many dimensions. It sees what varies within a minibatch, mostly within documents: what "
        "differs from one document to the next counts less than in cka, so the two are not interchangeable. The "
        "minibatches, and so the number, depend on how rows are put into batches: compare numbers of equal batches.",
        source="Nguyen et al. 2021, arXiv:2010.15327, section 2, equations 2 and 3.",
    )

    def compare(self, seen: Mapping[str, Any]) -> Float[np.ndarray, "head head"]:
        """(head, head) the cosine; see `headscope.statistics.pair_sums.PairSums.cosine`.

        >>> sums = PairSums(np.array([[4.0, 3.0], [3.0, 9.0]]), 10)
        >>> CkaMinibatch().compare({"minibatch_hsic": sums})
        array([[1. , 0.5],
               [0.5, 1. ]])
        """
        sums: PairSums = seen["minibatch_hsic"]
        return sums.cosine()
