import numpy as np
import torch
from hypothesis import given, settings

from headscope.scoring.scores.norm import Norm
from headscope.statistics.grouped import by_layer
from headscope.statistics.summed_moments import SummedMoments
from tests.reference import jackknife as reference
from tests.reference import sums
from tests.strategies import feed, make_stream, streams, weights_for


@given(streams(n_layers=2))
@settings(deadline=None, max_examples=12)
def test_score_and_interval_equal_those_of_contributions_that_were_made(stream):
    of_token = stream.blocks()
    weights = {layer: weights_for(layer, *stream.rows(layer).shape[1:]) for layer in (1, 0)}
    rating = Norm().rate({"moments": by_layer(feed(SummedMoments(), stream).compute()), "output_weights": weights})
    position = 0
    for layer in (0, 1):
        rows, plain = stream.rows(layer), [weight.numpy() for weight in weights[layer]]
        for head in range(rows.shape[1]):

            def root(kept, head=head, plain=plain):
                return sums.root_mean_square(kept, plain)[head]

            want = reference.interval(root, [rows[of_token == number] for number in range(10)])
            got = [rating.low[position], rating.high[position]]
            np.testing.assert_allclose(rating.score[position], root(rows), rtol=1e-9)
            # an end may lie near zero by cancellation: digits count against the score
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-8 * root(rows))
            position += 1
    assert position == len(rating.score)


def test_zero_head_has_norm_zero():
    stream, weights = make_stream(n_layers=1), {0: weights_for(0, 3, 4)}
    weights[0][1] = torch.zeros_like(weights[0][1])
    rating = Norm().rate({"moments": by_layer(feed(SummedMoments(), stream).compute()), "output_weights": weights})
    assert (rating.score[1], rating.low[1], rating.high[1]) == (0, 0, 0)
    assert rating.score[0] > 0


def test_one_document_has_no_interval():
    stream, weights = make_stream(n_layers=1, lengths=((7,),)), {0: weights_for(0, 3, 4)}
    rating = Norm().rate({"moments": by_layer(feed(SummedMoments(), stream).compute()), "output_weights": weights})
    assert np.isfinite(rating.score).all()
    assert np.isnan([rating.low, rating.high]).all()
