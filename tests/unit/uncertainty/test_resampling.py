"""Intervals of shares: against the plain bootstrap of means, of what varies together, and where there is none."""

import numpy as np
import pytest

from headscope.uncertainty.intervals import Spread, mean_spread
from headscope.uncertainty.resampling import share_above


def test_of_means_it_is_the_bootstrap_over_documents() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(np.linspace(-0.3, 0.3, 40)[:, None], 1.0, (40, 200))
    share, low, high = share_above(mean_spread(values, np.arange(200)), 0.0, seed=1, draws=4000)
    drawn = np.random.default_rng(2).integers(200, size=(4000, 200))
    plain = np.array([(values[:, own].mean(1) > 0).mean() for own in drawn])
    assert share == (values.mean(1) > 0).mean()
    assert (low, high) == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.026)  # a step is 1 / 40


def test_it_holds_the_share_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    true = np.linspace(-0.5, 0.5, 20)
    held = 0
    for _ in range(200):
        # heads of one model err together: a document that is hard for one is hard for all
        values = true[:, None] + rng.normal(0, 0.5, (1, 30)) + rng.normal(0, 0.5, (20, 30))
        _, low, high = share_above(mean_spread(values, np.arange(30)), 0.0, draws=400)
        held += low <= 0.5 <= high
    assert held / 200 >= 0.9


def test_blocks_of_unequal_size_count_by_their_size() -> None:
    values = np.array([[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0]])
    share, low, high = share_above(mean_spread(values, np.array([0, 0, 1, 1, 2, 2, 3])), 0.0)
    assert share == 1.0
    assert low == 0.0  # the short block alone can be drawn
    assert high == 1.0


def test_what_has_no_blocks_has_no_interval() -> None:
    unknown = Spread(np.array([0.2, np.nan]), np.full(2, np.nan), np.asarray(1.0))
    share, low, high = share_above(unknown, 0.1)
    assert share == 1.0
    assert np.isnan([low, high]).all()
    assert np.isnan(share_above(Spread(np.array([np.nan]), np.array([np.nan]), np.asarray(1.0)), 0.1)).all()
