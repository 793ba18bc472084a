from dataclasses import replace

import numpy as np
import pytest

from headscope.scoring.scores.ablation import Ablation, effect_spread
from headscope.uncertainty.significance import false_discovery, sign_flip
from tests.reference import jackknife as reference
from tests.strategies import make_effects


def test_score_is_the_mean_effect_with_its_sign_and_a_jackknife_interval():
    block = [0, 0, 1, 1, 1, 4, 4]
    values = np.random.default_rng(0).standard_normal((3, 7)) + np.array([[1], [0], [-1]])
    rating = Ablation().rate({"effects": make_effects(values, block)})
    np.testing.assert_allclose(rating.score, [np.mean(row) for row in values], rtol=1e-12)
    assert rating.score[0] > 0 > rating.score[2]
    for head, row in enumerate(values):
        groups = [row[np.array(block) == number] for number in range(5)]
        want = reference.interval(np.mean, groups)
        np.testing.assert_allclose([rating.low[head], rating.high[head]], want, rtol=1e-9)


def test_level_widens_the_interval():
    effects = make_effects(np.random.default_rng(0).standard_normal((2, 6)), [0, 0, 1, 1, 2, 2])
    wide, narrow = (effect_spread(effects).interval(level) for level in (0.99, 0.8))
    assert (wide[0] < narrow[0]).all()
    assert (wide[1] > narrow[1]).all()


def test_one_document_has_a_score_but_no_interval():
    rating = Ablation(mode="mean").rate({"effects": make_effects(np.ones((2, 3)), [5, 5, 5])})
    assert rating.score.tolist() == [1, 1]
    assert np.isnan([rating.low, rating.high]).all()


def test_effects_are_tested_over_documents_and_distances_against_a_stated_size_only():
    values = np.random.default_rng(0).standard_normal((3, 8)) + np.array([[2], [0], [0.5]])
    effects = make_effects(values, range(8))
    columns = Ablation().rate({"effects": effects}).columns
    np.testing.assert_array_equal(columns["p_value"], sign_flip(values, np.arange(8)))
    np.testing.assert_array_equal(columns["q_value"], false_discovery(columns["p_value"]))
    assert columns["p_value"][0] < 0.02
    distance = replace(effects, is_distance=True)
    assert Ablation().rate({"effects": distance}).columns == {}
    against = Ablation(size=2.0).rate({"effects": distance}).columns["p_value"]
    np.testing.assert_array_equal(against, sign_flip(values - 2, np.arange(8)))


def test_settings_are_named():
    assert Ablation().mode == "zero"
    with pytest.raises(TypeError):
        Ablation(weight=2)
