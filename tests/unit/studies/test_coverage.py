"""The coverage study: its truths are those of endless text, it repeats, and it sees intervals that are too short."""

import numpy as np
import pandas as pd
import pytest
import torch

from headscope.errors import UnknownNameError
from headscope.likeness.measures import MEASURES
from headscope.scoring.scores import SCORES
from headscope.statistics.moments import Moments
from headscope.studies.coverage import ABOVE, NAMES, SHARES, World, _off_the_line, coverage
from headscope.surplus.curve import curve_spreads
from headscope.surplus.effective import effective_spread
from headscope.uncertainty import intervals


@pytest.fixture(scope="module")
def long_text() -> tuple[World, list[Moments]]:
    from headscope.studies.coverage import _sum  # what the study feeds the product with

    world = World.draw(3, within=0.2)
    return world, _sum(list(world.documents([200] * 1000, np.random.default_rng(0))))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ABOVE])
def test_truth_is_what_a_very_long_text_gives(name: str, long_text: tuple[World, list[Moments]]) -> None:
    world, blocks = long_text
    weights = list(world.weights)
    if name == "effective heads":
        got = np.atleast_1d(effective_spread(blocks).centre)
    elif name == "redundancy curve":
        got = curve_spreads(blocks, weights)[0].centre[1:]
    elif name in MEASURES:
        halves = Moments.total(blocks[::2]), Moments.total(blocks[1::2])
        got = MEASURES[name]().compare({"moments": Moments.total(blocks), "halves": halves, "output_weights": weights})
    else:
        seen = {"moments": {0: blocks}, "swapped_moments": {}, "output_weights": {0: weights}}
        rating = SCORES["replaceability" if name in SHARES else name]().rate(seen)
        got = rating.beside[name].centre if name in rating.beside else rating.score
    np.testing.assert_allclose(got, world.truth(name), atol=0.02, rtol=0.02)
    assert world.truth(name).size == 1 or np.ptp(world.truth(name)) > 0.05  # the case is not trivial


def test_shares_are_of_heads_on_both_sides_and_of_means_on_the_line(long_text: tuple[World, list[Moments]]) -> None:
    world, blocks = long_text
    heads = world.truth("replaceability")
    assert (heads > np.median(heads)).mean() == world.truth("share of heads")
    away = _off_the_line(world, blocks)
    np.testing.assert_allclose(away.centre, 0, atol=0.2)
    assert (np.abs(away.centre / away.error) < 4).all()
    rows = np.concatenate(list(world.documents([200] * 1000, np.random.default_rng(0))))
    np.testing.assert_allclose(away.centre, rows.mean(0) - world.mean, atol=1e-9)
    assert world.truth("share at the line") == 0


def test_some_numbers_are_counted_as_all_are() -> None:
    some = coverage((20,), (20,), 3, names=("norm", "share at the line"))
    every = coverage((20,), (20,), 3)
    pd.testing.assert_frame_equal(some, every[every["name"].isin(some["name"])].reset_index(drop=True))
    with pytest.raises(UnknownNameError, match="nothing here is called 'norms'; what is counted: cka"):
        coverage((20,), (20,), 3, names=("norms",))


def test_truths_are_what_the_covariance_says() -> None:
    """By hand, in NumPy: the covariance of heads is all that endless text has."""
    world = World.draw(3, within=0.2)
    covariance = world.root @ world.root.T
    a, b = slice(0, 4), slice(4, 8)
    across, one, two = covariance[a, b], covariance[a, a], covariance[b, b]
    cka = np.linalg.norm(across) ** 2 / np.linalg.norm(one) / np.linalg.norm(two)
    nuclear = np.linalg.svd(across, compute_uv=False).sum() / np.sqrt(np.trace(one) * np.trace(two))
    np.testing.assert_allclose(world.truth("cka")[0, 1], cka, rtol=1e-9)
    np.testing.assert_allclose(world.truth("procrustes")[0, 1], nuclear, rtol=1e-9)
    weight, mean = world.weights[0].numpy(), world.mean[a]
    np.testing.assert_allclose(
        world.truth("norm")[0], np.sqrt(np.trace(weight @ (one + np.outer(mean, mean)) @ weight.T)), rtol=1e-9
    )
    left = two - across.T @ np.linalg.inv(one) @ across
    np.testing.assert_allclose(world.truth("predict")[0, 1], 1 - np.trace(left) / np.trace(two), atol=2e-3)


def test_documents_have_tokens_that_are_alike() -> None:
    world = World.draw(0, within=0.5)
    means = np.array([rows.mean(0) for rows in world.documents([50] * 400, np.random.default_rng(0))])
    alone = np.diag(world.root @ world.root.T)
    np.testing.assert_allclose(means.var(0), alone * (0.5 + 0.5 / 50), rtol=0.3)


def test_it_repeats_and_counts_what_it_says() -> None:
    table = coverage((20,), (20,), 4)
    pd.testing.assert_frame_equal(table, coverage((20,), (20,), 4))
    assert set(table["name"]) == set(NAMES)
    assert set(table["lengths"]) == {"equal", "unequal"}
    counts = table.set_index(["name", "lengths"])["intervals"]
    assert counts["cka", "equal"] == 4 * 6
    assert counts["norm", "equal"] == 4 * 4
    assert table["coverage"].between(0.5, 1).all()


def test_intervals_that_are_too_short_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = intervals.Spread.interval
    monkeypatch.setattr(intervals.Spread, "interval", lambda self, level=0.4: honest(self, 0.4))
    assert coverage((20,), (20,), 10)["coverage"].mean() < 0.7


def test_too_short_documents_are_left_out() -> None:
    assert coverage((5,), (10, 100), 2)["documents"].unique().tolist() == [10]


def test_moments_are_of_the_texts_that_were_drawn() -> None:
    world = World.draw(1, within=0.0)
    rng = np.random.default_rng(5)
    (rows,) = list(world.documents([30], rng))
    noise = np.random.default_rng(5)
    noise.standard_normal((1, len(world.root)))
    np.testing.assert_allclose(rows, world.mean + noise.standard_normal((30, len(world.root))) @ world.root.T)
    assert torch.is_tensor(world.weights[0])
