"""What changed between two models: planted changes are found, nothing is found where nothing changed."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

import headscope as hs
from headscope.contrast import Contrast, _independent, compare
from headscope.errors import InputError, StorageError
from headscope.models.reference import example
from tests import models
from tests.families import build_further

BUDGET = hs.Budget(ablation_tokens=300, passes=0)

Trained = tuple[nn.Module, list[dict[str, torch.Tensor]]]


@pytest.fixture(scope="module")
def trained() -> Trained:
    return example()


@pytest.fixture(scope="module")
def run(trained: Trained) -> hs.Analysis:
    return hs.analyze(trained[0], batches=trained[1], budget=BUDGET)


def louder(model: nn.Module, layer: int, head: int, factor: float) -> nn.Module:
    """A copy in which one head writes more."""
    changed = copy.deepcopy(model)
    site = hs.discover(changed, example()[1][0]).site(layer)
    assert site.output is not None
    with torch.no_grad():
        changed.get_submodule(site.output.module).weight[:, list(site.output.heads[head])] *= factor
    return changed


def test_a_model_and_itself_differ_in_nothing(trained: Trained) -> None:
    model, batches = trained
    contrast = compare(model, model, batches[:2])
    assert set(contrast.frame["in"]) == {"both"}
    assert contrast.frame["change"].abs().max() == 0
    assert contrast.changed.empty
    assert "no change is told from chance" in contrast.sentence
    assert "itself" not in contrast.sentence
    assert contrast.alike is not None
    np.testing.assert_allclose(contrast.alike.matrix.diagonal(), 1, rtol=1e-9)


def test_the_two_sides_of_an_encoder_decoder_change_each_on_its_own_positions() -> None:
    batches = models.make_batches("gpt2", n_batches=4)
    for batch in batches:
        batch["decoder_input_ids"] = batch["input_ids"].flip(1)[:, :5].contiguous()
    first, second = build_further("t5"), build_further("t5", seed=1)
    changes = compare(first, second, batches, scores="norm").frame
    for model, column in ((first, "first"), (second, "second")):
        table = hs.importance(model, batches, "norm")
        np.testing.assert_array_equal(changes[column], table.score)
        assert len(table.facts["freedom"]) == len(table.heads)
        half = (table.high - table.low) / 2
        assert np.isfinite(half / stats.t.ppf(0.975, table.facts["freedom"])).all()
    assert (changes["low"] < changes["change"]).all()
    assert changes["q_value"].between(0, 1).all()


def test_a_score_that_is_not_tested_is_not_called_unchanged(trained: Trained) -> None:
    model, batches = trained
    contrast = compare(model, louder(model, 1, 2, 3.0), batches[:3], scores="needed")
    assert contrast.frame["p_value"].isna().all()
    assert contrast.sentence.endswith("needed has an interval but no error of its own, so its changes are not tested.")


def test_rounding_is_no_change_and_a_small_change_is_told_by_its_size(trained: Trained) -> None:
    model, batches = trained
    contrast = compare(model, copy.deepcopy(model).double(), batches, scores=("norm", "replaceability"))
    assert 0 < contrast.frame["change"].abs().max() < 1e-5
    assert contrast.changed.empty
    slight = compare(model, louder(model, 1, 2, 1.0004), batches, scores="norm")
    assert len(slight.changed) == 1
    assert "L1H2 (norm 0.376, by 1.50×10⁻⁴)" in slight.sentence


@pytest.mark.parametrize("score", ["replaceability", "needed"])
def test_a_score_without_an_interval_changes_without_one(trained: Trained, score: str) -> None:
    model, batches = trained
    few = [{name: value[:3] for name, value in batches[0].items()}]
    contrast = compare(model, louder(model, 1, 2, 3.0), few, scores=score)
    assert contrast.frame["change"].notna().all()
    assert contrast.frame[["low", "high", "p_value"]].isna().to_numpy().all()
    assert "needs at least 4 blocks" in contrast.facts["why_no_interval"]


def test_a_head_that_was_made_louder_stands_first(trained: Trained) -> None:
    model, batches = trained
    contrast = compare(model, louder(model, 1, 2, 3.0), batches, scores=("norm",))
    top = contrast.changed.iloc[0]
    assert (top["layer"], top["head"]) == (1, 2)
    assert top["second"] / top["first"] == pytest.approx(3, rel=0.1)
    assert top["low"] > 0


def test_the_head_that_does_something_else_is_least_like_itself(trained: Trained) -> None:
    model, batches = trained
    changed = copy.deepcopy(model)
    site = hs.discover(changed, batches[0]).site(1)
    with torch.no_grad():
        rows = list(site.value[0].heads[2])
        changed.get_submodule(site.value[0].module).weight[rows] = torch.randn(
            len(rows), 32, generator=torch.Generator().manual_seed(0)
        )
    contrast = compare(model, changed, batches, scores="norm")
    itself, alike = contrast.itself, contrast.alike
    assert alike is not None
    assert len(itself) == len(alike.heads)
    assert itself["cka"].is_monotonic_increasing
    assert (itself["layer"][0], itself["head"][0]) == (1, 2)
    assert itself["cka"][0] == alike["L1H2", "L1H2"]
    assert "least like itself: L1H2 (CKA" in contrast.sentence
    assert "L1H2" in repr(contrast) or "least like themselves" in repr(contrast)


def test_a_head_that_went_silent_is_named(trained: Trained) -> None:
    model, batches = trained
    silent = copy.deepcopy(model)
    site = hs.discover(silent, batches[0]).site(0)
    value = silent.get_submodule(site.value[0].module)
    with torch.no_grad():
        value.weight[list(site.value[0].heads[1])] = 0
        value.bias[list(site.value[0].heads[1])] = 0
    contrast = compare(model, silent, batches, scores="norm")
    assert "nothing to compare in L0H1, constant in one of the two" in contrast.sentence
    first = contrast.itself.iloc[0]
    assert (first["layer"], first["head"]) == (0, 1)
    assert np.isnan(first["cka"])
    assert contrast.alike is not None
    assert "not for L0H1 of the second" in contrast.alike.facts["why_no_value"]


def test_a_sample_serves_scores_by_a_metric_and_the_whole_text_the_others(trained: Trained) -> None:
    model, batches = trained
    contrast = compare(model, louder(model, 1, 2, 3.0), batches, sample=batches[:2])
    tokens = contrast.frame.groupby("score")["n_tokens"].first()
    assert tokens["norm"] == contrast.facts["tokens"] == 3 * tokens["ablation"]


def test_layers_with_other_freedom_keep_their_own(trained: Trained) -> None:
    heads = (hs.HeadId(0, 0), hs.HeadId(1, 0))
    freedom = [9.0, 2.5]
    tables = []
    for score, seed in ((1.0, 0), (2.0, 1)):
        half = stats.t.ppf(0.975, freedom) * np.array([0.1, 0.2]) * (1 + seed)
        values = np.full(2, score)
        tables.append(hs.HeadTable("norm", "", heads, values, values - half, values + half, {"freedom": freedom}))
    frame = _independent(*tables)
    errors = np.hypot([0.1, 0.2], [0.2, 0.4])
    welch = errors**4 / (np.array([0.1, 0.2]) ** 4 + np.array([0.2, 0.4]) ** 4) * np.array(freedom)
    np.testing.assert_allclose((frame["high"] - frame["low"]) / 2, stats.t.ppf(0.975, welch) * errors, rtol=1e-9)


def test_a_pruned_model_lacks_the_heads_that_went(trained: Trained) -> None:
    model, batches = trained
    smaller = hs.prune(model, ["L0H1", "L1H0"], batches=batches[:1])
    contrast = compare(model, smaller, batches[:2])
    gone = contrast.frame[contrast.frame["in"] == "first"]
    assert {(row.layer, row.head) for row in gone.itertuples()} == {(0, 1), (1, 0)}
    assert gone[["second", "change", "low", "high", "q_value"]].isna().all().all()
    assert "2 heads of the first are gone" in contrast.sentence


def test_effects_are_paired_by_row_and_tested_over_documents(trained: Trained) -> None:
    model, batches = trained
    other = louder(model, 0, 0, 0.0)
    contrast = compare(model, other, batches, scores=("ablation",))
    row = contrast.frame.set_index(["layer", "head"]).loc[(0, 0)]
    alone = hs.importance(model, batches)
    assert row["first"] == pytest.approx(alone["L0H0"], rel=1e-12)
    assert row["second"] == 0  # a silent head is not missed
    assert row["change"] == pytest.approx(-alone["L0H0"], rel=1e-12)
    # the interval is that of the head's own effect, since the other model's is zero in every row
    place = alone.heads.index(hs.HeadId(0, 0))
    assert row["low"] == pytest.approx(-alone.high[place], rel=1e-9)
    assert row["high"] == pytest.approx(-alone.low[place], rel=1e-9)
    assert 0 < row["p_value"] <= row["q_value"] <= 1


def test_two_analyses_are_compared_by_their_tables(run: hs.Analysis, trained: Trained) -> None:
    again = hs.analyze(louder(trained[0], 1, 2, 3.0), batches=trained[1], budget=BUDGET)
    contrast = compare(run, again)
    assert "errors taken as independent, which is cautious" in contrast.sentence
    assert contrast.facts["why_no_test"].startswith("needed has an interval but no error")
    assert contrast.frame.set_index("score").loc["needed", "p_value"].isna().all()
    assert contrast.itself.empty
    assert set(contrast.frame["score"]) == set(run.scores)
    norm = contrast.frame[contrast.frame["score"] == "norm"].set_index(["layer", "head"]).loc[(1, 2)]
    assert norm["change"] == pytest.approx(again.scores["norm"]["L1H2"] - run.scores["norm"]["L1H2"])
    assert norm["low"] > 0
    tables = run.scores["norm"], again.scores["norm"]
    freedom = np.array([table.facts["freedom"] for table in tables])
    assert (freedom > 1).all()
    halves = np.array([(t.high - t.low)[t.heads.index(hs.HeadId(1, 2))] / 2 for t in tables])
    errors = halves / stats.t.ppf(0.975, freedom)
    welch = (errors**2).sum() ** 2 / (errors**4 / freedom).sum()
    assert (norm["high"] - norm["low"]) / 2 == pytest.approx(np.hypot(*errors) * stats.t.ppf(0.975, welch))
    assert norm["p_value"] == pytest.approx(2 * stats.t.sf(norm["change"] / np.hypot(*errors), welch))


def test_of_two_documents_no_analysis_tells_a_change() -> None:
    facts = {"documents": 2, "freedom": 1.0}
    heads = tuple(hs.HeadId(0, head) for head in range(8))
    rng = np.random.default_rng(0)
    first, second = (
        hs.HeadTable("norm", "", heads, score, score - half, score + half, facts)
        for score, half in ((rng.normal(size=8), np.full(8, 12.7)), (rng.normal(20, 1, size=8), np.full(8, 12.7)))
    )
    frame = _independent(first, second)  # 20 apart, 14 errors: told with nine degrees of freedom, not with two
    assert (frame["p_value"] < 0.01).all()
    assert (frame["p_value"] > 1e-3).all()
    # an interval that is not made of an error, as that of "needed", tests nothing
    bare = [hs.HeadTable(t.name, t.unit, t.heads, t.score, t.low, t.high, {"documents": 2}) for t in (first, second)]
    assert _independent(*bare)[["low", "high", "p_value"]].isna().all(axis=None)


def test_it_comes_back_from_its_folder(trained: Trained, tmp_path: Path) -> None:
    contrast = compare(trained[0], louder(trained[0], 1, 2, 3.0), trained[1][:2])
    contrast.save(tmp_path / "out")
    back = Contrast.load(tmp_path / "out")
    pd.testing.assert_frame_equal(back.frame, contrast.frame)
    assert back.sentence == contrast.sentence
    assert back.alike is not None
    assert contrast.alike is not None
    np.testing.assert_array_equal(back.alike.matrix, contrast.alike.matrix)
    assert contrast.sentence.split("<")[0] in contrast._repr_html_()


def test_positions_left_out_are_told_and_refused_where_a_metric_counts_them(trained: Trained) -> None:
    model, batches = trained[0], trained[1][:2]
    contrast = compare(model, louder(model, 1, 2, 3.0), batches, scores="norm", skip_first=2)
    assert set(contrast.frame["score"]) == {"norm"}
    assert contrast.facts["skip_first"] == 2
    assert contrast.facts["tokens"] == contrast.frame["n_tokens"].iloc[0]
    with pytest.raises(InputError, match="ablation is measured by a metric, which counts every position"):
        compare(model, model, batches, skip_first=2)
    with pytest.raises(InputError, match="skip_first is a whole number of positions"):
        compare(model, model, batches, scores="norm", skip_first=-1)


def test_what_cannot_be_compared_is_refused(run: hs.Analysis, trained: Trained) -> None:
    with pytest.raises(InputError, match=r"two analyses or two models, .*; got Analysis and Transformer"):
        compare(run, trained[0])
    with pytest.raises(InputError, match="got Transformer and str"):
        compare(trained[0], "a folder")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="pass batches"):
        compare(trained[0], trained[0])
    other = hs.Analysis(
        run.anatomy, run.scores, run.pairs, run.candidates, run.verdict, {**run.facts, "text_sha256": "another"}
    )
    with pytest.raises(InputError, match="different text, so"):
        compare(run, other)


def test_a_change_that_is_the_same_on_every_document_is_told_however_the_documents_differ(trained: Trained) -> None:
    model, batches = trained
    contrast = compare(model, louder(model, 1, 2, 1.02), batches, scores=("norm",))
    assert [(row.layer, row.head) for row in contrast.changed.itertuples()] == [(1, 2)]
    row = contrast.frame.set_index(["layer", "head"]).loc[(1, 2)]
    assert row["change"] == pytest.approx(0.02 * row["first"], rel=1e-4)
    assert row["low"] < row["change"] < row["high"]
    assert (row["high"] - row["low"]) < 0.1 * row["change"] + 1e-6 or row["low"] > 0
    still = contrast.frame[(contrast.frame["layer"] == 0)]
    assert (still["change"] == 0).all()
    assert (still["p_value"] == 1).all()


def test_false_discoveries_are_controlled_between_analyses(run: hs.Analysis) -> None:
    """Tables that differ by noise of the size of their errors: with no control one in five pairs has a change told."""
    rng = np.random.default_rng(0)
    table = run.scores["norm"]
    error = (table.high - table.low) / 2 / 2.262
    told = 0
    for _ in range(100):
        noisy = [
            dataclasses.replace(
                run,
                scores={
                    "norm": dataclasses.replace(
                        table, score=(moved := table.score + error * rng.standard_normal(len(error))),
                        low=moved - 2.262 * error, high=moved + 2.262 * error,
                    ),
                    "ablation": run.scores["ablation"],
                },
            )
            for _ in range(2)
        ]  # fmt: skip
        told += len(compare(*noisy).changed) > 0
    assert told <= 10


def test_batches_that_the_other_model_does_not_take_are_refused(trained: Trained) -> None:
    model, batches = models.build("gpt2"), models.make_batches("gpt2")
    small = models.build("gpt2")
    small.set_input_embeddings(nn.Embedding(5, small.config.n_embd))
    for call in (lambda: compare(model, small, batches), lambda: hs.similarity(model, batches, other=small)):
        with pytest.raises(InputError, match=r"the other model, GPT2LMHeadModel, does not take .*one vocab"):
            call()


def test_analyses_of_other_batches_of_one_s_own_are_refused(run: hs.Analysis, trained: Trained) -> None:
    again = hs.analyze(trained[0], batches=trained[1][::-1], budget=BUDGET)
    with pytest.raises(InputError, match="different text"):
        compare(run, again)
    assert compare(run, run).facts["documents"] == run.importance.facts["documents"]


def test_no_score_and_no_folder_are_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pass batches and scores"):
        compare(*[trained[0]] * 2, trained[1][:1], scores=())
    with pytest.raises(StorageError, match="heads"):
        Contrast.load(tmp_path)


def test_one_document_says_why_nothing_is_told(trained: Trained) -> None:
    one = [{**trained[1][0], "document": torch.zeros(len(trained[1][0]["input_ids"]), dtype=torch.long)}]
    contrast = compare(trained[0], louder(trained[0], 1, 2, 3.0), one, scores=("norm",))
    assert contrast.frame["q_value"].isna().all()
    assert "only 1 document" in contrast.sentence
