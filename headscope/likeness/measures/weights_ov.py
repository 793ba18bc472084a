"""Weights of the output: whether two heads would move the same content the same way, with no text at all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from headscope._support.cards import Card
from headscope.likeness.factors import factor_cosine
from headscope.likeness.measures import MEASURES, Measure

__all__ = ["WeightsOv"]


@MEASURES.register("weights_ov")
@dataclass(frozen=True)
class WeightsOv(Measure):
    """Cosine of W_O W_V, (width, width), from its low-rank factors; see `headscope.likeness.factors.factor_cosine`."""

    needs: ClassVar[frozenset[str]] = frozenset({"ov_factors"})
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    sources: ClassVar[tuple[str, ...]] = ("weights",)
    card: ClassVar[Card] = Card(
        formula="⟨M_a, M_b⟩ / (‖M_a‖ ‖M_b‖) with M = W_O W_V, Frobenius; ⟨M_a, M_b⟩ = Σ (W_Oaᵀ W_Ob) ∘ (W_Va W_Vbᵀ).",
        unit="none",
        span="-1 to 1; 1 = the same map from what is read to what is written but for scale, 0 = orthogonal.",
        undefined="NaN for a zero head, where v is not one linear map of the residual stream, and between an encoder, "
        "a decoder and what joins them: they read or write different streams.",
        invariance="One positive scale; any invertible map of a head's value dimensions undone in W_O.",
        cost="No text; N² d² · width. Never a (width, width) product.",
        use="To see copies that training left behind, whatever the two heads attend to. Heads of one KV group share "
        "W_V and differ in W_O. Biases and gates are left out.",
        source="OV circuit: Elhage et al. 2021, transformer-circuits.pub/2021/framework; the cosine is ours.",
    )

    def compare(self, seen: Mapping[str, Any]) -> Float[np.ndarray, "head head"]:
        """(head, head); see `headscope.likeness.factors.factor_cosine`.

        >>> import torch
        >>> from headscope.anatomy.weights import Factors
        >>> o, v = torch.eye(2).double(), torch.tensor([[1.0, 0.0], [0.0, -1.0]]).double()
        >>> WeightsOv().compare({"ov_factors": [Factors(o, v), Factors(-o, v), Factors(o, o)]}).round(4)
        array([[ 1., -1.,  0.],
               [-1.,  1.,  0.],
               [ 0.,  0.,  1.]])
        """
        return factor_cosine(seen["ov_factors"])
