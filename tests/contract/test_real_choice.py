"""On real models, and on text that chose nothing, the cheapest heads beat the median of random sets of their layers."""

import numpy as np
import pytest

import headscope as hs
from headscope.effects.sweep import group_effects, head_effects
from headscope.models.demo import demo_model
from headscope.planning.choosing import random_sets
from headscope.planning.removal import Removal
from headscope.text.splits import sample_batches, split_documents
from headscope.verdict.preparation import prepare

SETS = 9


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        pytest.param("minilm", 2048, marks=pytest.mark.slow),
        pytest.param("gemma", 1024, marks=pytest.mark.gemma),
    ],
)
def test_the_cheapest_heads_beat_random_sets_of_their_layers(name: str, tokens: int) -> None:
    source = prepare(str(demo_model(name)), None, None, None, hs.Budget())
    anatomy = hs.discover(source.model, source.batches[0])
    metric = source.resolve("auto", anatomy)
    chosen_on, held_out = split_documents(source.batches, 0.3)
    order = Removal.ordered_by(head_effects(source.model, sample_batches(chosen_on, tokens), metric, anatomy)).order
    judged = sample_batches(held_out, tokens)
    for size in (2, 4, 8, 14):
        groups = [order[:size], *random_sets(anatomy, order[:size], SETS, seed=1)]
        cost = group_effects(source.model, judged, metric, anatomy, groups).values.mean(axis=1)
        assert cost[0] < np.median(cost[1:]), f"{size} heads: {cost}"
