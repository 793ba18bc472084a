import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.scoring.scores.replaceability import (
    RIDGE,
    Replaceability,
    best_stand_in,
    fit_stand_ins,
    replaceability,
    unexplained_share,
)
from headscope.statistics.block_sums import lift
from headscope.statistics.grouped import by_layer
from headscope.statistics.moments import Moments
from headscope.statistics.summed_moments import SummedMoments
from tests.reference import jackknife as jackknife_reference
from tests.reference import regression as reference
from tests.strategies import feed, make_stream, streams, weights_for


def measured(rows, pivot=None):
    rows = torch.from_numpy(rows)
    pivot = rows.mean(0) if pivot is None else torch.from_numpy(pivot)
    lifted = lift([rows], pivot.flatten())
    return Moments.of_square((rows.shape[2],) * rows.shape[1], pivot.flatten(), lifted.T @ lifted)


def in_blocks(rows, n_blocks=6):
    """Moments of a block each, about a common pivot."""
    return [measured(part, rows.mean(0)) for part in np.array_split(rows, n_blocks)]


def textbook_weights(weights):
    return [weight.numpy() for weight in weights]


def sample(seed=0, n_tokens=400, n_heads=4, dim=5):
    """Heads that predict each other in part."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((n_tokens, 1, dim))
    return common + 0.5 * rng.standard_normal((n_tokens, n_heads, dim)) + rng.standard_normal((1, n_heads, dim))


@given(streams(), st.sampled_from([1e-5, RIDGE, 1.0]))
@settings(deadline=None, max_examples=30)
def test_one_direction_equals_least_squares_on_the_rows(stream, ridge):
    rows = stream.rows()
    weights = weights_for(1, *rows.shape[1:])
    fit, judge = rows[: len(rows) // 2 + 1], rows[len(rows) // 2 + 1 :]
    got = replaceability(measured(fit, fit[0]), measured(judge, judge[0]), weights, ridge)
    want = reference.replaceability(fit, judge, textbook_weights(weights), ridge)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


@given(streams(n_layers=2))
@settings(deadline=None, max_examples=12)
def test_score_fits_on_one_half_of_the_blocks_and_judges_on_the_other(stream):
    weights = {layer: weights_for(layer, *stream.rows(layer).shape[1:]) for layer in (0, 1)}
    rating = Replaceability().rate(
        {"moments": by_layer(feed(SummedMoments(), stream).compute()), "output_weights": weights}
    )
    present = sorted(set(stream.blocks().tolist()))
    first = np.isin(stream.blocks(), present[::2])
    want = []
    for layer, own in weights.items():
        rows, plain = stream.rows(layer), textbook_weights(own)
        ways = [(rows[first], rows[~first]), (rows[~first], rows[first])]
        want.append(np.mean([reference.replaceability(*way, plain, RIDGE) for way in ways], axis=0))
    np.testing.assert_allclose(rating.score, np.concatenate(want), rtol=1e-9, atol=1e-9)


def test_interval_is_a_jackknife_in_which_fits_are_made_anew():
    rows, weights = sample(), weights_for(0, 4, 5)
    parts = np.array_split(rows, 6)
    rating = Replaceability().rate({"moments": {0: in_blocks(rows)}, "output_weights": {0: weights}})

    def both_ways(kept):
        """Rows carry the number of their half in front."""
        shares = []
        for way in (0, 1):
            fitted, judged = (kept[kept[:, 0] == half][:, 1:].reshape(-1, 4, 5) for half in (1 - way, way))
            shares.append(reference.replaceability(fitted, judged, textbook_weights(weights), RIDGE)[2])
        return np.mean(shares)

    groups = [np.hstack([np.full((len(part), 1), i % 2), part.reshape(len(part), -1)]) for i, part in enumerate(parts)]
    want = jackknife_reference.interval(both_ways, groups)
    np.testing.assert_allclose([rating.low[2], rating.high[2]], want, rtol=1e-9)
    assert (rating.low < rating.high).all()


def test_stand_ins_are_the_heads_predicted_from_the_others():
    rows = sample()
    stand_ins = fit_stand_ins(measured(rows), ridge=1e-9)
    flat = rows.reshape(len(rows), -1)
    predicted = flat @ stand_ins.weights.numpy().T + stand_ins.constant.numpy()
    for head in range(4):
        others = np.delete(rows, head, axis=1).reshape(len(rows), -1)
        design = np.hstack([others, np.ones((len(rows), 1))])
        want = design @ np.linalg.lstsq(design, rows[:, head], rcond=None)[0]
        np.testing.assert_allclose(predicted.reshape(rows.shape)[:, head], want, atol=1e-6)


def test_offset_of_ten_thousand_costs_no_digits():
    rows, weights = sample() + 1e4, weights_for(0, 4, 5)
    fit, judge = rows[:200], rows[200:]
    got = unexplained_share(fit_stand_ins(measured(fit, rows[0])), measured(judge, rows[1]), weights)
    np.testing.assert_allclose(got, reference.unexplained(fit, judge, textbook_weights(weights), RIDGE), rtol=1e-9)
    assert got.max() < 1e-7


def test_copy_is_replaceable_and_an_independent_head_is_not():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((600, 4, 5))
    rows[:, 3] = 2 * rows[:, 1] @ np.linalg.qr(rng.standard_normal((5, 5)))[0] + 1
    rating = Replaceability().rate({"moments": {0: in_blocks(rows)}, "output_weights": {0: weights_for(0, 4, 5)}})
    assert rating.score[[1, 3]].min() > 0.999
    assert np.abs(rating.score[[0, 2]]).max() < 0.1


def test_held_out_share_is_lower_than_in_sample():
    rows, weights = np.random.default_rng(0).standard_normal((60, 4, 5)), weights_for(0, 4, 5)
    moments = measured(rows)
    rating = Replaceability().rate({"moments": {0: in_blocks(rows)}, "output_weights": {0: weights}})
    assert replaceability(moments, moments, weights).min() > 0.1
    assert rating.score.max() < 0


@pytest.mark.parametrize("value", [0.0, 1 / 3, 1e4])
def test_zero_and_constant_heads_are_wholly_replaceable(value):
    rows = sample()
    rows[:, 1] = value
    rating = Replaceability().rate({"moments": {0: in_blocks(rows)}, "output_weights": {0: weights_for(0, 4, 5)}})
    assert rating.score[1] == pytest.approx(1, abs=1e-12)
    assert rating.score[[0, 2, 3]].max() < 0.95


def test_head_that_adds_nothing_and_a_layer_of_zeros():
    rows, weights = sample(), weights_for(0, 4, 5)
    weights[2] = torch.zeros_like(weights[2])
    rating = Replaceability().rate({"moments": {0: in_blocks(rows)}, "output_weights": {0: weights}})
    assert rating.score[2] == 1
    rating = Replaceability().rate({"moments": {0: in_blocks(0 * rows)}, "output_weights": {0: weights}})
    assert rating.score.tolist() == [1, 1, 1, 1]


def test_a_layer_s_only_head_is_predicted_by_the_constant():
    rows = sample(n_heads=1)
    weights = weights_for(0, 1, 5)
    fit, judge = rows[:200], rows[200:]
    gap, whole = (judge[:, 0] - fit[:, 0].mean(0)) @ weights[0].numpy().T, judge[:, 0] @ weights[0].numpy().T
    got = replaceability(measured(fit), measured(judge), weights)
    np.testing.assert_allclose(got, 1 - (gap**2).sum() / (whole**2).sum(), rtol=1e-9)


def test_too_few_documents_are_nan():
    rows, weights = sample(), weights_for(0, 4, 5)
    nothing = Moments.empty((5,) * 4, torch.zeros(20, dtype=torch.float64))
    one = Replaceability().rate({"moments": {0: [measured(rows), nothing]}, "output_weights": {0: weights}})
    assert np.isnan([one.score, one.low, one.high]).all()
    two = Replaceability().rate({"moments": {0: in_blocks(rows, 2)}, "output_weights": {0: weights}})
    assert np.isfinite(two.score).all()
    assert np.isnan([two.low, two.high]).all()
    assert np.isnan(replaceability(measured(rows), nothing, weights)).all()
    index, share = best_stand_in([measured(rows), nothing], weights)
    assert index.tolist() == [-1] * 4
    assert np.isnan(share).all()


def test_best_stand_in_is_the_best_regression_on_one_head():
    rows, weights = sample(3), weights_for(0, 4, 5)
    rows[:, 2] = 0.3 * rows[:, 0, ::-1] + 0.1 * rows[:, 2]
    index, share = best_stand_in(in_blocks(rows), weights)
    parts = np.array_split(rows, 6)
    halves = [np.concatenate(parts[0::2]), np.concatenate(parts[1::2])]
    want = np.full((4, 4), -np.inf)
    for head in range(4):
        for other in set(range(4)) - {head}:
            one = [weights[head].numpy(), weights[other].numpy()]
            pair = [half[:, [head, other]] for half in halves]
            # the penalty is of the one head that predicts
            scales = [RIDGE * (half[:, 1] ** 2).sum(0).mean() / (half**2).sum(0).mean() for half in pair]
            ways = [(pair[0], pair[1], scales[0]), (pair[1], pair[0], scales[1])]
            want[head, other] = np.mean([reference.replaceability(a, b, one, scale)[0] for a, b, scale in ways])
    np.testing.assert_array_equal(index, want.argmax(1))
    np.testing.assert_allclose(share, want.max(1), rtol=1e-9)
    assert index[2] == 0
    assert index[0] == 2


def test_nobody_stands_in_for_a_constant_head_or_a_lonely_one():
    rows, weights = sample(), weights_for(0, 4, 5)
    rows[:, 1] = 0.5
    index, share = best_stand_in(in_blocks(rows), weights)
    assert index[1] == -1
    assert share[1] == pytest.approx(1, abs=1e-12)
    assert (index[[0, 2, 3]] >= 0).all()
    index, share = best_stand_in(in_blocks(rows[:, :1]), weights[:1])
    assert index.tolist() == [-1]
    assert 0 < share[0] < 1


def test_layers_keep_their_order_whatever_the_order_of_the_mapping():
    stream = make_stream(n_layers=2)
    moments = by_layer(feed(SummedMoments(), stream).compute())
    weights = {layer: weights_for(layer, 3, 4) for layer in (0, 1)}
    forward = Replaceability().rate({"moments": moments, "output_weights": weights})
    turned = {layer: moments[layer] for layer in (1, 0)}
    np.testing.assert_array_equal(
        forward.score, Replaceability().rate({"moments": turned, "output_weights": weights}).score
    )
