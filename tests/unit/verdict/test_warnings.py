"""What must be known before anything else is said of an analysis, and nothing where there is nothing."""

from dataclasses import replace

import pytest

import headscope as hs
from headscope.errors import SurgeryError
from headscope.verdict import trying
from headscope.verdict.warnings import warnings_of
from tests.models import build, make_batches
from tests.unit.reporting.synthetic import anatomy
from tests.unit.verdict.test_verdicts import make

WHOLE = anatomy(2, 4)
MIXED = replace(WHOLE, sites=(WHOLE.sites[0], replace(WHOLE.sites[1], entangled=("o",))))


STILL = {"joint": 0.0, "joint_low": 0.0, "joint_high": 0.0}


@pytest.mark.parametrize(
    ("verdict", "where", "facts", "said"),
    [
        (make(too_little=("Too little.",)), WHOLE, {}, "Too little."),
        (make(), MIXED, {}, "Heads of layers 1 cannot be taken out one by one"),
        (make(refused="x"), WHOLE, {}, "can be switched off, but not cut; refused: x."),
        (make(metric="acc", joint_high=-0.1), WHOLE, {}, "Without these heads acc is lower"),
        (make(metric="acc", max_loss_rise=0.0), WHOLE, {"max_loss_rise": "5%"}, "5% of it allows nothing"),
        (make(**STILL, metric="error"), WHOLE, {}, "error of none of the 9 documents moved"),
        (make(**STILL, metric="acc", n_documents=10), WHOLE, {}, "on up to 26% of all documents"),
    ],
)
def test_each_is_said_alone(verdict, where, facts, said):
    (one,) = warnings_of(verdict, where, facts)
    assert said in one


@pytest.mark.parametrize(
    ("verdict", "facts"),
    [
        (make(), {"cut": {"parameters_before": 2, "parameters_after": 1, "times": []}, "max_loss_rise": "1%"}),
        (make(joint_high=-0.1), {}),  # a loss may fall
        (make(metric="acc", joint_high=-0.1, chosen=()), {}),
        (make(max_loss_rise=0.0), {"max_loss_rise": "0%"}),
        (make(**STILL, metric="drift"), {}),  # 0 to the last bit: the heads write nothing
        (make(**{**STILL, "joint_high": 0.1}, metric="error"), {}),
        (make(max_loss_rise=0.0), {"max_loss_rise": 0.0}),
    ],
)
def test_nothing_is_said_where_there_is_nothing(verdict, facts):
    assert warnings_of(verdict, WHOLE, facts) == ()


def test_a_cut_that_is_refused_is_told_everywhere(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise SurgeryError("layers share their weights")

    monkeypatch.setattr(trying, "prune", refuse)
    batches = make_batches("llama", n_batches=4, rows=4)
    run = hs.analyze(build("llama"), batches=batches, budget=hs.Budget(passes=0, max_loss_rise=9.0, ablation_tokens=60))
    assert run.verdict.chosen, "the case is not trivial"
    assert run.facts["cut"] == {"refused": "layers share their weights"}
    assert "refused: layers share their weights" in run.verdict.sentence
    assert "can be switched off together at a cost of" in run.verdict.found
    plan = hs.plan(run)
    assert plan.facts["warnings"][-1] == run.warnings[-1]
    assert plan.facts["refused"] == "layers share their weights"
    assert plan.reason.endswith("refused: layers share their weights")
    assert "refused" not in hs.plan(run, heads=1).facts, "these were not tried"
    run.save(tmp_path / "run")
    assert hs.Analysis.load(tmp_path / "run").verdict == run.verdict
    page = run.report(tmp_path / "page").read_text(encoding="utf-8")
    assert "switched off, but not cut" in page
    assert "cannot be cut: layers share their weights" in page
