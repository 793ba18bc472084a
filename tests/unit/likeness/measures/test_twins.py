"""Each measure against an independent twin: textbook forms on the raw rows, in NumPy float64, at awkward sizes."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.anatomy.weights import Factors
from headscope.likeness.factors import factor_cosine
from headscope.likeness.measures import MEASURES
from headscope.statistics import minibatch_hsic
from headscope.statistics.minibatch_hsic import MinibatchHsic
from headscope.statistics.moments import Moments
from tests.contract.seen import seen_by_measure
from tests.reference import similarity as reference
from tests.strategies import Stream, feed, make_stream, streams, weights_for

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
            np.testing.assert_allclose(got[a, b], want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("constant", [0.0, 1 / 3, 3.0])
def test_predict_with_a_head_that_is_constant_in_one_half(constant: float) -> None:
    stream = make_stream(n_layers=1)

    def alter(z: torch.Tensor, layer: int) -> torch.Tensor:
        z = z.clone()
        z[0, 0] = constant  # each batch's first document is in an even block
        return z

    stream = stream.change(alter)
    got, rows, even = value("predict", stream), stream.rows(), stream.blocks() % 2 == 0
    assert np.ptp(rows[even, 0]) == 0
    assert np.isnan(got[:, 0]).all()  # it does not vary where it would be judged
    assert np.isfinite(got[:, 1:]).all()
    for b in (1, 2):
        # fitted where head 0 is constant, nothing but b's mean is learnt from it
        missed = ((rows[~even, b] - rows[even, b].mean(0)) ** 2).sum()
        by_mean = 1 - missed / ((rows[~even, b] - rows[~even, b].mean(0)) ** 2).sum()
        other = reference.held_out_r2(rows[~even, 0], rows[~even, b], rows[even, 0], rows[even, b], 1e-3)
        np.testing.assert_allclose(got[0, b], (by_mean + other) / 2, rtol=1e-9)


@pytest.mark.parametrize("offset", [0.0, 3.0, 1e4])
def test_predict_has_no_value_where_a_half_is_one_position(offset: float) -> None:
    assert np.isnan(value("predict", make_stream(n_layers=1, lengths=((9, 1),), offset=offset))).all()


@pytest.mark.parametrize("name", [name for name in MEASURES if MEASURES[name].needs & {"moments", "halves"}])
def test_nothing_seen_is_nan(name: str) -> None:
    nothing = Moments.empty((2, 2), torch.zeros(4, dtype=torch.float64))
    given = {"moments": nothing, "halves": (nothing, nothing), "output_weights": weights_for(0, 2, 2)}
    assert np.isnan(MEASURES[name]().compare(given)).all()


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


@given(st.integers(0, 1000), st.sampled_from([1, 12]), st.sampled_from([0.0, 1e4]), st.sampled_from([1, 5_000, 2**21]))
@settings(deadline=None, max_examples=15)
def test_minibatch_cka(seed: int, dim: int, offset: float, strip: int) -> None:
    with patch.object(minibatch_hsic, "_STRIP", strip):  # Gram matrices row by row, in strips of a few rows, and whole
        check_minibatch_cka(seed, dim, offset)


def check_minibatch_cka(seed: int, dim: int, offset: float) -> None:
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


@pytest.mark.parametrize("size", [5, 7])
def test_minibatches_are_one_batch_s_positions_of_one_block_in_equal_parts(size: int) -> None:
    stream = make_stream(n_layers=1, lengths=((5, 9, 2, 4, 3, 6, 1, 8, 7, 5, 6, 4), (11, 3)))  # 12 documents, 10 blocks
    (blocks,) = feed(MinibatchHsic(size=size), stream).compute().values()
    got = sum(block.values for block in blocks)
    pieces = []
    for batch in stream.batches:
        rows, of_row = batch.tensors[0]["gated_z"].numpy(), batch.block.numpy()
        for block in np.unique(of_row):
            own = np.concatenate([rows[i][:, batch.kept[i].numpy()] for i in np.flatnonzero(of_row == block)], axis=1)
            pieces += [part for part in np.array_split(own, -(-own.shape[1] // size), axis=1) if part.shape[1] >= 4]
    assert len({part.shape[1] for part in pieces}) > 1
    want = [
        [sum(part.shape[1] * reference.unbiased_hsic(part[a], part[b]) for part in pieces) for b in range(3)]
        for a in range(3)
    ]
    np.testing.assert_allclose(got, want, **CLOSE)
    assert sum(block.n for block in blocks) == sum(part.shape[1] for part in pieces)


def test_a_head_with_no_hsic_of_its_own_is_nan_in_minibatches_too() -> None:
    def alter(z: torch.Tensor, layer: int) -> torch.Tensor:
        z = z.clone()
        z[:, 0] = 3.3 * torch.eye(6, 8, dtype=z.dtype) + 0.1  # every position equally far from every other
        return z

    got = value("cka_minibatch", make_stream(n_layers=1, dim=8, lengths=((6, 6), (6,))).change(alter))
    assert np.isnan(got[0]).all()
    assert np.isnan(got[:, 0]).all()
    assert np.isfinite(got[1:, 1:]).all()


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
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
        assert got[1, 3] == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_weights_whose_product_is_zero_are_nan_although_no_factor_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = rng.standard_normal((2, 1, 6))
    share = rng.standard_normal()
    parts = [(np.vstack([left, share * left]), np.vstack([share * right, -right])), *rng.standard_normal((2, 2, 2, 6))]
    got = factor_cosine([Factors(*map(torch.from_numpy, part)) for part in parts])
    assert np.isnan(got[0]).all()
    assert np.isnan(got[:, 0]).all()
    assert np.isfinite(got[1:, 1:]).all()


def test_weights_of_different_widths_have_no_cosine() -> None:
    rng = np.random.default_rng(0)
    factors = [Factors(*map(torch.from_numpy, rng.standard_normal((2, dim, w)))) for dim, w in ((2, 6), (3, 6), (2, 9))]
    got = factor_cosine(factors)
    assert np.isnan(got[2, :2]).all()
    assert np.isnan(got[:2, 2]).all()
    assert got[2, 2] == pytest.approx(1)
    want = reference.cosine(*((own.left.T @ own.right).numpy() for own in factors[:2]))
    assert got[0, 1] == pytest.approx(want, rel=1e-9)
