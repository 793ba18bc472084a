import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.uncertainty.intervals import Spread, jackknife, join_spreads, mean_spread
from tests.reference import jackknife as reference


@st.composite
def grouped(draw):
    """Rows in two to seven blocks of unequal size, some of them empty."""
    sizes = draw(st.lists(st.integers(0, 6), min_size=2, max_size=7).filter(lambda s: sum(n > 0 for n in s) >= 2))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    return [rng.standard_normal(n) + rng.standard_normal() for n in sizes]


@given(grouped(), st.sampled_from([0.5, 0.95, 0.99]))
@settings(deadline=None, max_examples=60)
def test_ratio_matches_the_paper_term_by_term(groups, level):
    def ratio(rows):
        return (rows**3).sum() / (1 + rows**2).sum()

    sums = [np.array([(rows**3).sum(), (1 + rows**2).sum()]) for rows in groups]
    spread = jackknife(lambda kept: np.divide(*np.sum(kept, axis=0)), sums, [len(rows) for rows in groups])
    got = spread.interval(level)
    np.testing.assert_allclose(got, reference.interval(ratio, groups, level), rtol=1e-9, atol=1e-12)


@given(grouped())
@settings(deadline=None, max_examples=60)
def test_closed_form_for_means_matches_the_paper(groups):
    rows, block = np.concatenate(groups), np.repeat(np.arange(len(groups)), [len(rows) for rows in groups])
    order = np.random.default_rng(0).permutation(len(rows))
    low, high = mean_spread(np.stack([rows, -rows])[:, order], block[order]).interval()
    want = reference.interval(np.mean, groups)
    np.testing.assert_allclose([low[0], high[0]], want, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose([-high[1], -low[1]], want, rtol=1e-9, atol=1e-12)


def test_equal_blocks_of_a_mean_give_the_usual_interval_over_block_means():
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((8, 5))
    low, high = mean_spread(rows.reshape(-1), np.repeat(np.arange(8), 5)).interval()
    means = rows.mean(1)
    half = 2.3646242515927 * means.std(ddof=1) / np.sqrt(8)  # Student's t, seven degrees of freedom
    np.testing.assert_allclose([low, high], [means.mean() - half, means.mean() + half], rtol=1e-9)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(2)
    sizes = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]) * 6
    block = np.repeat(np.arange(10), sizes)
    hits = 0
    for _ in range(400):
        low, high = mean_spread(rng.standard_normal(len(block)), block).interval()
        hits += low <= 0 <= high
    assert 0.90 <= hits / 400 <= 0.99


@pytest.mark.parametrize("sizes", [[4], [4, 0, 0]])
def test_fewer_than_two_blocks_have_no_interval(sizes):
    values = np.arange(8.0).reshape(2, 4)
    assert np.isnan(mean_spread(values, np.zeros(4, int)).interval()).all()
    low, high = jackknife(lambda kept: np.sum(kept, axis=0), [values.sum(1)] * len(sizes), sizes).interval()
    assert np.isnan(low).all()
    assert np.isnan(high).all()
    assert low.shape == high.shape == (2,)


def test_nan_of_one_number_leaves_the_others_alone():
    values = np.array([[1.0, 2.0, 4.0], [1.0, np.nan, 4.0]])
    low, high = mean_spread(values, np.arange(3)).interval()
    assert np.isfinite([low[0], high[0]]).all()
    assert np.isnan([low[1], high[1]]).all()


@pytest.mark.parametrize("counts", [(7, 7), (7, 4), (5, 1)])
def test_differences_of_numbers_from_different_blocks_are_those_of_each_part(counts):
    rng = np.random.default_rng(0)
    parts = []
    for count in counts:  # numbers such as an encoder's, then a decoder's
        sizes = rng.integers(1, 9, count).tolist()
        blocks = [rng.standard_normal((size, 2, 3)) for size in sizes]
        parts.append([jackknife(lambda kept, m=m: np.concatenate(kept)[:, m].mean(0), blocks, sizes) for m in (0, 1)])
    before, after = (join_spreads([part[model] for part in parts]) for model in (0, 1))
    places = [4, 0, 5, 2]
    change = after.take(places).minus(before.take(places))
    alone = [b.minus(a) for a, b in parts]
    for name in ("centre", "error", "freedom"):
        want = np.concatenate([np.broadcast_to(getattr(one, name), 3) for one in alone])[places]
        np.testing.assert_allclose(getattr(change, name), want, rtol=1e-12)
    assert np.isnan(change.error[[0, 2]]).all() == (counts[1] == 1)
    assert np.isfinite(change.error[[1, 3]]).all()


def test_a_difference_needs_the_same_blocks_and_has_no_error_without_any():
    one, other = (
        jackknife(lambda kept: np.mean(kept, 0), list(np.ones((3, 2))), sizes) for sizes in ([1, 2, 3], [2, 2, 2])
    )
    with pytest.raises(ValueError, match="same blocks"):
        one.minus(other)
    nothing = Spread(np.ones(2), np.full(2, np.nan), np.asarray(np.nan))
    assert np.isnan(one.minus(nothing).error).all()
