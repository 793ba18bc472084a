"""The documentation: the site builds without a warning, its examples run, its links and commands lead somewhere."""

import doctest
import html
import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
import typer

import headscope
from headscope._support.cards import Card
from headscope._support.registry import Registry
from headscope.cli import app
from headscope.cli.application import spread
from headscope.likeness.measures import MEASURES, Measure
from headscope.models.demo import demo_model
from headscope.scoring.scores import SCORES
from headscope.studies.asking import ask_model
from headscope.studies.claim_pages import write_pages
from headscope.studies.claims import CLAIMS
from headscope.studies.headcount import Sweep
from headscope.studies.rulings import Rulings
from headscope.studies.subjects import Subject
from headscope.text.texts import read_documentation
from tests.pages import DOCS, ROOT, beside, blocks

PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
CLAIMED, ASKED = (
    DOCS / "claims",
    ("reference", "reference-32-wide", "reference-on-H100", "minilm", "gemma"),
)  # in the order of the pages' columns
SCRIPTS = sorted((ROOT / "analyses").glob("*.py"))
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
# the text whose numbers the tutorial shows; with another Python it runs all the same
SHOWN_TEXT = "d816f8d22e0cf35d139a6b91ddbf71926779433fc91cdc3a126e599d8445e57e"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of docs/, so that nothing is written into the checkout."""
    folder = tmp_path_factory.mktemp("sources") / "docs"
    return Path(shutil.copytree(DOCS, folder, ignore=shutil.ignore_patterns("_build", "__pycache__")))


def build(sources: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Build the site with warnings as errors."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", sources, out]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=sources, env=environment, check=False)


@pytest.fixture(scope="module")
def site(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site."""
    folder = tmp_path_factory.mktemp("site")
    done = build(sources, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_broken_link_fails_the_build(sources: Path, tmp_path: Path) -> None:
    broken = tmp_path / "docs"
    shutil.copytree(sources, broken, ignore=shutil.ignore_patterns("*.md"))
    (broken / "index.md").write_text("# A page\n\n[nowhere](nowhere.md)\n", encoding="utf-8")
    done = build(broken, tmp_path / "out")
    assert done.returncode != 0
    assert "nowhere" in done.stderr


def words(page: Path) -> str:
    """What a reader sees of a page, spaces and line breaks alike."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", page.read_text("utf-8"))).split())


def test_every_page_is_built_and_in_the_menu(site: Path) -> None:
    menu = (site / "index.html").read_text("utf-8")
    for page in PAGES[1:]:
        assert (site / f"{page.stem}.html").exists()
        assert page.stem == "index" or f'href="{page.stem}.html"' in menu


def test_the_pages_of_claims_follow_from_the_results_beside_them(tmp_path: Path) -> None:
    made = [Rulings.load(CLAIMED / name) for name in ASKED]
    write_pages(made, tmp_path, Sweep.load(CLAIMED / "sweep"), documents="..")
    pages = sorted(page.name for page in CLAIMED.glob("*.md"))
    assert pages == sorted(page.name for page in tmp_path.glob("*.md"))
    assert {f"{name}.md" for name in CLAIMS} < set(pages)
    for page in pages:
        assert (CLAIMED / page).read_text("utf-8") == (tmp_path / page).read_text("utf-8"), page
    drawn, there = ({figure.name for figure in (own / "figures").iterdir()} for own in (tmp_path, CLAIMED))
    assert drawn == there


def test_commands_on_a_page_of_a_claim_do_not_stand_in_each_others_way() -> None:
    for page in CLAIMED.glob("C*.md"):
        folders = re.findall(r"--out (\S+)", page.read_text("utf-8"))
        beside = {f"{folder}-sweep" for folder in folders}  # where a command without --sweep trains
        assert len({*folders} | beside) == 2 * len(folders), page


def test_the_reference_learns_at_the_rate_that_the_sweep_chose() -> None:
    rates = Sweep.load(CLAIMED / "sweep").rates.query(
        "task == 'language' and n_heads == 8 and head_dim == 8 and chosen"
    )
    assert f"at a learning rate of {rates['learning_rate'].item():g} " in (CLAIMED / "C9.md").read_text("utf-8")


def test_a_claim_measured_again_says_what_its_page_says() -> None:
    """In quick form, which for what the weights alone decide is the whole form."""
    loaded = headscope.load_model(demo_model("minilm"))
    batches = headscope.text_batches(loaded.tokenizer, windows=8)
    again, there = ask_model(Subject("minilm", loaded.model, batches, quick=True), ["C1", "C14"]), CLAIMED / "minilm"
    for ruling in again.rulings:
        shown = Rulings.load(there)[ruling.claim]
        assert (ruling.verdict, ruling.sentence) == (shown.verdict, shown.sentence)
        assert ruling.effect == pytest.approx(shown.effect, rel=1e-9)
        pd.testing.assert_frame_equal(ruling.table, shown.table, check_dtype=False)  # what the figure is drawn from
        assert ruling.sentence.en in (CLAIMED / f"{ruling.claim}.md").read_text("utf-8")
        assert ruling.sentence.ja in (CLAIMED / f"{ruling.claim}.ja.md").read_text("utf-8")


def test_every_claim_is_in_the_site(site: Path) -> None:
    menu = (site / "index.html").read_text("utf-8")
    for page in CLAIMED.glob("*.md"):
        assert (site / "claims" / f"{page.stem}.html").exists()
        assert f'href="claims/{page.stem}.html"' in menu


@pytest.mark.parametrize(("page", "registry"), [("measures", MEASURES), ("scores", SCORES)])
def test_every_measure_and_score_stands_there_with_its_whole_card(
    site: Path, page: str, registry: Registry[Measure]
) -> None:
    read, source = words(site / f"{page}.html"), (site / f"{page}.html").read_text("utf-8")
    for name, entry in registry.items():
        assert f'id="{name.replace("_", "-")}"' in source or f'id="{name}"' in source
        for field in fields(Card):
            fact = " ".join(getattr(entry.card, field.name).replace("`", "").split())
            assert fact in read, f"{name}: {field.name}"


def test_pages_can_be_read_where_nothing_is_built() -> None:
    """On a code host there are no directives: what only the site would show is not there."""
    for page in PAGES:
        text = page.read_text("utf-8")
        directives = re.findall(r"^(?:```|:::)\{(\w[\w-]*)\}", text, flags=re.MULTILINE)
        assert set(directives) <= {"toctree"}, f"{page.name}: {directives}"
        assert not re.search(r"^\([\w-]+\)=$", text, flags=re.MULTILINE), f"{page.name}: a label that shows"


def test_every_command_and_option_stands_there(site: Path) -> None:
    read = words(site / "commands.html")
    for name, command in COMMANDS.items():
        assert f"headscope {name}" in read
        for parameter in command.params:
            assert parameter.param_type_name == "argument" or parameter.opts[0] in read


def test_pictures_are_there_and_say_what_they_show(site: Path) -> None:
    for page in site.glob("*.html"):
        for tag in re.findall(r"<img[^>]*>", page.read_text("utf-8")):
            source, words_instead = re.search(r'src="([^"]+)"', tag), re.search(r'alt="([^"]+)"', tag)
            assert source is not None
            assert words_instead is not None, tag
            assert (site / source[1]).exists(), f"{page.name}: {source[1]}"


def test_drawings_are_as_their_script_draws_them() -> None:
    drawings = beside("drawings").DRAWINGS
    for name, draw in drawings.items():
        path = DOCS / f"{name}.svg"
        assert path.read_text("utf-8") == draw(), "run: python docs/drawings.py"
        root = ElementTree.parse(path).getroot()
        width, height = float(root.attrib["width"]), float(root.attrib["height"])
        assert width <= 500, "wider, it cannot be read on a phone"
        for text in root.iter("{http://www.w3.org/2000/svg}text"):
            assert 0 < float(text.attrib["x"]) < width
            assert 0 < float(text.attrib["y"]) < height
        assert "prefers-color-scheme: dark" in path.read_text("utf-8")


class Near(doctest.OutputChecker):
    """Words and counts as they are shown; numbers with a point within 5%, or 2 in the last place that is shown."""

    def __init__(self, numbers: bool) -> None:
        self.numbers = numbers

    def check_output(self, want: str, got: str, flags: int) -> bool:
        if not self.numbers:
            return True
        number = r"(?<![\w.])-?\d+\.\d+"
        if re.sub(number, "#", " ".join(want.split())) != re.sub(number, "#", " ".join(got.split())):
            return False
        pairs = zip(re.findall(number, want), re.findall(number, got), strict=True)
        return all(
            math.isclose(float(a), float(b), rel_tol=0.05, abs_tol=2.1 * 0.1 ** len(a.split(".")[1])) for a, b in pairs
        )


def run_examples(page: Path, numbers: bool, space: dict[str, object]) -> doctest.TestResults:
    """Run the >>> blocks of a page in order, as one session."""
    runner = doctest.DocTestRunner(checker=Near(numbers), verbose=False)
    for block in blocks(page, "python"):
        test = doctest.DocTestParser().get_doctest(block, space, page.name, str(page), 0)
        test.globs = space
        runner.run(test, clear_globs=False)
    return runner.summarize(verbose=False)


def test_the_tutorial_runs_and_shows_what_comes_out() -> None:
    space: dict[str, object] = {}
    done = run_examples(DOCS / "tutorial.md", read_documentation().sha256 == SHOWN_TEXT, space)
    assert done.attempted > 40
    assert done.failed == 0
    # whatever the text: the pruned model is smaller, and the tutorial got to its end
    assert space["smaller"] is not space["model"]
    assert "share" in space["change"].sentence  # type: ignore[attr-defined]


WORKED = [DOCS / "worked.md", DOCS / "worked.ja.md"]


@pytest.mark.parametrize("page", WORKED, ids=lambda page: page.name)
def test_the_worked_example_runs_and_shows_what_comes_out(page: Path) -> None:
    done = run_examples(page, True, {})
    assert done.attempted > 40
    assert done.failed == 0


def test_the_worked_example_is_the_same_in_both_languages() -> None:
    english, japanese = (blocks(page, "python") for page in WORKED)
    assert english == japanese
    shapes = [re.findall(r"^\|.*?\|(.*×.*)\|$", page.read_text("utf-8"), flags=re.MULTILINE) for page in WORKED]
    assert shapes[0] == shapes[1] != []


def japanese_quotes(page: Path) -> list[str]:
    """The lines of a page's quotes that are in Japanese, without the marks of a list."""
    found = re.findall(r"^> (?:- )?(.*[ぁ-ヿ].*)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return [line.strip() for line in found]


@pytest.mark.parametrize("page", WORKED, ids=lambda page: page.name)
def test_the_worked_example_quotes_every_sentence_from_the_overview_to_the_problems(page: Path) -> None:
    paper, quotes = japanese_quotes(DOCS / "paper.ja.md"), japanese_quotes(page)
    first, last = paper.index("マルチヘッドアテンションの概要"), paper.index("ヘッド間の冗長性:") + 2
    sentences = [sentence for line in paper[first:last] for sentence in re.findall(r"[^。]+。", line)]
    assert len(sentences) > 25
    missing = [sentence for sentence in sentences if not any(sentence in quote for quote in quotes)]
    assert missing == []
    assert [quote for quote in quotes if not any(quote in line for line in paper)] == []


@pytest.mark.parametrize(
    ("got", "fits"),
    [
        ("L0H1  0.93\n64", True),
        ("L0H1 0.95 64", True),
        ("L0H1 1.10 64", False),
        ("L0H2 0.93 64", False),
        ("L0H1 0.93 65", False),
        ("L0H1 0.93", False),
    ],
)
def test_the_reader_of_outputs_sees_what_differs(got: str, fits: bool) -> None:
    assert Near(numbers=True).check_output("L0H1 0.93 64\n", got, 0) is fits


def links(text: str) -> set[str]:
    """Relative targets of links and pictures, without their anchors; code holds none."""
    prose = re.sub(r"^```.*?^```|`[^`]+`", "", text, flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose)
    return {target for target in found if "://" not in target}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    missing = [target for target in links(page.read_text("utf-8")) if not (page.parent / target).exists()]
    assert missing == []


def command_lines(text: str) -> Iterator[list[str]]:
    """Every command in a code block or in backticks: its words, without what a comment says."""
    found = re.findall(r"^```sh\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    for line in [line for block in found for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", text):
        for command in line.split("#")[0].split("&&"):
            shown = command.split()
            if shown[:1] in (["headscope"], ["python"]) and len(shown) > 1:
                yield shown


def options_of(script: str) -> Mapping[str, str]:
    """What a script in analyses/ takes, as its own --help tells."""
    path = ROOT / script
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shell = typer.Typer()
    shell.command()(spread(module.main))
    return {option: "" for parameter in typer.main.get_command(shell).params for option in parameter.opts}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_shown_exist_with_their_options(page: Path) -> None:
    for program, name, *rest in command_lines(page.read_text("utf-8")):
        if program == "headscope" and not name.startswith("-"):
            assert name in COMMANDS, f"{page.name}: headscope {name}"
            known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
        elif name.startswith("analyses/"):
            known = set(options_of(name))
        else:
            continue
        unknown = {word for word in rest if word.startswith("--")} - known
        assert not unknown, f"{page.name}: {program} {name} has no {unknown}"


def test_the_readers_of_links_and_commands_see_them() -> None:
    linked = "[a](b.md#c) ![d](e.svg) [f](https://g.org) [k](#here) `x[h](i)`\n```sh\n[h](i)\n```\n"
    assert links(linked) == {"b.md", "e.svg"}
    text = (
        "go `headscope plan run --share 0.2`\n```sh\npip install . && headscope demo   # headscope no\n```\n`hs.plan()`"
    )
    assert list(command_lines(text)) == [["headscope", "demo"], ["headscope", "plan", "run", "--share", "0.2"]]


def test_every_study_is_told_of() -> None:
    lines = command_lines((DOCS / "studies.md").read_text("utf-8"))
    shown = [name for program, name, *_ in lines if program == "python"]
    assert sorted(shown) == [f"analyses/{script.name}" for script in SCRIPTS]
