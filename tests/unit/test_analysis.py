"""The whole story on small models: it repeats, it saves whole, its verdict follows planted truths, it refuses."""

import copy
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

import headscope as hs
from headscope.errors import InputError, MetricError, NumericalError, StorageError
from headscope.models.reference import example
from tests import models

BUDGET = hs.Budget(ablation_tokens=300, passes=0)


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, list[dict[str, torch.Tensor]]]:
    return example()


@pytest.fixture(scope="module")
def run(trained: tuple[nn.Module, list[dict[str, torch.Tensor]]]) -> hs.Analysis:
    return hs.analyze(trained[0], batches=trained[1], budget=BUDGET)


def test_tables_cover_every_head(run: hs.Analysis) -> None:
    heads = run.anatomy.heads
    assert all(table.heads == heads for table in run.scores.values())
    assert set(run.scores) == {"ablation", "gradient", "norm", "replaceability", "needed"}
    assert run.similarity.heads == heads
    assert sorted(run.candidates["head"]) == sorted(map(str, heads))
    assert run.importance is run.scores["ablation"]
    assert run.verdict.sentence in run._repr_html_()


def test_documents_that_choose_do_not_judge(run: hs.Analysis) -> None:
    facts = run.facts
    assert facts["documents_watched"] + facts["documents_judged_on"] == 48
    assert facts["documents_chosen_on"] == run.importance.facts["documents"]
    assert run.scores["norm"].facts["documents"] == facts["documents_watched"]
    assert 0 < run.verdict.n_documents <= facts["documents_judged_on"]
    assert len(run.verdict.random) in (0, 5)


def test_the_same_call_gives_the_same_tables(
    run: hs.Analysis, trained: tuple[nn.Module, list[dict[str, torch.Tensor]]]
) -> None:
    again = hs.analyze(trained[0], batches=trained[1], budget=BUDGET)
    pd.testing.assert_frame_equal(again.candidates, run.candidates)
    assert again.verdict == run.verdict
    np.testing.assert_array_equal(again.similarity.matrix, run.similarity.matrix)


def test_words_that_are_all_empty_are_read_as_words(run: hs.Analysis, tmp_path: Path) -> None:
    alone = run.candidates.assign(stand_in="")
    dataclasses.replace(run, candidates=alone).save(tmp_path / "run")
    assert set(hs.Analysis.load(tmp_path / "run").candidates["stand_in"]) == {""}


def test_saved_and_loaded_it_is_the_same(run: hs.Analysis, tmp_path: Path) -> None:
    run.save(tmp_path / "run")
    loaded = hs.Analysis.load(tmp_path / "run")
    assert loaded.anatomy == run.anatomy
    assert loaded.verdict == run.verdict
    assert loaded.facts == run.facts
    pd.testing.assert_frame_equal(loaded.candidates, run.candidates)
    for name, table in run.scores.items():
        np.testing.assert_array_equal(loaded.scores[name].score, table.score)
        np.testing.assert_array_equal(loaded.scores[name].low, table.low)
    for name, pairs in run.pairs.items():
        np.testing.assert_array_equal(loaded.pairs[name].matrix, pairs.matrix)


def test_a_damaged_analysis_is_refused(run: hs.Analysis, tmp_path: Path) -> None:
    run.save(tmp_path / "run")
    whole = (tmp_path / "run" / "scores" / "norm.csv").read_text()
    (tmp_path / "run" / "scores" / "norm.csv").unlink()
    with pytest.raises(StorageError, match="norm"):
        hs.Analysis.load(tmp_path / "run")
    (tmp_path / "run" / "scores" / "norm.csv").write_text(whole)
    (tmp_path / "run" / "analysis.json").write_text("{")
    with pytest.raises(StorageError, match="does not hold a whole analysis"):
        hs.Analysis.load(tmp_path / "run")
    with pytest.raises(StorageError, match="nowhere"):
        hs.Analysis.load(tmp_path / "nowhere")


@pytest.mark.parametrize("older", [1, 2])
def test_a_run_whose_numbers_meant_something_else_is_refused(run: hs.Analysis, tmp_path: Path, older: int) -> None:
    """In format 2 replaceability was of the whole contribution; its numbers would stand under the name of another."""
    about = run.save(tmp_path / "out" / "run") / "analysis.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"format": older}))
    with pytest.raises(StorageError, match=rf"another version .*format {older}.*headscope analyze .*out --force"):
        hs.Analysis.load(tmp_path / "out")


def _copied(model: nn.Module, run: hs.Analysis, layer: int, source: int, target: int) -> nn.Module:
    """The same model with one head made a copy of another: same q, k, v."""
    altered = copy.deepcopy(model)
    site = run.anatomy.site(layer)
    with torch.no_grad():
        for part in (*site.query, *site.key, *site.value):
            module = altered.get_submodule(part.module)
            module.weight[list(part.heads[target])] = module.weight[list(part.heads[source])]
            if module.bias is not None:
                module.bias[list(part.heads[target])] = module.bias[list(part.heads[source])]
    return altered


def test_the_verdict_names_a_copied_head(
    run: hs.Analysis, trained: tuple[nn.Module, list[dict[str, torch.Tensor]]]
) -> None:
    assert "nearly interchangeable" not in run.verdict.sentence
    altered = hs.analyze(_copied(trained[0], run, 1, 0, 2), batches=trained[1], budget=BUDGET)
    assert "L1H0 and L1H2 are nearly interchangeable (CKA 1.00, 1.00 to 1.00)" in altered.verdict.sentence
    assert "100% (100% to 100%) of what varies in L1H" in altered.verdict.sentence
    assert altered.replaceability["L1H2"] > 0.999
    assert altered.candidates.set_index("head").loc["L1H2", "stand_in"] == "L1H0"


def test_the_verdict_names_a_loud_head(
    run: hs.Analysis, trained: tuple[nn.Module, list[dict[str, torch.Tensor]]]
) -> None:
    target = run.candidates["head"].iloc[0]
    assert f"{target} is needed most" not in run.verdict.sentence
    altered = copy.deepcopy(trained[0])
    site = run.anatomy.site(hs.HeadId.parse(target).layer)
    columns = list(site.output.heads[hs.HeadId.parse(target).head])
    with torch.no_grad():
        altered.get_submodule(site.output.module).weight[:, columns] *= 20
    loud = hs.analyze(altered, batches=trained[1], budget=BUDGET, metric="kl")
    assert f"{target} is needed most" in loud.verdict.sentence
    assert hs.HeadId.parse(target) not in loud.verdict.chosen


def test_weights_that_are_not_finite_are_named(trained: tuple[nn.Module, list[dict[str, torch.Tensor]]]) -> None:
    broken = copy.deepcopy(trained[0])
    name, parameter = list(broken.named_parameters())[5]
    with torch.no_grad():
        parameter.view(-1)[3] = float("nan")
    with pytest.raises(NumericalError, match=name.replace(".", r"\.")):
        hs.analyze(broken, batches=trained[1], budget=BUDGET)


def test_without_text_the_batches_of_this_model_are_shown() -> None:
    with pytest.raises(InputError, match=r"texts=\), or batches= of dicts like {'input_ids': …}"):
        hs.analyze(models.build("causal"))
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    pictures = ViTForImageClassification(ViTConfig(**small, image_size=8, patch_size=4))
    with pytest.raises(InputError, match=r"reads pixel_values, and text alone.* {'pixel_values': \(row, ch") as raised:
        hs.analyze(pictures)
    assert "tokenizer" not in raised.value.on_command_line


def test_what_cannot_be_analysed_is_refused(trained: tuple[nn.Module, list[dict[str, torch.Tensor]]]) -> None:
    model, batches = trained
    with pytest.raises(InputError, match="tokenizer"):
        hs.analyze(model)
    with pytest.raises(InputError, match="not both"):
        hs.analyze(model, texts=["a"], batches=batches)
    with pytest.raises(InputError, match=r"budget is a hs.Budget, as hs.Budget\(max_loss_rise='2%'\); got 0.02"):
        hs.analyze(model, batches=batches, budget=0.02)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no batch"):
        hs.analyze(model, batches=[])
    with pytest.raises(InputError, match="at least 4 documents"):
        hs.analyze(model, batches=[{name: value[:3] for name, value in batches[0].items()}])
    with pytest.raises(MetricError, match="next-token loss"):
        hs.analyze(models.build("bert"), batches=models.make_batches("bert"), metric="loss")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"held_out": 0.0}, "held_out"), ({"held_out": "a third"}, "held_out"), ({"passes": -1}, "passes"),
        ({"passes": "few"}, "passes"), ({"ablation_tokens": 0}, "ablation_tokens"),
        ({"ablation_tokens": "all"}, "ablation_tokens"),
    ],
)  # fmt: skip
def test_budgets_out_of_range_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        hs.Budget(**settings)


@pytest.mark.parametrize("show", [lambda run: run, lambda run: run.verdict, hs.plan], ids=["run", "verdict", "plan"])
def test_a_name_with_markup_stays_text_in_a_notebook(run: hs.Analysis, show: Callable[[hs.Analysis], Any]) -> None:
    bad = "<script>x</script>"
    verdict = dataclasses.replace(run.verdict, model=bad, too_little=(bad,))
    shown = show(dataclasses.replace(run, verdict=verdict))._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


def test_a_notebook_shows_warnings_sentence_main_figure_and_the_page_s_columns(run: hs.Analysis) -> None:
    warned = dataclasses.replace(run, verdict=dataclasses.replace(run.verdict, too_little=("Too little.",)))
    shown, table = warned._repr_html_(), next(iter(run._tables().values()))
    places = [shown.index(part) for part in ("Too little.", run.verdict.found[:40], "<img ", "<table", "run.report(")]
    assert places == sorted(places)
    assert shown.count("src=") == shown.count('src="data:image/png;base64,') == 1
    assert len(shown) < 150_000
    assert [*table] == re.findall("<th>(.*?)</th>", shown)
    assert len(table.columns) == 8
    assert not {"rank", "norm", "stand_in_cka"} & set(table)
    assert plt.get_fignums() == []


def test_a_terminal_shows_lines_that_fit(run: hs.Analysis) -> None:
    for shown in (run, run.verdict, run.removal, hs.plan(run, heads=2)):
        lines = repr(shown).splitlines()
        assert len(lines) < 40
        assert max(map(len, lines)) <= 100
    assert "Why" not in repr(run)
    assert "hs.plan(run" in repr(run)
    plan = hs.plan(run, heads=2)
    assert all(str(head) in repr(plan) for head in plan.heads)
    assert plan.reason.split(";")[0] in repr(plan)
    assert "by hand: 1 head " in repr(hs.Plan(["L0H1"]))
    assert str(run.removal.sizes[-1]) in repr(run.removal)
    none = dataclasses.replace(run.removal, budget=-1e9)
    assert "No head is sure to stay within" in repr(none)
    assert "can go; on documents that chose nothing it costs" in repr(_one_chosen(run.removal))


def _one_chosen(removal: Any) -> Any:
    costs = removal.costs.assign(chosen_high=removal.costs["heads"].astype(float))
    return dataclasses.replace(removal, costs=costs, budget=1.0)
