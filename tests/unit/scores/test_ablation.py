import numpy as np
import pytest

from headscope.scores.ablation import Ablation, rate_effects
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
    wide, narrow = rate_effects(effects, 0.99), rate_effects(effects, 0.8)
    assert (wide.low < narrow.low).all()
    assert (wide.high > narrow.high).all()


def test_one_document_has_a_score_but_no_interval():
    rating = Ablation(mode="mean").rate({"effects": make_effects(np.ones((2, 3)), [5, 5, 5])})
    assert rating.score.tolist() == [1, 1]
    assert np.isnan([rating.low, rating.high]).all()


def test_mode_is_the_only_setting():
    assert Ablation().mode == "zero"
    with pytest.raises(TypeError):
        Ablation(weight=2)
