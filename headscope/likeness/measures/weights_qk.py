"""Weights of the score: whether two heads ask the same of the same residual stream, with no text at all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from headscope._support.cards import Card
from headscope.likeness.factors import factor_cosine
from headscope.likeness.measures import MEASURES, Measure

__all__ = ["WeightsQk"]


@MEASURES.register("weights_qk")
@dataclass(frozen=True)
class WeightsQk(Measure):
    """Cosine of W_Qᵀ W_K, (width, width), from its low-rank factors; see `headscope.likeness.factors.factor_cosine`."""

    needs: ClassVar[frozenset[str]] = frozenset({"qk_factors"})
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    sources: ClassVar[tuple[str, ...]] = ("weights",)
    card: ClassVar[Card] = Card(
        formula="⟨M_a, M_b⟩ / (‖M_a‖ ‖M_b‖) with M = W_Qᵀ W_K, Frobenius; ⟨M_a, M_b⟩ = Σ (W_Qa W_Qbᵀ) ∘ (W_Ka W_Kbᵀ).",
        unit="none",
        span="-1 to 1; 1 = the same scores but for scale, 0 = orthogonal.",
        undefined="NaN for a zero head, where q or k is not one linear map of the residual stream, for cross layers, "
        "whose q and k read two streams, and between an encoder and a decoder.",
        invariance="One positive scale; any invertible map of a head's query dimensions undone in its keys.",
        cost="No text; N² d² · width. Never a (width, width) product.",
        use="To see copies that training left behind. What is compared is the bare product of the projections: "
        "biases, norms of q and k and gains of the norm before are left out, and with rotary embedding it is the "
        "score at distance 0 only.",
        source="QK circuit: Elhage et al. 2021, transformer-circuits.pub/2021/framework; the cosine is ours.",
    )

    def compare(self, seen: Mapping[str, Any]) -> Float[np.ndarray, "head head"]:
        """(head, head); see `headscope.likeness.factors.factor_cosine`.

        >>> import torch
        >>> from headscope.anatomy.weights import Factors
        >>> q, k = torch.eye(2).double(), torch.tensor([[0.0, 2.0], [1.0, 0.0]]).double()
        >>> WeightsQk().compare({"qk_factors": [Factors(q, k), Factors(2 * q, k), Factors(q, q)]}).round(4)
        array([[1., 1., 0.],
               [1., 1., 0.],
               [0., 0., 1.]])
        """
        return factor_cosine(seen["qk_factors"])
