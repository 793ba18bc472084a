"""Intervals of shares: held against plain NumPy, against truths that lie beside the line, and where there is none."""

import numpy as np
import pytest

from headscope.uncertainty.intervals import Spread, mean_spread
from headscope.uncertainty.resampling import _noise, _surely, share_above
from tests.reference.jackknife import error

GEMMA = np.concatenate([np.linspace(-1.5, 0, 5), np.linspace(0.2, 2.5, 45), np.linspace(2.5, 8, 22)])
"""Where 72 heads may lie, in standard errors: most above the line, and half of them near."""

CASES = {
    "spread": GEMMA,
    "beside the line, above": np.full(72, 0.3),
    "beside the line, below": np.full(72, -0.001),
    "few heads": np.array([-1.0, -0.5, 0.2, 0.4, 0.6, 1.0, 2.0, 4.0]),
}


@pytest.mark.parametrize("shared", [0.0, 0.5])
@pytest.mark.parametrize("case", CASES)
def test_it_holds_the_share_as_often_as_it_says(case: str, shared: float) -> None:
    """A document that is hard for one head is hard for all: their noise is shared, or it is not."""
    rng, away, documents = np.random.default_rng(0), CASES[case], 12
    held = 0
    for text in range(100):
        noise = shared**0.5 * rng.standard_normal(documents)
        noise = noise + (1 - shared) ** 0.5 * rng.standard_normal((len(away), documents))
        spread = mean_spread(away[:, None] / documents**0.5 + noise, np.arange(documents))
        _, low, high = share_above(spread, 0.0, seed=text, draws=400)
        held += low <= (away > 0).mean() <= high
    assert held / 100 >= 0.9


@pytest.mark.parametrize("lean", [1.0, -1.0])
@pytest.mark.parametrize("side", [0.4, -0.4])
def test_noise_that_leans_to_a_side_is_held_on_either_side_of_the_line(lean: float, side: float) -> None:
    """What lies above is held as often from above as what lies below is from below."""
    rng, held = np.random.default_rng(3), 0
    for text in range(100):
        noise = lean * (rng.exponential(size=(24, 24)) - 1)
        spread = mean_spread(side / 24**0.5 + noise, np.arange(24))
        _, low, high = share_above(spread, 0.0, seed=text, draws=400)
        held += low <= float(side > 0) <= high
    assert held / 100 >= 0.9


def test_the_ends_are_mirrored_with_the_numbers() -> None:
    rng = np.random.default_rng(5)
    values = rng.exponential(size=(20, 12)) + np.linspace(-2, 1, 20)[:, None]
    share, low, high = share_above(mean_spread(values, np.arange(12)), 0.0, draws=400)
    mirrored = share_above(mean_spread(-values, np.arange(12)), 0.0, draws=400)
    np.testing.assert_allclose(mirrored, (1 - share, 1 - high, 1 - low))


def test_noise_of_a_ratio_is_counted_from_the_middle_of_its_pseudo_values() -> None:
    """A jackknife's middle is not what it is of where that is no mean."""
    rng = np.random.default_rng(6)
    blocks = rng.exponential(size=(8, 2)) + 0.1
    total = blocks.sum(0)
    without = np.array([[(total[0] - one[0]) / (total[1] - one[1])] for one in blocks])
    noise = _noise(np.array([total[0] / total[1]]), without, np.ones((8, 1)), seed=1, draws=4000)
    pseudo = 8 * total[0] / total[1] - 7 * without[:, 0]
    drawn = np.random.default_rng(1).multinomial(8, np.full(8, 1 / 8), size=4000)
    means = drawn @ pseudo / 8
    assert np.sign(noise[:, 0]).tolist() == np.sign(np.round(means - pseudo.mean(), 12)).tolist()


def test_what_noise_does_is_that_of_texts_drawn_anew() -> None:
    """Each draw by itself: documents with their copies, the mean of all rows, and its delete-m jackknife."""
    rng = np.random.default_rng(4)
    block = np.array([0, 0, 0, 1, 2, 2, 3, 3, 3, 3])
    values = rng.exponential(size=(3, len(block)))
    spread = mean_spread(values, block)
    assert spread.without is not None
    assert spread.sizes is not None
    got = _noise(spread.centre, spread.without, spread.sizes, seed=7, draws=20)
    drawn = np.random.default_rng(7).multinomial(4, np.full(4, 1 / 4), size=20)
    for times, noise in zip(drawn, got, strict=True):
        for row, own in zip(values, noise, strict=True):
            copies = [row[block == one] for one in range(4) for _ in range(times[one])]
            spread_out = error(np.mean, copies)
            if spread_out > 1e-12:  # not one block four times
                assert own == pytest.approx((np.concatenate(copies).mean() - row.mean()) / spread_out)


@pytest.mark.parametrize("rounded", [False, True])
def test_lines_are_passed_by_more_than_they_allow_in_few_draws(rounded: bool) -> None:
    """With lines found by trying: the lowest of which any is passed by as many in 2.5% of draws at the most."""
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((400, 6)) + rng.standard_normal((400, 1))
    noise = noise.round() if rounded else noise  # so that draws tie
    standing = np.array([6.0, 4.0, 3.0, 2.2, 1.0, -1.0])
    best = 0
    for rare in range(1, 400):
        lines = [sorted((sorted(draw)[::-1][k] for draw in noise), reverse=True)[rare - 1] for k in range(6)]
        passed = np.mean([any((draw > line).sum() > k for k, line in enumerate(lines)) for draw in noise])
        if passed > 0.025:
            break
        best = max((standing > line).sum() - k for k, line in enumerate(lines) if line >= 0)
    assert 0 < best < 5
    assert _surely(standing, noise) == best


def test_no_more_are_surely_above_than_stand_above() -> None:
    assert _surely(np.full(4, -0.5), np.full((400, 4), -1.0)) == 0


def test_heads_far_from_the_line_are_told_for_certain_and_heads_near_it_are_not() -> None:
    rng = np.random.default_rng(0)
    away = np.concatenate([np.full(6, 9.0), np.full(2, 0.5), np.full(2, -9.0)])
    share, low, high = share_above(
        mean_spread(away[:, None] / 30**0.5 + rng.standard_normal((10, 30)), np.arange(30)), 0.0
    )
    assert 0.6 <= share <= 0.8
    assert (low, high) == (0.6, 0.8)


def test_the_share_lies_within_its_interval() -> None:
    rng = np.random.default_rng(2)
    for _ in range(30):
        values = rng.normal(rng.normal(0, 0.3, (9, 1)), 1, (9, 8))
        share, low, high = share_above(mean_spread(values, np.arange(8)), 0.0, draws=200)
        assert low <= share <= high


def test_what_has_no_blocks_has_no_interval() -> None:
    unknown = Spread(np.array([0.2, np.nan]), np.full(2, np.nan), np.asarray(1.0))
    share, low, high = share_above(unknown, 0.1)
    assert share == 1.0
    assert np.isnan([low, high]).all()
    assert np.isnan(share_above(Spread(np.array([np.nan]), np.array([np.nan]), np.asarray(1.0)), 0.1)).all()


def test_numbers_without_noise_are_counted() -> None:
    values = np.repeat([[0.0], [1.0], [2.0]], 12, axis=1)
    assert share_above(mean_spread(values, np.arange(12)), 0.5) == (2 / 3, 2 / 3, 2 / 3)
