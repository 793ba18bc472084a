"""Redundancy of a whole model: every layer, the model, what is missing and why."""

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import headscope as hs
from headscope.errors import InputError, StorageError
from headscope.likeness.measures.cka_biased import cka_biased
from headscope.surplus.effective import effective_heads, vendi
from headscope.surplus.layers import CONSTANT, WHOLE, Redundancy
from tests.models import build, make_batches
from tests.rows import measured


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
    assert found.effective.sort_values("layer", ascending=False)["layer"].tolist() == [WHOLE, "1", "0"]
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
    kept = found.curve[found.curve["k"] > 0]
    for low, high in (("low", "high"), ("restored_low", "restored_high")):
        assert (kept[low] < kept[high]).all()
    assert (found.curve.loc[found.curve["k"] == 0, ["share", "low", "high"]] == 0).all(axis=None)
    assert found.curve["chance"].notna().all()
    assert (found.effective["chance"].notna() == (found.effective["layer"] != WHOLE)).all()
    assert found.facts["skip_first"] == 0
    assert "why_no_interval" not in found.facts


def test_skipped_positions_change_the_numbers(model, batches, found):
    skipped = hs.redundancy(model, iter(batches), anatomy=hs.discover(model), skip_first=2)
    assert skipped.facts["tokens"] == found.facts["tokens"] - 2 * 12
    assert not np.allclose(skipped.curve["share"], found.curve["share"])


def test_too_few_documents_have_numbers_but_no_interval(model, batches):
    few = hs.redundancy(model, batches[:1])
    assert few.curve[["low", "high", "restored_low", "restored_high"]].isna().all(axis=None)
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
    assert found.facts["why_no_value"] == (
        "no effective number for layer 1: its heads are constant; no curve for layer 1: it writes the same everywhere"
    )


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


def test_layers_and_heads_sort_by_their_numbers(tmp_path: Path) -> None:
    effective = pd.DataFrame({"layer": ["2", "10", WHOLE], "n_heads": 11, "effective": 1.5, "low": 1.0, "high": 2.0})
    curve = pd.DataFrame({"layer": 2, "k": [0, 1, 2], "head": [CONSTANT, "L2H10", "L2H9"], "share": 0.5})
    counts = {"low": 0.1, "high": 0.2, "chance": 0.0, "tokens_per_dimension": 3.0, "n_documents": 5, "n_tokens": 50}
    restored = dict.fromkeys(("restored", "restored_low", "restored_high"), 0.6)
    made = Redundancy(effective.assign(**counts), curve.assign(**counts, **restored))
    made.save(tmp_path)
    for found in (made, Redundancy.load(tmp_path)):
        assert found.effective.sort_values("layer")["layer"].tolist() == ["2", "10", WHOLE]
        assert found.curve.sort_values("head")["head"].tolist() == [CONSTANT, "L2H9", "L2H10"]
