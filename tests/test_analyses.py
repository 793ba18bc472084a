"""The scripts in analyses/ stay thin: options, calls to headscope, one table, one figure."""

import ast
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
MODEL = ("--model", "headscope.models.reference:example")
OPTIONS = {
    "benchmark": (*MODEL, "--quick", "--rounds", "1"),
    "cost_scaling": ("--quick", "--rounds", "2"),
    "head_count_sweep": ("--quick", "--task", "maps-4"),
    "interval_coverage": ("--quick", "--repetitions", "5"),
}
RESUMING = {"head_count_sweep"}  # goes on in a folder of its own, and refuses that of other work
SCRIPTS = sorted((ROOT / "analyses").glob("*.py"))


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


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
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
