"""The page: whole, self-contained, accessible, and safe from what it reports on."""

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

from headscope.errors import StorageError
from headscope.reporting import SECTIONS, Column, Figure, Heading, Section, Table, Text, render
from tests.unit.reporting.synthetic import SyntheticAnalysis, analysis

VOID = {"meta", "img", "source", "br"}


class Page(HTMLParser):
    """A page as its elements; every start tag must have its end tag, in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def run() -> SyntheticAnalysis:
    return analysis(3, 4, metric="loss", unit="nats/token", negative=True)


@pytest.fixture(scope="module")
def folder(run: SyntheticAnalysis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(run, tmp_path_factory.mktemp("report") / "out").parent


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(folder / "index.html")


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch):
    """Let the report consist of one section that holds given blocks: no figure, so that it is quick."""

    def leave(*blocks: object) -> None:
        class Only(Section):
            title: ClassVar[str] = "Only"
            order: ClassVar[int] = 1

            def blocks(self, analysis: object) -> Iterator[object]:
                for block in blocks:
                    if isinstance(block, Exception):
                        raise block
                    yield block

        len(SECTIONS)
        monkeypatch.setattr(SECTIONS, "_entries", {"only": Only})

    return leave


def test_the_sections_stand_in_order_under_headings(page: Page) -> None:
    assert [section["id"] for section in page.all("section")] == [
        "verdict",
        "importance",
        "similarity",
        "claims",
        "facts",
    ]
    assert len(page.all("h1")) == 1
    assert len(page.all("h2")) == 5
    menu = [link["href"] for link in page.all("a")[1:6]]
    assert menu == ["#verdict", "#importance", "#similarity", "#claims", "#facts"]


def test_the_sentence_and_what_it_was_measured_on_are_there(page: Page, run: SyntheticAnalysis) -> None:
    assert run.verdict.sentence in page.text
    assert "213 documents" in page.text
    assert run.verdict.lines.why in page.text
    for word in ("redundant", "redundant, chosen", "needed", "backed up", "idle"):
        assert word in page.text


def test_the_page_fetches_nothing(page: Page) -> None:
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "link", "iframe", "object", "embed", "base"})
    for _, attributes in page.elements:
        for key in ("src", "srcset"):
            assert attributes.get(key, "data:").startswith("data:")
        assert not [key for key in attributes if key.startswith("on")]


def test_every_link_leads_somewhere(page: Page, folder: Path) -> None:
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert set(ids.values()) == {1}
    for link in page.all("a"):
        target = link["href"]
        assert target[1:] in ids if target.startswith("#") else (folder / target).is_file()
    labels = [attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes]
    assert labels
    assert set(labels) <= set(ids)


def test_every_figure_is_described_and_lies_beside_the_page(page: Page, folder: Path) -> None:
    images = page.all("img")
    assert len(images) == len(page.all("figcaption")) == len(list((folder / "figures").glob("*.png"))) == 5
    assert all(len(image["alt"]) > 30 for image in images)
    assert len(page.all("source")) == 3 * len(images), "narrow and wide, light and dark"


def test_tables_can_be_scrolled_by_keyboard_and_name_their_rows(page: Page) -> None:
    scrolled = [attributes for tag, attributes in page.elements if attributes.get("class") == "scroll"]
    assert len(scrolled) == len(page.all("table"))
    assert all(attributes["tabindex"] == "0" for attributes in scrolled)
    assert {cell["scope"] for cell in page.all("th")} == {"row", "col"}


def test_the_files_hold_every_row_unrounded(folder: Path, run: SyntheticAnalysis) -> None:
    names = sorted(path.stem for path in (folder / "tables").glob("*.csv"))
    assert names == ["candidates", "claims", "facts", "measured", "quadrants", "removal", "similar_pairs"]
    candidates = pd.read_csv(folder / "tables/candidates.csv")
    plain = run.candidates.astype({"head": str, "stand_in": str})
    pd.testing.assert_frame_equal(candidates, plain, rtol=1e-14, check_dtype=False)
    pairs = pd.read_csv(folder / "tables/similar_pairs.csv")
    assert len(pairs) == 12 * 11 / 2
    want = [run.pairs["cka"][row.head_a, row.head_b] for row in pairs.itertuples()]
    np.testing.assert_allclose(pairs["cka"], want, rtol=1e-14)
    assert pairs["cka"].is_monotonic_decreasing


def test_phones_and_dark_screens_and_paper_are_thought_of(folder: Path) -> None:
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    for query in ("(max-width: 700px)", "prefers-color-scheme: dark", "@media print"):
        assert query in text


def test_html_in_names_and_texts_stays_text(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script><b>\"'&"
    run = analysis(
        2, 2, model=bad, text=bad, metric="<i>m</i>", unit="<i>u</i>", date=bad, text_unit=bad, model_class=bad,
        versions={"headscope": bad}, **{bad: bad},
    )  # fmt: skip
    run.candidates["reason"] = bad
    run.candidates["stand_in"] = bad
    page = Page(render(run, tmp_path / "out"))
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "b", "i"})
    assert page.text.count(bad) >= 6
    assert bad in page.all("meta")[-1]["content"], "attributes are escaped as well"


def test_blocks_of_every_kind_are_text_too(only, run: SyntheticAnalysis, tmp_path: Path) -> None:
    bad = "<script>"
    frame = pd.DataFrame({"a": [bad, "x"]})
    table = Table(
        "t", bad, frame, (Column(bad, lambda row: row.a, strong=True), Column("n", lambda row: row.a)), 1, bad
    )
    only(Heading(bad), Text(bad), Text(bad, role="lead"), table)
    page = Page(render(run, tmp_path / "out"))
    assert "script" not in {tag for tag, _ in page.elements}
    assert page.text.count(bad) == 8
    assert "The first 1 of 2 rows" in page.text


def test_without_a_head_to_cut_the_cheapest_is_drawn(run: SyntheticAnalysis, tmp_path: Path) -> None:
    verdict = replace(run.verdict, chosen=(), joint=0.0, joint_low=0.0, joint_high=0.0, random=(), most_needed=None)
    none = replace(run, verdict=verdict, removal=replace(run.removal, budget=-1.0))
    page = Page(render(none, tmp_path / "out"))
    assert f"Removing {verdict.cheapest.head}, the cheapest" in page.text
    assert "random sets" not in page.text
    assert "nan" not in page.text.lower()


def test_a_single_head_to_cut_is_named(run: SyntheticAnalysis) -> None:
    costs = run.removal.costs.assign(chosen_high=run.removal.costs["heads"].astype(float))
    removal = replace(run.removal, costs=costs, budget=1.0)
    assert len(removal.chosen) == 1
    single = replace(run, removal=removal, verdict=replace(run.verdict, chosen=removal.chosen))
    blocks = {block.name: block for block in SECTIONS["verdict"]().blocks(single) if isinstance(block, Figure)}
    assert f"Removing {run.removal.order[0]}, the cheapest" in blocks["removal"].caption
    assert "1 heads" not in blocks["removal"].caption + blocks["removal"].alt + blocks["verdict"].caption


def test_of_many_costs_the_telling_rows_are_shown_and_all_are_folded(tmp_path: Path) -> None:
    run = analysis(2, 9)  # every number of heads is measured
    n = len(run.verdict.chosen)
    assert 2 < n < 17
    (table,) = (b for b in SECTIONS["verdict"]().blocks(run) if isinstance(b, Table) and b.name == "removal")
    cells = [row[0] for row in table.cells(table.frame)]
    assert table.telling is not None
    shown = [cells[place] for place in table.telling]
    assert {"1", str(n - 1), f"{n}, chosen", str(n + 1), "18"} <= set(shown)
    assert len(shown) <= 10
    assert shown == sorted(shown, key=lambda cell: int(cell.split(",")[0]))
    text = render(run, tmp_path / "out").read_text("utf-8")
    before, _, folded = text.partition("<details><summary>All 18 rows</summary>")
    assert folded
    rows = [
        part.partition("</table>")[0].count("<tr>") - 1 for part in (before.rpartition('id="table-removal"')[2], folded)
    ]
    assert rows == [len(shown), 18]
    few = analysis(2, 4)
    assert "<details" not in render(few, tmp_path / "few").read_text("utf-8")


def test_a_column_that_names_rows_has_its_heading_above_it(folder: Path) -> None:
    text = (folder / "index.html").read_text("utf-8")
    assert '<th scope="col">Heads removed</th>' in text
    assert '<th scope="col" class="number">Costs, nats/token</th>' in text


def test_where_nearly_all_heads_are_chosen_those_that_stay_are_marked() -> None:
    run = analysis(4, 8)
    order = run.removal.order
    for chosen, words in (
        (order[:30], "the 2 heads that stay; all others are chosen for removal."),
        (order, "Every head is chosen for removal."),
    ):
        most = replace(run, verdict=replace(run.verdict, chosen=tuple(sorted(chosen))))
        captions = [
            block.caption
            for section in ("verdict", "importance")
            for block in SECTIONS[section]().blocks(most)
            if isinstance(block, Figure) and block.name in ("verdict", "importance")
        ]
        assert len(captions) == 2
        assert all(words in caption for caption in captions)


def test_what_cannot_be_told_stands_before_the_finding(tmp_path: Path) -> None:
    page = Page(render(analysis(too_little=("Too little text to tell.",)), tmp_path / "out"))
    assert page.text.index("Too little text to tell.") < page.text.index("attention heads of")


def test_the_budget_is_told_as_a_number_beside_the_share_that_was_asked_for(tmp_path: Path) -> None:
    page = Page(render(analysis(max_loss_rise="1%"), tmp_path / "share"))
    assert "the chosen heads may cost 0.0300 together, asked for as 1%" in page.text
    page = Page(render(analysis(max_loss_rise=0.03), tmp_path / "number"))
    assert "the chosen heads may cost 0.0300 together" in page.text
    assert "together, asked for as" not in page.text


def test_without_statistics_the_page_is_made_of_effects(run: SyntheticAnalysis, tmp_path: Path) -> None:
    alone = replace(
        run, scores={"ablation": run.scores["ablation"]}, pairs={},
        candidates=run.candidates.assign(replaceability=float("nan"), quadrant="", stand_in=""),
        facts={**run.facts, "left_out": "norm, similarity: rows are sorted"},
    )  # fmt: skip
    page = Page(render(alone, tmp_path / "out"))
    assert "The four quadrants" not in page.text
    assert "rows are sorted" in page.text
    assert "Removed together" in page.text
    assert "nan" not in page.text.lower()


def test_a_section_without_anything_to_say_is_left_out(only, run: SyntheticAnalysis, tmp_path: Path) -> None:
    only()
    page = Page(render(run, tmp_path / "out"))
    assert not page.all("section")


def test_a_folder_with_content_is_kept(run: SyntheticAnalysis, only, tmp_path: Path) -> None:
    only(Text("new"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(StorageError, match="force"):
        render(run, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]
    assert render(run, tmp_path / "out", force=True) == tmp_path / "out/index.html"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["figures", "index.html", "tables"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_section_that_fails_leaves_nothing_behind(run: SyntheticAnalysis, only, tmp_path: Path) -> None:
    only(Text("new"), ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        render(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_same_analysis_makes_the_same_page(run: SyntheticAnalysis, folder: Path, tmp_path: Path) -> None:
    again = render(run, tmp_path / "again")
    assert again.read_bytes() == (folder / "index.html").read_bytes()


def test_the_page_stands_alone(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "index.html", tmp_path / "alone.html")
    assert len(Page(tmp_path / "alone.html").all("img")) == 5
