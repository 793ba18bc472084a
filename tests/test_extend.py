"""The examples of docs/extend.md are what they say: each, put into its folder, keeps its contract."""

import ast
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import headscope
import headscope.studies.claims
import headscope.studies.tasks
from headscope._support.registry import Registry
from headscope.likeness.measures import MEASURES
from headscope.scoring.scores import SCORES
from headscope.statistics import STATISTICS
from headscope.studies.asking import ask_model
from headscope.studies.claim_pages import page as claim_page
from headscope.studies.claims import CLAIMS
from headscope.studies.headcount import Settings, sweep
from headscope.studies.rulings import Rulings
from headscope.studies.tasks import TASKS
from headscope.studies.training import train
from tests.contract import test_measures, test_scores, test_statistics
from tests.contract.plugins import add_file
from tests.pages import DOCS, beside, blocks
from tests.strategies import make_stream
from tests.unit.studies import test_claims, test_tasks


def added(monkeypatch: pytest.MonkeyPatch, folder: Path, package: ModuleType, registry: Registry, kind: str) -> str:
    """Put the example for one kind of extension into its package; gives the name that it registers."""
    (source,) = (block for block in blocks(DOCS / "extend.md", "python") if f"@{kind}.register" in block)
    add_file(monkeypatch, folder, package, registry, source)
    name = re.search(rf'@{kind}\.register\("(\w+)"\)', source)
    assert name is not None
    assert f"`{package.__name__.replace('.', '/')}/" in (DOCS / "extend.md").read_text("utf-8")
    return name[1]


def test_examples_come_through_the_door_that_stays() -> None:
    """`hs.` names and the figures; what stands behind them may move."""
    examples = [block for block in blocks(DOCS / "extend.md", "python") if ".register(" in block]
    assert len(examples) == 5
    for source in examples:
        modules = {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
        assert {name for name in modules if name.startswith("headscope")} <= {
            "headscope",
            "headscope.reporting.figures",
        }


def test_the_new_measure_keeps_the_contract(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, build_model, make_batches
) -> None:
    name = added(monkeypatch, tmp_path, headscope.likeness.measures, MEASURES, "MEASURES")
    measure, contract = MEASURES[name](), test_measures
    values = contract.values_of(measure, *contract.planted())
    contract.test_facts_are_declared_and_settings_are_fields(measure)
    contract.test_one_number_for_every_ordered_pair(values)
    contract.test_zero_head_is_nan_in_row_and_column_and_nowhere_else(measure, values)
    contract.test_twin_is_on_top_and_the_case_is_not_trivial(measure, values)
    contract.test_symmetry_is_as_declared(measure, values)
    contract.check_bounds(measure, values)
    contract.test_padding_is_without_effect(measure, values)
    contract.test_it_runs_on_a_model_by_name(measure, build_model, make_batches)
    assert f"## {name}" in beside("pages").cards(MEASURES)
    stream, weights = contract.planted()
    z = np.concatenate(
        [batch.tensors[0]["gated_z"].transpose(1, 2)[batch.kept].double().numpy() for batch in stream.batches]
    )
    squares = np.square(z - z.mean(0)).sum(-1)
    with np.errstate(invalid="ignore"):
        want = squares.T @ squares / np.outer(*[np.linalg.norm(squares, axis=0)] * 2)
    np.testing.assert_allclose(contract.values_of(measure, stream, weights), want, rtol=1e-9)


def test_the_new_score_keeps_the_contract(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, build_model, make_batches
) -> None:
    name = added(monkeypatch, tmp_path, headscope.scoring.scores, SCORES, "SCORES")
    score, contract = SCORES[name](), test_scores
    rating = contract.rated(score, *contract.planted())
    contract.test_facts_are_declared_and_settings_are_fields(score)
    contract.test_every_head_has_a_number_inside_its_interval(score, rating)
    contract.test_higher_is_more_needed(name, rating)
    contract.test_one_document_has_no_interval(score)
    contract.test_padding_is_without_effect(score, rating)
    contract.test_it_runs_on_a_model_by_name(name, build_model, make_batches)
    assert f"## {name}" in beside("pages").cards(SCORES)


def test_the_new_statistic_keeps_the_contract(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, build_model, make_batches
) -> None:
    name, contract = added(monkeypatch, tmp_path, headscope.statistics, STATISTICS, "STATISTICS"), test_statistics
    stream = make_stream()
    contract.test_it_says_what_it_needs_and_has_defaults(name)
    contract.test_one_pass_equals_two_merged_halves(name, stream)
    contract.test_state_survives_a_file_and_goes_on(name, stream)
    contract.test_padding_is_without_effect(name, stream)
    contract.test_it_runs_on_a_model(name, build_model, make_batches)
    z = np.concatenate([batch.tensors[0]["z"].transpose(1, 2)[batch.kept].numpy() for batch in stream.batches])
    got = contract.feed(STATISTICS[name](), stream).compute()[0].numpy()
    np.testing.assert_array_equal(got, np.abs(z).max((0, 2)))


@pytest.mark.slow
def test_the_new_task_keeps_the_contract(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = added(monkeypatch, tmp_path, headscope.studies.tasks, TASKS, "TASKS")
    task = TASKS[name]()
    test_tasks.test_its_numbers_have_one_a_row(task)
    test_tasks.make.cache_clear()
    test_tasks.test_batches_repeat_for_a_seed_and_none_is_held_out(name)
    assert train(task, 4, 16, 0.01, 0, 200).error < 0.1 < task.chance
    found = sweep(
        tmp_path / "heads", Settings(tasks=(name,), heads=(1, 4), seeds=2, rates=(0.01,), share=0.02), workers=1
    )
    assert set(found.shapes["task"]) == {name}


def test_the_new_claim_keeps_the_contract(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = added(monkeypatch, tmp_path, headscope.studies.claims, CLAIMS, "CLAIMS")
    assert all(getattr(CLAIMS[name], fact).ja.strip() for fact in test_claims.FACTS)
    ruling = ask_model(test_claims.make_subject(), [name]).rulings[0]
    assert ruling.low < ruling.effect < ruling.high
    assert ruling.verdict.word in ("holds in part", "does not hold")
    assert f"# {name}: first token" in claim_page(
        name, [Rulings("small", (ruling,), {"versions": {}, "date": "today"})]
    )
