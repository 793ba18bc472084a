import numpy as np
import pytest

from headscope.scoring.scores.ablation import effect_spread
from headscope.scoring.scores.needed import Needed, needed
from headscope.scoring.scores.replaceability import Replaceability, rate_replaceability
from headscope.statistics.grouped import by_layer
from headscope.statistics.summed_moments import SummedMoments
from tests.strategies import feed, make_effects, make_stream, weights_for


def test_it_is_importance_times_what_the_others_cannot_give():
    importance = np.array([2.0, 2.0, 2.0, -1.0, np.nan])
    restored = np.array([0.25, -5.0, 1.5, 0.5, 0.5])
    np.testing.assert_array_equal(needed(importance, restored), [1.5, 2, 0, 0, np.nan])


@pytest.fixture
def seen():
    stream = make_stream(n_layers=2, lengths=((9, 8), (7, 9), (9, 9), (9, 8)))
    values = np.random.default_rng(0).standard_normal((6, 8)) + 1
    given = {
        "moments": by_layer(feed(SummedMoments(), stream).compute()),
        "swapped_moments": {},
        "output_weights": {layer: weights_for(layer, 3, 4) for layer in (0, 1)},
    }
    return {**given, "effects": make_effects(values, range(8)), "replaceability": Replaceability().rate(given)}


def test_score_combines_the_two_scores(seen):
    rating = Needed().rate(seen)
    restored = Replaceability().rate(seen).beside["restored"].centre
    want = np.maximum(seen["effects"].values.mean(1), 0) * (1 - np.clip(restored, 0, 1))
    np.testing.assert_allclose(rating.score, want, rtol=1e-12)


def test_interval_holds_every_pair_of_values_in_the_wider_intervals_of_the_two(seen):
    rating = Needed().rate(seen)
    importance = effect_spread(seen["effects"]).interval(0.975)
    restored = rate_replaceability(seen["moments"], {}, seen["output_weights"]).beside["restored"].interval(0.975)
    for a in np.linspace(0, 1, 5):
        for b in np.linspace(0, 1, 5):
            value = needed(
                importance[0] + a * (importance[1] - importance[0]),
                restored[0] + b * (restored[1] - restored[0]),
            )
            assert (rating.low <= value + 1e-12).all()
            assert (value <= rating.high + 1e-12).all()
