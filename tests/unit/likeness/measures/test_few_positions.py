"""Each measure of vectors against its twin at the fewest positions that it exists at, and with more dimensions."""

from collections.abc import Callable

import numpy as np
import pytest

from headscope.likeness.measures import MEASURES
from tests.contract.seen import seen_by_measure
from tests.reference import similarity as reference
from tests.strategies import Stream, make_stream, weights_for

TWINS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "cka": reference.unbiased_cka,
    "cka_biased": reference.biased_cka,
    "procrustes": reference.procrustes,
    # one document: one minibatch
    "cka_minibatch": lambda x, y: reference.minibatch_cka([x], [y]),
}


def value(name: str, stream: Stream, dim: int) -> np.ndarray:
    measure = MEASURES[name]()
    return measure.compare(seen_by_measure(measure.needs, stream, {0: weights_for(0, 3, dim)}))


@pytest.mark.parametrize("name", sorted(TWINS))
@pytest.mark.parametrize("n_tokens", [4, 5])
@pytest.mark.parametrize("dim", [2, 3, 30])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_four_and_five_positions(name: str, n_tokens: int, dim: int, offset: float) -> None:
    stream = make_stream(n_tokens, n_layers=1, dim=dim, lengths=((n_tokens,),), offset=offset)
    want = reference.all_pairs(TWINS[name], list(stream.rows().transpose(1, 0, 2)))
    assert np.isfinite(want).all()
    np.testing.assert_allclose(value(name, stream, dim), want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("n_tokens", [4, 5])
@pytest.mark.parametrize("dim", [2, 3, 30])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_cosine_at_four_and_five_positions(n_tokens: int, dim: int, offset: float) -> None:
    stream = make_stream(n_tokens, n_layers=1, dim=dim, lengths=((n_tokens,),), offset=offset)
    weights = [weight.numpy() for weight in weights_for(0, 3, dim)]
    made = [stream.rows()[:, head] @ weight.T for head, weight in enumerate(weights)]
    want = reference.all_pairs(reference.cosine, made)
    np.testing.assert_allclose(value("cosine", stream, dim), want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("lengths", [((2, 2),), ((3, 2),)])
@pytest.mark.parametrize("dim", [2, 30])
def test_predict_at_four_and_five_positions(lengths: tuple[tuple[int, ...], ...], dim: int) -> None:
    stream = make_stream(1, n_layers=1, dim=dim, lengths=lengths)
    rows, even = stream.rows(), stream.blocks() % 2 == 0
    got = value("predict", stream, dim)
    for a, b in ((0, 1), (1, 0), (2, 0)):
        ways = [
            reference.held_out_r2(rows[fit, a], rows[fit, b], rows[~fit, a], rows[~fit, b], 1e-3)
            for fit in (even, ~even)
        ]
        np.testing.assert_allclose(got[a, b], np.mean(ways), rtol=1e-9)


@pytest.mark.parametrize("name", ["cka", "cka_minibatch"])
def test_three_positions_have_no_unbiased_value(name: str) -> None:
    assert np.isnan(value(name, make_stream(n_layers=1, lengths=((3,),)), 4)).all()
