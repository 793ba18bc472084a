"""Norm: how large what the head adds to the residual stream is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from headscope._support.cards import Card
from headscope.scoring.scores import SCORES, Rating, Score
from headscope.statistics.moments import Moments, contribution_energy
from headscope.uncertainty.intervals import Spread, jackknife, join_spreads

__all__ = ["Norm"]

Floats = npt.NDArray[np.float64]


@SCORES.register("norm")
@dataclass(frozen=True)
class Norm(Score):
    """Root mean square over positions of ‖contribution‖, contribution = W_O z.

    In the unit of the residual stream, at least 0: 0 = a head that adds nothing anywhere. The interval is a jackknife
    over blocks of documents, blocks counting by their positions; NaN with fewer than two.

    Source: Kobayashi et al. 2020, arXiv:2004.10102, section 2, norms of transformed vectors, here summed over keys.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"moments", "output_weights"})
    unit: ClassVar[str] = "activation"
    bounds: ClassVar[tuple[float, float]] = (0.0, np.inf)
    card: ClassVar[Card] = Card(
        formula="sqrt(mean over positions of ‖W_O z‖²).",
        unit="that of the residual stream",
        span="at least 0; 0 = a head that adds nothing anywhere.",
        undefined="NaN for heads of sites that cannot be cut.",
        invariance="Rotation of the residual stream; any change of a head's inner coordinates that W_O undoes.",
        cost="One pass, no gradient; the second moments of each layer.",
        use="Finds idle heads, also those that attend to a sink and write nothing. A large output need not "
        "matter, and where a norm follows, sizes of different layers do not compare.",
        source="Kobayashi et al. 2020, arXiv:2004.10102, section 2, summed over keys.",
    )

    def rate(self, seen: Mapping[str, Any]) -> Rating:
        """See the class."""
        layers = [
            _rate_layer(blocks, seen["output_weights"][layer]) for layer, blocks in sorted(seen["moments"].items())
        ]
        return Rating.from_spread(join_spreads(layers))


def _rate_layer(blocks: Sequence[Moments], weights: Sequence[Tensor]) -> Spread:
    sizes = [block.n for block in blocks]
    sums = [(contribution_energy(block, weights), block.n) for block in blocks]
    return jackknife(_root_mean, sums, sizes)


def _root_mean(sums: Sequence[tuple[Floats, int]]) -> Floats:
    """(head,) from each block's Σ‖contribution‖² and its positions."""
    energy = np.sum([energy for energy, _ in sums], axis=0)
    root: Floats = np.sqrt(energy / sum(n for _, n in sums))
    return root
