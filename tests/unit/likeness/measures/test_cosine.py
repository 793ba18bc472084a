import numpy as np
import pytest
import torch
from hypothesis import given, settings

from headscope.likeness.measures.cosine import contribution_cosine
from headscope.statistics.moments import Moments
from headscope.statistics.summed_moments import SummedMoments
from tests.reference import similarity as reference
from tests.reference.sums import contributions
from tests.strategies import feed, make_stream, streams, weights_for


def textbook(rows, weights):
    made = contributions(rows, [weight.numpy() for weight in weights])
    return reference.all_pairs(reference.cosine, list(made.transpose(1, 0, 2)))


@given(streams())
@settings(deadline=None, max_examples=25)
def test_it_equals_the_cosine_of_contributions_that_were_made(stream):
    rows = stream.rows()
    weights = weights_for(1, *rows.shape[1:])
    got = contribution_cosine(Moments.total(feed(SummedMoments(), stream).compute()[0,]), weights)
    np.testing.assert_allclose(got, textbook(rows, weights), rtol=1e-9, atol=1e-9)


def test_across_layers():
    stream = make_stream(n_layers=3, offset=2.0)
    rows = np.concatenate([stream.rows(layer) for layer in range(3)], axis=1)
    weights = weights_for(2, 9, 4)
    got = contribution_cosine(Moments.total(feed(SummedMoments(scope="model"), stream).compute()[0, 1, 2]), weights)
    np.testing.assert_allclose(got, textbook(rows, weights), rtol=1e-9, atol=1e-9)


def test_signs_scales_and_zero():
    stream = make_stream(n_heads=4)
    weights = weights_for(0, 4, 4)
    weights[1], weights[2], weights[3] = -2 * weights[0], 0.5 * weights[0], torch.zeros_like(weights[0])

    def same(z, layer):
        return z[:, :1].expand_as(z)

    got = contribution_cosine(Moments.total(feed(SummedMoments(), stream.change(same)).compute()[0,]), weights)
    assert got[0, 1] == pytest.approx(-1, rel=1e-9)
    assert got[0, 2] == pytest.approx(1, rel=1e-9)
    assert np.isnan(got[3]).all()
    assert np.isnan(got[:, 3]).all()
    assert np.isfinite(got[:3, :3]).all()


def test_a_constant_contribution_has_a_cosine():
    def fixed(z, layer):
        z = z.clone()
        z[:, :2] = torch.tensor([1.0, 2.0, 3.0, 4.0])
        return z

    stream, weights = make_stream().change(fixed), weights_for(0, 3, 4)
    got = contribution_cosine(Moments.total(feed(SummedMoments(), stream).compute()[0,]), weights)
    a, b = (weight.numpy() @ [1.0, 2.0, 3.0, 4.0] for weight in weights[:2])
    assert got[0, 1] == pytest.approx(reference.cosine(a, b), rel=1e-9)


def test_widths_that_differ_are_nan():
    stream = make_stream()
    moments = Moments.total(feed(SummedMoments(), stream).compute()[0,])
    weights = [*weights_for(0, 2, 4, width=6), *weights_for(0, 1, 4, width=5)]
    got = contribution_cosine(moments, weights)
    assert np.isnan(got[2, :2]).all()
    assert np.isnan(got[:2, 2]).all()
    assert np.isfinite(got[:2, :2]).all()
    assert got[2, 2] == pytest.approx(1)


def test_nothing_seen_is_nan():
    moments = Moments.empty((4, 4), torch.zeros(8, dtype=torch.float64))
    assert np.isnan(contribution_cosine(moments, weights_for(0, 2, 4))).all()
