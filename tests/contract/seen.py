"""What measures and scores are given, made from a text of made-up tensors."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from headscope.anatomy.weights import Factors
from headscope.effects.gradients import GateGradients
from headscope.effects.sweep import Effects
from headscope.heads import HeadId
from headscope.scoring.scores import SCORES
from headscope.statistics import STATISTICS
from headscope.statistics.grouped import by_layer
from headscope.statistics.moments import Moments
from tests.strategies import Stream, feed


def seen_by_measure(needs: Iterable[str], stream: Stream, weights: dict[int, list]) -> dict[str, Any]:
    """For one layer: moments, W_O of its heads, factors made of it; any other need is a statistic's name."""
    given: dict[str, Any] = {}
    for need in needs:
        if need == "output_weights":
            given[need] = weights[0]
        elif need in ("qk_factors", "ov_factors"):
            # a head's product is its W_O times itself: twins have the same, whatever their inner coordinates
            given[need] = [Factors(weight.T, weight.T) for weight in weights[0]]
        elif need in ("moments", "halves"):
            blocks = feed(STATISTICS["moments"](), stream).compute()[0,]
            given[need] = (
                Moments.total(blocks)
                if need == "moments"
                else (Moments.total(blocks[::2]), Moments.total(blocks[1::2]))
            )
        else:
            computed = feed(STATISTICS[need](), stream).compute()
            given[need] = _of_one_layer(computed)
    return given


def _of_one_layer(computed: Any) -> Any:
    """The sum over blocks of a statistic of pairs; anything else as it is."""
    blocks = computed.get((0,)) if isinstance(computed, dict) else None
    if blocks is None:
        return computed
    summed = blocks[0]
    for block in blocks[1:]:
        summed = summed + block
    return summed


def seen_by_score(needs: Iterable[str], stream: Stream, weights: dict[int, list], values: np.ndarray) -> dict[str, Any]:
    """For all layers; values (head, row): effects of taking heads out, and derivatives by their gates."""
    rows = np.concatenate([batch.block.numpy() for batch in stream.batches])
    heads = tuple(HeadId(site.layer, head) for site in stream.sites for head in site.head_ids)
    about = {
        "values": values,
        "document": rows,
        "block": rows,
        "metric": "loss",
        "unit": "nats/token",
        "is_distance": False,
        "n_tokens": len(stream.rows()),
    }
    given: dict[str, Any] = {}
    for need in needs:
        if need == "output_weights":
            given[need] = weights
        elif need == "effects":
            groups = tuple((head,) for head in heads)
            given[need] = Effects(groups=groups, intact=np.ones(len(rows)), mode="zero", **about)
        elif need == "gate_gradients":
            given[need] = GateGradients(heads=heads, **about)
        elif need in SCORES:
            score = SCORES[need]()
            given[need] = score.rate(seen_by_score(score.needs, stream, weights, values))
        else:
            computed = feed(STATISTICS[need](), stream).compute()
            given[need] = by_layer(computed) if need == "moments" else computed
    return given
