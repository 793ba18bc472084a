"""Each measure against an independent twin: textbook forms on the raw rows, in NumPy float64, at awkward sizes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.measures import MEASURES
from headscope.weights import Factors
from tests.contract.seen import seen_by_measure
from tests.reference import similarity as reference
from tests.strategies import Stream, make_stream, streams, weights_for

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def value(name: str, stream: Stream) -> np.ndarray:
    measure = MEASURES[name]()
    rows = stream.rows()
    return measure.compare(seen_by_measure(measure.needs, stream, {0: weights_for(0, *rows.shape[1:])}))


def by_head(rows: np.ndarray) -> list[np.ndarray]:
    return list(rows.transpose(1, 0, 2))


@given(streams())
@settings(deadline=None, max_examples=25)
def test_biased_cka(stream: Stream) -> None:
    want = reference.all_pairs(reference.biased_cka, by_head(stream.rows()))
    np.testing.assert_allclose(value("cka_biased", stream), want, **CLOSE)


@given(streams())
@settings(deadline=None, max_examples=25)
def test_procrustes(stream: Stream) -> None:
    want = reference.all_pairs(reference.procrustes, by_head(stream.rows()))
    np.testing.assert_allclose(value("procrustes", stream), want, **CLOSE)


@given(st.integers(0, 1000), st.sampled_from([1, 3, 30]), st.sampled_from([0.0, 1e4]))
@settings(deadline=None, max_examples=15)
def test_predict_is_fitted_on_one_half_and_judged_on_the_other(seed: int, dim: int, offset: float) -> None:
    stream = make_stream(seed, n_layers=1, dim=dim, lengths=((5, 9), (7, 3), (6, 8)), offset=offset)
    got, rows, even = value("predict", stream), stream.rows(), stream.blocks() % 2 == 0
    for a in range(3):
        for b in range(3):
            ways = [
                reference.held_out_r2(rows[fit, a], rows[fit, b], rows[~fit, a], rows[~fit, b], 1e-3)
                for fit in (even, ~even)
            ]
            want = 1.0 if a == b else np.mean(ways)
            np.testing.assert_allclose(got[a, b], want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["cka_biased", "procrustes", "predict", "cka_minibatch"])
@pytest.mark.parametrize("constant", [0.0, 1e4])
def test_a_constant_head_is_nan(name: str, constant: float) -> None:
    def alter(z: torch.Tensor, layer: int) -> torch.Tensor:
        z = z.clone()
        z[:, 1] = constant
        return z

    got = value(name, make_stream(n_layers=1).change(alter))
    assert np.isnan(got[1]).all()
    assert np.isnan(got[:, 1]).all()
    assert np.isfinite(got[np.ix_([0, 2], [0, 2])]).all()


@given(st.integers(0, 1000), st.sampled_from([1, 12]), st.sampled_from([0.0, 1e4]))
@settings(deadline=None, max_examples=15)
def test_minibatch_cka(seed: int, dim: int, offset: float) -> None:
    stream = make_stream(seed, n_layers=1, dim=dim, lengths=((5, 9), (7, 3), (600, 8)), offset=offset)
    rows, documents = stream.rows(), stream.blocks()
    pieces = []
    for document in np.unique(documents):
        own = rows[documents == document]
        pieces += [part for part in np.array_split(own, -(-len(own) // 256)) if len(part) >= 4]
    got = value("cka_minibatch", stream)
    for a in range(3):
        for b in range(3):
            want = reference.minibatch_cka([part[:, a] for part in pieces], [part[:, b] for part in pieces])
            np.testing.assert_allclose(got[a, b], want, **CLOSE)


@given(streams())
@settings(deadline=None, max_examples=15)
def test_measures_of_maps(stream: Stream) -> None:
    maps = [batch.tensors[0]["pattern"].transpose(1, 2)[batch.kept].numpy() for batch in stream.batches]
    heads = range(maps[0].shape[1])
    flat = [np.concatenate([part[:, head].ravel() for part in maps]) for head in heads]
    np.testing.assert_allclose(value("pattern_cosine", stream), reference.all_pairs(reference.cosine, flat), **CLOSE)
    queries = [[row for part in maps for row in part[:, head]] for head in heads]

    def agreement(a: list[np.ndarray], b: list[np.ndarray]) -> float:
        return 1 - np.mean([reference.divergence(p, q) for p, q in zip(a, b, strict=True)])

    np.testing.assert_allclose(value("pattern_js", stream), reference.all_pairs(agreement, queries), **CLOSE)


def test_what_a_learned_sink_takes_counts_as_one_more_key() -> None:
    stream = make_stream(n_layers=1)
    for batch in stream.batches:
        batch.tensors[0]["pattern"] *= torch.tensor([1.0, 0.5, 0.25]).double()[:, None, None]
    maps = [batch.tensors[0]["pattern"].transpose(1, 2)[batch.kept].numpy() for batch in stream.batches]
    rows = [np.append(row[head], 1 - row[head].sum()) for part in maps for row in part for head in (0, 1)]
    want = 1 - np.mean([reference.divergence(p, q) for p, q in zip(rows[::2], rows[1::2], strict=True)])
    assert value("pattern_js", stream)[0, 1] == pytest.approx(want, rel=1e-9)


@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 9))
@settings(deadline=None, max_examples=25)
def test_measures_of_weights_equal_the_full_products_and_do_not_see_inner_coordinates(
    seed: int, dim: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    pairs = [(rng.standard_normal((dim, width)), rng.standard_normal((dim, width))) for _ in range(3)]
    inner = rng.standard_normal((dim, dim)) + 3 * np.eye(dim)
    pairs.append((2 * inner @ pairs[1][0], np.linalg.inv(inner).T @ pairs[1][1]))
    factors = [Factors(torch.from_numpy(left), torch.from_numpy(right)) for left, right in pairs]
    want = reference.all_pairs(reference.cosine, [left.T @ right for left, right in pairs])
    for name, need in (("weights_qk", "qk_factors"), ("weights_ov", "ov_factors")):
        got = MEASURES[name]().compare({need: factors})
        np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-9)
        assert got[1, 3] == pytest.approx(1, rel=1e-7)
