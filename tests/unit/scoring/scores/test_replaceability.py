import numpy as np
import pytest
import torch
from hypothesis import given, settings

from headscope.scoring.scores.replaceability import Replaceability, _lost
from headscope.statistics.grouped import by_layer
from headscope.statistics.moments import Moments
from headscope.statistics.prediction import RIDGE, best_stand_in, fit_stand_ins, judge_stand_ins
from headscope.statistics.summed_moments import SummedMoments
from tests.reference import jackknife as jackknife_reference
from tests.reference import regression as reference
from tests.rows import in_blocks, measured, sample, textbook_weights
from tests.strategies import feed, make_stream, streams, weights_for


@given(streams(n_layers=2))
@settings(deadline=None, max_examples=12)
def test_score_fits_on_one_half_of_the_blocks_and_judges_on_the_other(stream):
    weights = {layer: weights_for(layer, *stream.rows(layer).shape[1:]) for layer in (0, 1)}
    rating = Replaceability().rate(
        {"moments": by_layer(feed(SummedMoments(), stream).compute()), "swapped_moments": {}, "output_weights": weights}
    )
    present = sorted(set(stream.blocks().tolist()))
    first = np.isin(stream.blocks(), present[::2])
    want = []
    for layer, own in weights.items():
        rows, plain = stream.rows(layer), textbook_weights(own)
        ways = [(rows[first], rows[~first]), (rows[~first], rows[first])]
        want.append(np.sum([reference.energies(*way, plain, RIDGE) for way in ways], axis=0))
    whole, varying, missed = np.concatenate(want, axis=1)
    close = {"rtol": 1e-9, "atol": 1e-9}
    np.testing.assert_allclose(rating.score, 1 - missed / varying, **close)
    np.testing.assert_allclose(rating.beside["constant"].centre, 1 - varying / whole, **close)
    np.testing.assert_allclose(rating.beside["restored"].centre, 1 - missed / whole, **close)


@given(streams(n_layers=1))
@settings(deadline=None, max_examples=12)
def test_constant_and_other_heads_together_are_what_is_restored(stream):
    moments = by_layer(feed(SummedMoments(), stream).compute())
    rating = Replaceability().rate(
        {"moments": moments, "swapped_moments": {}, "output_weights": {0: weights_for(0, *stream.rows(0).shape[1:])}}
    )
    constant, restored = (rating.beside[name].centre for name in ("constant", "restored"))
    np.testing.assert_allclose(restored, constant + (1 - constant) * rating.score, rtol=1e-9, atol=1e-9)


def test_interval_is_a_jackknife_in_which_fits_are_made_anew():
    rows, weights = sample(), weights_for(0, 4, 5)
    parts = np.array_split(rows, 6)
    rating = Replaceability().rate(
        {"moments": {0: in_blocks(rows)}, "swapped_moments": {}, "output_weights": {0: weights}}
    )

    def both_ways(kept):
        """Rows carry the number of their half in front."""
        both = 0
        for way in (0, 1):
            fitted, judged = (kept[kept[:, 0] == half][:, 1:].reshape(-1, 4, 5) for half in (1 - way, way))
            both = both + reference.energies(fitted, judged, textbook_weights(weights), RIDGE)[:, 2]
        return both

    def share(over, of):
        return lambda kept: 1 - both_ways(kept)[over] / both_ways(kept)[of]

    groups = [np.hstack([np.full((len(part), 1), i % 2), part.reshape(len(part), -1)]) for i, part in enumerate(parts)]
    want = jackknife_reference.interval(share(2, 1), groups)
    np.testing.assert_allclose([rating.low[2], rating.high[2]], want, rtol=1e-9)
    assert (rating.low < rating.high).all()
    for name, energies in {"constant": (1, 0), "restored": (2, 0)}.items():
        ends = [end[2] for end in rating.beside[name].interval()]
        np.testing.assert_allclose(ends, jackknife_reference.interval(share(*energies), groups), rtol=1e-9)


@pytest.mark.parametrize("offset", [0, 1, 1e4])
def test_copy_is_replaceable_and_an_independent_head_is_not_whatever_their_constant(offset):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((600, 4, 5))
    rows[:, 3] = 2 * rows[:, 1] @ np.linalg.qr(rng.standard_normal((5, 5)))[0] + offset
    rows[:, 0] += offset
    rating = Replaceability().rate(
        {"moments": {0: in_blocks(rows)}, "swapped_moments": {}, "output_weights": {0: weights_for(0, 4, 5)}}
    )
    assert rating.score[[1, 3]].min() > 0.999
    assert np.abs(rating.score[[0, 2]]).max() < 0.1


def test_held_out_share_is_lower_than_in_sample():
    rows, weights = np.random.default_rng(0).standard_normal((60, 4, 5)), weights_for(0, 4, 5)
    moments = measured(rows)
    rating = Replaceability().rate(
        {"moments": {0: in_blocks(rows)}, "swapped_moments": {}, "output_weights": {0: weights}}
    )
    assert judge_stand_ins(fit_stand_ins(moments), moments, weights).shares()[0].min() > 0.1
    assert rating.score.max() < 0


@pytest.mark.parametrize("value", [0.0, 1 / 3, 1e4])
def test_head_that_does_not_vary_has_no_replaceability_and_is_restored_by_a_constant(value):
    rows = sample()
    rows[:, 1] = value
    rating = Replaceability().rate(
        {"moments": {0: in_blocks(rows)}, "swapped_moments": {}, "output_weights": {0: weights_for(0, 4, 5)}}
    )
    assert np.isnan([rating.score[1], rating.low[1], rating.high[1]]).all()
    for spread in rating.beside.values():
        assert [spread.centre[1], *(end[1] for end in spread.interval())] == [1, 1, 1]
    assert rating.score[[0, 2, 3]].max() < 0.95


def test_head_that_adds_nothing_and_a_layer_of_zeros():
    rows, weights = sample(), weights_for(0, 4, 5)
    weights[2] = torch.zeros_like(weights[2])
    rating = Replaceability().rate(
        {"moments": {0: in_blocks(rows)}, "swapped_moments": {}, "output_weights": {0: weights}}
    )
    assert np.isnan(rating.score).tolist() == [False, False, True, False]
    rating = Replaceability().rate(
        {"moments": {0: in_blocks(0 * rows)}, "swapped_moments": {}, "output_weights": {0: weights}}
    )
    assert np.isnan(rating.score).all()
    assert rating.beside["restored"].centre.tolist() == [1, 1, 1, 1]


def test_only_head_of_a_layer_is_given_back_by_none():
    rating = Replaceability().rate(
        {
            "moments": {0: in_blocks(sample()[:, :1] + 3)},
            "swapped_moments": {},
            "output_weights": {0: weights_for(0, 1, 5)},
        }
    )
    assert rating.score.tolist() == [0]
    assert rating.beside["restored"].centre == rating.beside["constant"].centre


def test_too_few_documents_are_nan():
    rows, weights = sample(), weights_for(0, 4, 5)
    nothing = Moments.empty((5,) * 4, torch.zeros(20, dtype=torch.float64))
    one = Replaceability().rate(
        {"moments": {0: [measured(rows), nothing]}, "swapped_moments": {}, "output_weights": {0: weights}}
    )
    assert np.isnan([one.score, one.low, one.high]).all()
    two = Replaceability().rate(
        {"moments": {0: in_blocks(rows, 2)}, "swapped_moments": {}, "output_weights": {0: weights}}
    )
    assert np.isfinite(two.score).all()
    assert np.isnan([two.low, two.high]).all()
    index, share = best_stand_in([measured(rows), nothing], weights)
    assert index.tolist() == [-1] * 4
    assert np.isnan(share).all()


def test_layers_keep_their_order_whatever_the_order_of_the_mapping():
    stream = make_stream(n_layers=2)
    moments = by_layer(feed(SummedMoments(), stream).compute())
    weights = {layer: weights_for(layer, 3, 4) for layer in (0, 1)}
    forward = Replaceability().rate({"moments": moments, "swapped_moments": {}, "output_weights": weights})
    turned = {layer: moments[layer] for layer in (1, 0)}
    np.testing.assert_array_equal(
        forward.score,
        Replaceability().rate({"moments": turned, "swapped_moments": {}, "output_weights": weights}).score,
    )


def test_what_little_text_costs_is_told_from_chance():
    nan = np.nan
    assert _lost(np.array([-0.4, -0.2, nan])).startswith("too low for want of text")
    assert "come to -30% on average in place of 0%" in _lost(np.array([-0.4, -0.2, nan]))
    assert _lost(np.array([-0.05, 0.02])) == ""
    assert _lost(np.array([nan, nan])) == ""
