"""Effective number of heads and redundancy curve: against the rows themselves, on planted truths, on a whole model."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import headscope as hs
from headscope.errors import InputError, StorageError
from headscope.likeness.measures.cka_biased import cka_biased
from headscope.statistics.moments import Moments
from headscope.statistics.prediction import RIDGE
from headscope.surplus.effective import effective_heads, effective_spread, vendi
from headscope.surplus.layers import (
    CONSTANT,
    WHOLE,
    curve_spread,
    fit_best,
    residuals,
    total_energy,
)
from tests.models import build, make_batches
from tests.reference import jackknife as jackknife_reference
from tests.reference import redundancy as reference
from tests.rows import in_blocks, measured
from tests.strategies import weights_for


def sample(seed=0, n_tokens=300, n_heads=4, dim=3, offset=1.0):
    """Heads that predict each other in part, about means of their own."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((n_tokens, 1, dim))
    size = 1 + np.arange(n_heads)[:, None] / 3
    own = rng.standard_normal((n_tokens, n_heads, dim)) * size
    return common + 0.7 * own + offset * rng.standard_normal((1, n_heads, dim))


def rotation(rng, dim):
    return np.linalg.qr(rng.standard_normal((dim, dim)))[0]


@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 4), st.sampled_from([0.0, 1.0, 1e4]))
@settings(deadline=None, max_examples=25)
def test_effective_heads_equal_the_textbook(seed, n_heads, dim, offset):
    rows = sample(seed, n_heads=n_heads, dim=dim, offset=offset)
    got = effective_heads(measured(rows, rows[0]))
    np.testing.assert_allclose(got, reference.vendi(rows), rtol=1e-9)
    assert 1 <= got <= n_heads


def test_copies_are_one_head_and_uncorrelated_heads_are_all():
    rng = np.random.default_rng(0)
    base = rng.standard_normal((200, 3))
    copies = np.stack([(k + 1) * base @ rotation(rng, 3) + k for k in range(5)], axis=1)
    assert effective_heads(measured(copies)) == pytest.approx(1, abs=1e-6)
    columns = np.linalg.qr(rng.standard_normal((200, 12)))[0]
    columns = np.linalg.qr(np.hstack([np.ones((200, 1)), columns]))[0][:, 1:]  # each sums to 0, all at right angles
    assert effective_heads(measured(columns.reshape(200, 4, 3) * 10)) == pytest.approx(4, rel=1e-12)


def test_two_pairs_of_twins_are_two_heads():
    rng = np.random.default_rng(1)
    columns = np.linalg.qr(np.hstack([np.ones((50, 1)), rng.standard_normal((50, 4))]))[0][:, 1:].reshape(50, 2, 2)
    rows = np.stack([columns[:, 0], columns[:, 1], 2 * columns[:, 0, ::-1], columns[:, 1] + 3], axis=1)
    assert effective_heads(measured(rows)) == pytest.approx(2, rel=1e-7)


def test_a_constant_head_counts_for_nothing():
    rows = sample()
    with_constant = np.concatenate([rows[:, :2], np.full_like(rows[:, :1], 0.3), rows[:, 2:]], axis=1)
    assert effective_heads(measured(with_constant)) == pytest.approx(effective_heads(measured(rows)), rel=1e-12)
    assert np.isnan(effective_heads(measured(np.full((20, 3, 2), 0.3))))


def test_vendi_does_not_fall_over_eigenvalues_just_below_zero():
    similarity = np.array([[1.0, 1.0 + 1e-12], [1.0 + 1e-12, 1.0]])
    assert np.linalg.eigvalsh(similarity)[0] < 0
    assert vendi(similarity) == pytest.approx(1, abs=1e-9)
    half = np.array([[1.0, 0.5], [0.5, 1.0]])  # eigenvalues 3/4 and 1/4
    assert vendi(half) == pytest.approx(np.exp(0.75 * np.log(4 / 3) + 0.25 * np.log(4)), rel=1e-12)


def test_the_interval_of_the_effective_number_is_a_jackknife_over_blocks():
    rows = sample(3)
    parts = np.array_split(rows, 5)
    low, high = effective_spread(in_blocks(rows, 5)).interval()
    np.testing.assert_allclose([low, high], jackknife_reference.interval(reference.vendi, parts), rtol=1e-7)
    assert np.isnan(effective_spread([measured(rows)]).interval()).all()


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 4), st.sampled_from([1e-5, RIDGE, 1.0]))
@settings(deadline=None, max_examples=25)
def test_order_and_shares_equal_a_refit_at_every_step(seed, n_heads, dim, ridge):
    rows = sample(seed, n_heads=n_heads, dim=dim)
    weights = weights_for(seed, n_heads, dim)
    fit, judge = rows[:160], rows[160:]
    order, want = reference.curve(fit, judge, [weight.numpy() for weight in weights], ridge)
    best = fit_best(measured(fit, fit[0]), weights, ridge)
    assert list(best.order) == order
    judged = measured(judge, judge[0])
    got = 1 - residuals(best, judged) / total_energy(judged, weights)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


def test_energy_is_that_of_what_all_heads_write_together():
    rows, weights = sample(offset=3.0), weights_for(0, 4, 3)
    wrote = np.einsum("nhd,hwd->nw", rows, np.stack(weights))
    assert total_energy(measured(rows), weights) == pytest.approx((wrote**2).sum(), rel=1e-12)


def test_a_head_that_another_gives_is_not_needed():
    """Head 3 is a linear map of head 1: three of four heads give everything back, and without the plant they do not."""
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((600, 4, 3))
    weights = weights_for(2, 4, 3, width=12)
    before = curve_spread(in_blocks(rows), weights, ridge=1e-9).centre
    rows[:, 3] = rows[:, 1] @ rng.standard_normal((3, 3)) + 2
    planted = curve_spread(in_blocks(rows), weights, ridge=1e-9).centre
    assert before[3] < 0.95
    assert planted[3] == pytest.approx(1, abs=1e-6)
    assert planted[2] < 0.95
    chosen = set(fit_best(measured(rows), weights, ridge=1e-9).order[:3])
    assert chosen in ({0, 1, 2}, {0, 2, 3})


def test_the_curve_chooses_on_one_half_judges_on_the_other_and_averages():
    rows, weights = sample(4), weights_for(1, 4, 3)
    plain = [weight.numpy() for weight in weights]
    groups = np.array_split(np.arange(len(rows)), 6)
    second_half = np.concatenate([np.full(len(group), number % 2) for number, group in enumerate(groups)])

    def both(left):
        halves = [rows[left[second_half[left] == half]] for half in (0, 1)]
        return np.mean([reference.curve(*way, plain, RIDGE)[1] for way in (halves, halves[::-1])], axis=0)

    spread = curve_spread(in_blocks(rows), weights)
    np.testing.assert_allclose(spread.centre, both(np.arange(len(rows))), rtol=1e-9, atol=1e-9)
    want = [jackknife_reference.interval(lambda left, k=k: both(left)[k], groups) for k in range(5)]
    np.testing.assert_allclose(np.transpose(spread.interval()), want, rtol=1e-7, atol=1e-9)


def test_empty_blocks_and_too_few_of_them():
    rows, weights = sample(), weights_for(0, 4, 3)
    empty = Moments.empty((3,) * 4, torch.zeros(12, dtype=torch.float64))
    blocks = in_blocks(rows, 5)
    with_empty = curve_spread([blocks[0], empty, *blocks[1:]], weights)
    np.testing.assert_array_equal(with_empty.centre, curve_spread(blocks, weights).centre)
    assert np.isnan(curve_spread([empty, blocks[0]], weights).centre).all()
    three = curve_spread(in_blocks(rows, 3), weights)
    assert np.isfinite(three.centre).all()
    assert np.isnan(three.interval()).all()


def test_a_layer_that_writes_nothing_is_given_back_by_the_constant():
    rows = np.zeros((40, 3, 2))
    spread = curve_spread(in_blocks(rows, 4), weights_for(0, 3, 2))
    np.testing.assert_array_equal(spread.centre, np.ones(4))


def test_a_constant_head_is_chosen_last_and_adds_nothing():
    rows, weights = sample(), weights_for(0, 4, 3)
    rows[:, 2] = 0.4
    assert fit_best(measured(rows), weights).order[-1] == 2
    shares = curve_spread(in_blocks(rows), weights).centre
    assert shares[4] == pytest.approx(shares[3], rel=1e-9)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build("gpt2")


@pytest.fixture(scope="module")
def batches():
    return make_batches("gpt2", n_batches=4, rows=3, length=20)


@pytest.fixture(scope="module")
def found(model, batches):
    return hs.redundancy(model, batches)


def test_one_call_gives_every_layer_and_the_model(model, batches, found):
    assert found.effective["layer"].tolist() == ["0", "1", WHOLE]
    assert found.effective["n_heads"].tolist() == [4, 4, 8]
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert found.effective["n_tokens"].tolist() == [tokens] * 3
    assert found.effective["n_documents"].tolist() == [12] * 3
    assert found.effective["tokens_per_dimension"].tolist() == [tokens / 8] * 3
    pairs = hs.similarity(model, batches, measure="cka_biased", scope="model")
    want = [vendi(pairs.matrix[:4, :4]), vendi(pairs.matrix[4:, 4:]), vendi(pairs.matrix)]
    np.testing.assert_allclose(found.effective["effective"], want, rtol=1e-9)
    assert (found.effective["low"] < found.effective["high"]).all()
    assert found.curve["layer"].tolist() == [0] * 5 + [1] * 5
    assert found.curve["k"].tolist() == [*range(5)] * 2
    assert found.curve["head"][0] == CONSTANT
    assert sorted(found.curve["head"][6:]) == ["L1H0", "L1H1", "L1H2", "L1H3"]
    assert (found.curve["low"] < found.curve["high"]).all()
    assert found.facts["skip_first"] == 0
    assert "why_no_interval" not in found.facts


def test_skipped_positions_change_the_numbers(model, batches, found):
    skipped = hs.redundancy(model, iter(batches), anatomy=hs.discover(model), skip_first=2)
    assert skipped.facts["tokens"] == found.facts["tokens"] - 2 * 12
    assert not np.allclose(skipped.curve["share"], found.curve["share"])


def test_too_few_documents_have_numbers_but_no_interval(model, batches):
    few = hs.redundancy(model, batches[:1])
    assert few.curve[["low", "high"]].isna().all(axis=None)
    assert few.curve["share"].notna().all()
    assert "only 3 documents" in few.facts["why_no_interval"]
    assert "why_no_value" not in few.facts
    with pytest.raises(InputError, match="no batch"):
        hs.redundancy(model, [])


def test_what_is_missing_is_explained(model, batches):
    one = hs.redundancy(model, [{name: value[:1] for name, value in batches[0].items()}])
    assert one.curve["share"].isna().all()
    assert "no curve: only 1 document" in one.facts["why_no_value"]
    silent = copy.deepcopy(model)
    site = hs.discover(silent).sites[1]
    with torch.no_grad():
        linear = silent.get_submodule(site.value[0].module)
        rows = [row for head in site.value[0].heads for row in head]
        if type(linear).__name__ == "Conv1D":
            linear.weight[:, rows], linear.bias[rows] = 0, 0
        else:
            linear.weight[rows] = 0
            linear.bias[rows] = 0
    found = hs.redundancy(silent, batches)
    assert found.facts["why_no_value"] == "no effective number for layer 1: its heads are constant"


def test_saved_and_read_back(found, tmp_path):
    found.save(tmp_path)
    again = hs.Redundancy.load(tmp_path)
    pd.testing.assert_frame_equal(again.effective, found.effective, check_exact=True)
    pd.testing.assert_frame_equal(again.curve, found.curve, check_exact=True)
    assert again.facts == found.facts
    parquet = pd.read_parquet(tmp_path / "redundancy_curve.parquet")
    pd.testing.assert_frame_equal(parquet, found.curve, check_exact=True)
    assert "effective number" in found._repr_html_()
    (tmp_path / "redundancy_curve.csv").unlink()
    with pytest.raises(StorageError, match="redundancy_curve"):
        hs.Redundancy.load(tmp_path)


def test_the_whole_model_counts_what_layers_share():
    """Two layers of the same heads are no more heads than one."""
    rng = np.random.default_rng(9)
    layer = rng.standard_normal((300, 3, 2))
    twice = np.concatenate([layer, layer], axis=1)
    one, both = effective_heads(measured(layer)), effective_heads(measured(twice))
    assert both == pytest.approx(one, rel=1e-9)
    assert cka_biased(measured(twice)).shape == (6, 6)
