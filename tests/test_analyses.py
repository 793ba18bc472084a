"""The scripts in analyses/ stay thin: options, calls to headscope, one table, one figure."""

import ast
import inspect
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import headscope as hs
from headscope.cli import app
from headscope.cli.application import spread
from headscope.planning.removal import Removal

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
MODEL = ("headscope.models.reference:example",)
OPTIONS = {
    "benchmark": (*MODEL, "--quick", "--rounds", "1"),
    "cost_scaling": ("--quick", "--rounds", "2"),
    "head_count_sweep": ("--quick", "--task", "maps-4"),
    "interval_coverage": ("--quick", "--repetitions", "5"),
}
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
# what a script writes and what its quick form leaves out are its own; benchmark watches several models
OWN = {"out", "quick"}
RESUMING = {"head_count_sweep"}  # goes on in a folder of its own, and refuses that of other work
SCRIPTS = sorted((ROOT / "analyses").glob("*.py"))
LATER = {"head_count_sweep"}  # the command of the same work is run by .ci/run, and its study by tests of its own
RUN = [pytest.param(one, id=one.stem, marks=[pytest.mark.slow] * (one.stem in LATER)) for one in SCRIPTS]


def _definitions(source: str) -> set[str]:
    """Names of all functions and classes that a script defines, lambdas given a name among them."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            found |= {ast.unparse(target) for target in node.targets}
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_defines_main_and_nothing_else(script: Path) -> None:
    assert _definitions(script.read_text(encoding="utf-8")) == {"main"}, (
        "what a script needs beyond main() belongs into headscope, where it is tested and shared"
    )


def test_there_are_scripts() -> None:
    assert SCRIPTS


def test_the_reader_of_scripts_sees_every_definition() -> None:
    source = "def main():\n  def inner(): pass\nclass A: pass\nf = lambda: 1\nx = sorted([], key=lambda p: p)\n"
    assert _definitions(source) == {"main", "inner", "A", "f"}


def run(script: Path, options: list[str], patch: pytest.MonkeyPatch) -> object:
    """`python script options`, in this process, where everything is imported already; its exit status."""
    patch.setattr(sys, "argv", [script.name, *options])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    return stop.value.code


def _options(script: Path) -> list[Any]:
    """What a script takes, as its command line has it."""
    alone = typer.Typer()
    alone.command()(spread(runpy.run_path(str(script))["main"]))
    return [one for one in typer.main.get_command(alone).params if not one.name.endswith("completion")]


def _told(option: Any) -> tuple[Any, ...]:
    return option.param_type_name, tuple(option.opts), option.help, option.required


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_takes_options_as_the_commands_do(script: Path) -> None:
    for option in _options(script):
        same = [_told(one) for command in COMMANDS.values() for one in command.params if one.name == option.name]
        if same and option.name not in OWN and not (script.stem == "benchmark" and option.name == "model"):
            assert _told(option) in same, f"{option.name}: one meaning and one help text wherever it is taken"


def test_defaults_are_those_of_the_command_beside() -> None:
    pairs = {
        "ablation_impact": "importance",
        "head_count_sweep": "headcount",
        "head_similarity": "similarity",
        "pruning_candidates": "analyze",
        "redundancy_report": "analyze",
    }
    for script, command in pairs.items():
        known = {one.name: one.default for one in COMMANDS[command].params}
        own = {one.name: one.default for one in _options(ROOT / f"analyses/{script}.py")}
        both = own.keys() & known.keys()
        assert {"out"} < both
        assert {name: own[name] for name in both} == {name: known[name] for name in both}, script


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_help_is_of_the_style_of_the_commands(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not run(script, ["--help"], monkeypatch)
    told = capsys.readouterr().out
    assert f"Example: python analyses/{script.name} " in " ".join(told.split())
    assert "\nOptions:\n" in told, "and no boxes"
    assert "completion" not in told
    assert inspect.getdoc(runpy.run_path(str(script))["main"]).split("\n")[0][:40] in told  # type: ignore[union-attr]


def test_mistakes_end_as_those_of_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = ROOT / "analyses/pruning_candidates.py"
    out = ["--out", str(tmp_path / "out")]
    assert run(plans, [*MODEL], monkeypatch) == 2
    assert capsys.readouterr().err.endswith("Error: Missing option '--out'.\n")
    assert run(plans, [*MODEL, *out, "--heads", "1", "--share", "0.5"], monkeypatch) == 2
    assert "give one of them" in capsys.readouterr().err
    assert run(plans, [str(tmp_path / "nowhere"), *out], monkeypatch) == 1
    assert "nowhere" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_plan_is_of_heads_in_the_order_of_their_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, out = ROOT / "analyses/pruning_candidates.py", tmp_path / "out"
    assert not run(script, [*MODEL, "--heads", "3", "--out", str(out)], monkeypatch)
    plan, removal = hs.Plan.from_json((out / "plan.json").read_text("utf-8")), Removal.load(out)
    assert plan.heads == tuple(sorted(removal.first(3)))
    assert plan.facts["heads"] == 3
    assert "together they cost" in plan.reason


@pytest.mark.parametrize("script", RUN)
def test_a_script_runs_on_a_small_model(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = [*OPTIONS.get(script.stem, MODEL), "--out", str(out)]
    monkeypatch.chdir(tmp_path)
    assert not run(script, options, monkeypatch), capsys.readouterr().err
    assert capsys.readouterr().out
    assert sorted(out.rglob("*.png"))
    assert sorted(out.rglob("*.csv"))

    if script.stem in RESUMING:
        options[options.index("maps-4")] = "maps-2"
    assert run(script, options, monkeypatch) == 1
    assert capsys.readouterr().err.startswith("headscope: ")


def test_a_script_is_a_command(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "analyses/ablation_impact.py", *MODEL, "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
