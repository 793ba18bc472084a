"""The contract of sections: typed results in, blocks out, whatever the results; a new section is one new file."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import headscope.reporting.sections
from headscope.reporting import SECTIONS, Figure, Heading, Section, Table, Text, render
from headscope.reporting.figures import styling
from headscope.reporting.pictures import NARROW, WIDE
from headscope.reporting.reportable import Reportable
from tests.unit.reporting.synthetic import SyntheticAnalysis, analysis

CASES: dict[str, Callable[[], SyntheticAnalysis]] = {
    "an encoder": lambda: analysis(3, 6),
    "a language model": lambda: analysis(7, 2, metric="loss", unit="nats/token", negative=True),
    "heads without numbers": lambda: analysis(3, 4, undefined=("L0H0", "L1H0", "L1H1", "L1H2", "L1H3")),
    "similarity within layers only": lambda: analysis(4, 6, cross_layer=False),
    "one head": lambda: analysis(1, 1),
    "one layer": lambda: analysis(1, 4, metric="loss", unit="nats/token"),
    "one head a layer": lambda: analysis(5, 1, cross_layer=False),
    "few facts": lambda: replace(analysis(2, 3), facts={}),
    "no similarity": lambda: replace(analysis(2, 3), pairs={}, facts={}),
    "effects alone": lambda: _effects_alone(analysis(2, 3)),
    "equal scores": lambda: _flat(analysis(2, 3)),
}


ONE = re.compile(r"(?<![\d.,])1 (heads|attention layers|layers|matrices|sets|documents|rows)\b|top 1 ")


def _effects_alone(run: SyntheticAnalysis) -> SyntheticAnalysis:
    """Heads that could be switched off and not be watched."""
    untold = run.candidates.assign(replaceability=np.nan, needed=np.nan, norm=np.nan, quadrant="", stand_in="")
    verdict = replace(run.verdict, most_replaceable=None, twins=None)
    ablation = {"ablation": run.scores["ablation"]}
    return replace(run, scores=ablation, pairs={}, candidates=untold, verdict=verdict)


def _flat(run: SyntheticAnalysis) -> SyntheticAnalysis:
    """Every head worth nothing at all."""
    for table in run.scores.values():
        table.score[:] = 0.0
    run.candidates[["importance", "low", "high", "replaceability"]] = 0.0
    return run


@pytest.fixture(scope="module", params=sorted(CASES))
def run(request: pytest.FixtureRequest) -> SyntheticAnalysis:
    return CASES[request.param]()


@pytest.fixture(params=sorted(SECTIONS))
def section(request: pytest.FixtureRequest) -> Section:
    return SECTIONS[request.param]()


def test_a_section_says_its_title_and_order() -> None:
    assert {"verdict", "importance", "similarity", "claims", "facts"} <= set(SECTIONS)
    for name, section in SECTIONS.items():
        assert section.title, name
        assert isinstance(section.order, int), name
        assert section.__doc__, name
    orders = [section.order for section in SECTIONS.values()]
    assert len(set(orders)) == len(orders), "two sections claim the same place"


def test_the_made_up_analysis_is_one_that_can_be_reported(run: SyntheticAnalysis) -> None:
    assert isinstance(run, Reportable)


def test_a_section_makes_blocks_of_the_known_kinds(section: Section, run: SyntheticAnalysis) -> None:
    blocks = list(section.blocks(run))
    assert all(isinstance(block, Heading | Text | Table | Figure) for block in blocks)
    for block in blocks:
        if isinstance(block, Heading | Text):
            assert block.text.strip()
        else:
            assert block.title.strip()
        if isinstance(block, Text | Figure):
            words = block.text if isinstance(block, Text) else f"{block.alt} {block.caption}"
            assert "nan" not in words.lower().split()
            assert words.rstrip().endswith(".")
        words = [block.text] if isinstance(block, Heading | Text) else [block.title, block.caption]
        words += [cell for row in block.cells(block.frame) for cell in row] if isinstance(block, Table) else []
        assert not [word for word in words if ONE.search(word)], "one of them is no plural"


def test_file_names_differ_over_all_sections(run: SyntheticAnalysis) -> None:
    blocks = [block for section in SECTIONS.values() for block in section().blocks(run)]
    for kind in (Table, Figure):
        names = [block.name for block in blocks if isinstance(block, kind)]
        assert len(set(names)) == len(names)
        assert all(name.isidentifier() for name in names), "the name becomes a file's name"


def test_every_cell_is_text(section: Section, run: SyntheticAnalysis) -> None:
    for table in (block for block in section.blocks(run) if isinstance(block, Table)):
        for row in table.frame.itertuples(index=False):
            cells = [column.text(row) for column in table.columns]
            assert all(isinstance(cell, str) and "nan" not in cell.lower().split() for cell in cells)
        assert sum(column.strong for column in table.columns) == 1, "one column names the row"


@pytest.mark.parametrize("narrow", [False, True])
def test_every_figure_is_drawn_at_the_width_that_it_is_given(
    section: Section, run: SyntheticAnalysis, narrow: bool
) -> None:
    for figure in (block for block in section.blocks(run) if isinstance(block, Figure)):
        assert 0 < figure.share <= 1
        width = NARROW if narrow else WIDE * figure.share
        drawing = figure.draw(width, narrow)
        assert drawing.get_figwidth() == pytest.approx(width)
        assert drawing.get_figheight() < 14
        with styling():
            drawing.draw_without_rendering()


def test_a_section_changes_nothing(section: Section, run: SyntheticAnalysis) -> None:
    frame = run.candidates.copy(deep=True)
    arrays = {name: table.score.copy() for name, table in run.scores.items()}
    matrices = {name: table.matrix.copy() for name, table in run.pairs.items()}
    for block in section.blocks(run):
        if isinstance(block, Figure):
            block.draw(NARROW, True)
    pd.testing.assert_frame_equal(run.candidates, frame)
    for name, array in arrays.items():
        np.testing.assert_array_equal(run.scores[name].score, array)
    for name, matrix in matrices.items():
        np.testing.assert_array_equal(run.pairs[name].matrix, matrix)


def test_a_new_section_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "greeting.py").write_text(
        "from headscope.reporting import SECTIONS, Section, Text\n\n\n"
        '@SECTIONS.register("greeting")\n'
        "class Greeting(Section):\n"
        '    title = "Greeting"\n'
        "    order = 5\n\n"
        "    def blocks(self, analysis):\n"
        '        yield Text(f"{len(analysis.candidates)} heads say hello.")\n',
        encoding="utf-8",
    )
    package = headscope.reporting.sections
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.setattr(SECTIONS, "_entries", dict(SECTIONS._entries))
    monkeypatch.setattr(SECTIONS, "_scanned", False)
    page = render(analysis(1, 3), tmp_path / "out").read_text(encoding="utf-8")
    assert "3 heads say hello." in page
    assert page.index('id="greeting"') < page.index('id="verdict"')
