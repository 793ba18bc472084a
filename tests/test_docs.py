"""The documentation: the site builds without a warning, the tutorial runs, links and commands exist."""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from headscope.cli import app
from headscope.measures import MEASURES
from headscope.scores import SCORES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_the_tutorial_runs() -> None:
    done = doctest.testfile(
        str(ROOT / "docs/tutorial.md"), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert done.attempted > 15
    assert done.failed == 0


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", ROOT / "docs", tmp_path]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    pages = {name: (tmp_path / "generated" / f"{name}.html").read_text("utf-8") for name in ("measures", "scores")}
    for registry, html in ((MEASURES, pages["measures"]), (SCORES, pages["scores"])):
        for name, entry in registry.items():
            assert name in html
            assert entry.card.source.split(",")[0].split("'")[0] in html
    assert "similarity" in (tmp_path / "reference.html").read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_shown_exist_with_their_options(page: Path) -> None:
    for line in re.findall(r"headscope ([a-z]+ [^\n`]*)", page.read_text(encoding="utf-8")):
        name, *rest = line.split("#")[0].split()
        if name in COMMANDS:
            known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
            shown = {word.strip(",.;)") for word in rest if word.startswith("--")}
            assert shown <= known, f"{page.name}: headscope {name} has no {shown - known}"


def test_the_reader_of_commands_sees_them() -> None:
    assert {"similarity", "importance", "compare", "analyze", "plan", "prune"} <= set(COMMANDS)
    assert "--measure" in {option for parameter in COMMANDS["similarity"].params for option in parameter.opts}
