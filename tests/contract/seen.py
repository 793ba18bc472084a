"""What measures and scores are given, made from a text of made-up tensors."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from headscope.gradients import GateGradients
from headscope.heads import HeadId
from headscope.statistics import STATISTICS
from headscope.statistics.moments import total
from headscope.sweep import Effects
from tests.strategies import Stream, feed


def seen_by_measure(needs: Iterable[str], stream: Stream, weights: dict[int, list]) -> dict[str, Any]:
    """For one layer: moments, W_O of its heads; any other need is a statistic's name."""
    given: dict[str, Any] = {}
    for need in needs:
        if need == "output_weights":
            given[need] = weights[0]
        elif need == "moments":
            given[need] = total(feed(STATISTICS[need](), stream).compute()[0])
        else:
            given[need] = feed(STATISTICS[need](), stream).compute()
    return given


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
        else:
            given[need] = feed(STATISTICS[need](), stream).compute()
    return given
