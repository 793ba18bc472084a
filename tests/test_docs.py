"""The documentation: the site builds without a warning, the tutorial runs, links and commands exist."""

import doctest
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

import headscope.measures
from headscope.cli import app
from headscope.measures import MEASURES
from headscope.reference import example
from headscope.scores import SCORES
from tests.contract.plugins import add_file

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_the_tutorial_runs() -> None:
    done = doctest.testfile(
        str(ROOT / "docs/tutorial.md"),
        module_relative=False,
        optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS,
    )
    assert done.attempted > 25
    assert done.failed == 0


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of docs/, so that nothing is written into the checkout."""
    folder = tmp_path_factory.mktemp("site") / "docs"
    return Path(shutil.copytree(ROOT / "docs", folder, ignore=shutil.ignore_patterns("_build", "_generated")))


def build(sources: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", sources, out]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=sources, env=environment, check=False)


def test_the_site_builds_without_a_warning(sources: Path, tmp_path: Path) -> None:
    done = build(sources, tmp_path)
    assert done.returncode == 0, done.stderr
    for page, registry in (("measures", MEASURES), ("scores", SCORES)):
        html = (tmp_path / f"{page}.html").read_text("utf-8")
        for name, entry in registry.items():
            assert f'id="{name.replace("_", "-")}"' in html
            assert entry.card.source.split(",")[0].split("'")[0] in html
    reference = (tmp_path / "reference.html").read_text("utf-8")
    assert [name for name in headscope.__all__ if f'id="headscope.{name}"' not in reference] == []
    assert not (tmp_path / "changes").exists()


def test_a_broken_link_and_a_measure_without_a_card_fail_the_build(sources: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(sources, tmp_path / "docs"))
    (broken / "studies.md").write_text("# Studies\n\n[nowhere](nowhere.md)\n", encoding="utf-8")
    done = build(broken, tmp_path / "out")
    assert done.returncode != 0
    assert "nowhere" in done.stderr
    sections = runpy.run_path(str(sources / "conf.py"))["sections"]
    with pytest.raises(TypeError, match=r"the measure 'bare' has no card"):
        sections("measure", {"bare": type("Bare", (), {})})


def test_the_measure_shown_is_one_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (shown,) = re.findall(r"^```python\n(.*?)^```", read("docs/extend.md"), flags=re.MULTILINE | re.DOTALL)
    add_file(monkeypatch, tmp_path, headscope.measures, MEASURES, shown)
    model, batches = example()
    pairs = headscope.similarity(model, batches, measure="same_places")
    with torch.no_grad(), headscope.capture(model, example=batches[0]) as seen:
        outputs = []
        for batch in batches:
            model(**{name: tensor for name, tensor in batch.items() if name != "document"})
            outputs.append(seen[1].z.double().transpose(0, 1).flatten(1, 2))
    z = torch.cat(outputs, dim=1)
    squares = (z - z.mean(1, keepdim=True)).square().sum(-1).numpy()
    sizes = np.linalg.norm(squares, axis=1)
    np.testing.assert_allclose(pairs.matrix[4:, 4:], squares @ squares.T / np.outer(sizes, sizes), rtol=1e-6)
    assert pairs.to_frame()["low"].notna().all()


def read(page: str | Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def links(text: str) -> set[str]:
    """Relative targets of links and pictures, without their anchors."""
    prose = re.sub(r"^```.*?^```|`[^`]+`", "", text, flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose)
    return {target for target in found if "://" not in target}


def commands(text: str) -> list[tuple[str, set[str]]]:
    """(command, its options) of everything in code that begins with headscope."""
    blocks = re.findall(r"^```(?:sh|console)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    found = []
    for line in lines:
        for part in line.split("#")[0].split("&&"):
            words = part.split()
            if len(words) > 1 and words[0] == "headscope":
                found.append((words[1], {word.split("=")[0] for word in words[2:] if word.startswith("-")}))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    missing = [target for target in links(read(page)) if not (page.parent / target).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_shown_exist_with_their_options(page: Path) -> None:
    for name, shown in commands(read(page)):
        assert name in COMMANDS, f"{page.name}: there is no headscope {name}"
        known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
        assert shown <= known, f"{page.name}: headscope {name} has no {shown - known}"


def test_the_readers_of_links_and_commands_see_them() -> None:
    assert links("[a](b.md#c) ![d](e.svg) [f](https://g.org)`x[h](i)`\n```sh\n[h](i)\n```\n") == {"b.md", "e.svg"}
    text = "`headscope a --b\nc`, headscope finds\n```sh\npip install . && headscope d --e=f -g  # --h\n```\n"
    assert commands(text) == [("d", {"--e", "-g"}), ("a", {"--b"})]
    assert {"analyze", "similarity", "plan", "prune"} <= {name for name, _ in commands(read("README.md"))}
