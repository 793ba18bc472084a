"""What pages hold that is made from the code: it is whole, and it is what the code says now."""

import inspect
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

import headscope
import headscope.likeness.measures
import headscope.scoring.scores
from headscope._support.registry import Registry
from headscope.likeness.measures import MEASURES, Measure
from headscope.scoring.scores import SCORES
from headscope.studies.families import Cut, FamilyTable, Result
from tests.contract import test_measures, test_scores
from tests.contract.plugins import add_file
from tests.pages import DOCS, beside

PIECES = beside("pages").PIECES


@pytest.mark.parametrize(
    ("package", "registry", "source"),
    [(headscope.likeness.measures, MEASURES, test_measures.NEW), (headscope.scoring.scores, SCORES, test_scores.NEW)],
    ids=["measure", "score"],
)
def test_without_a_card_there_is_no_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: ModuleType, registry: Registry[Measure], source: str
) -> None:
    pages = beside("pages")
    assert pages.cards(registry)
    without = "\n".join(line for line in source.splitlines() if not line.strip().startswith("card ="))
    add_file(monkeypatch, tmp_path, package, registry, without)
    with pytest.raises(ValueError, match="has no whole card"):
        pages.cards(registry)


def test_defaults_of_options_are_shown_zero_too_and_nothing_where_there_is_none() -> None:
    shown = PIECES["commands"]()
    assert re.search(r"^\| `--seed` \| .* \| `0` \|$", shown, flags=re.MULTILINE)
    assert re.search(r"^\| `--null` \| .* \|  \|$", shown, flags=re.MULTILINE)


def test_coverage_is_shown_as_it_was_found(tmp_path: Path) -> None:
    pages = beside("pages")
    row = {"documents": 10, "tokens_per_dimension": 20, "intervals": 100, "error": 0.01}
    found = [("cka", "equal", 0.951), ("cka", "unequal", 0.822), ("norm", "equal", 0.9)]
    frame = pd.DataFrame([row | {"name": n, "lengths": kind, "coverage": share} for n, kind, share in found])
    frame.to_csv(tmp_path / "coverage.csv", index=False)
    shown = pages.coverage(tmp_path / "coverage.csv")
    assert "| 20 | 10 | 95.1 · **82.2** | 90.0 · – |" in shown
    assert "2 of 3 lie within" in shown
    assert "No result is committed" in pages.coverage(tmp_path / "absent.csv")


def test_model_types_are_told_by_what_comes_out_of_them(tmp_path: Path) -> None:
    bert = Result(model_type="bert", built="yes", forward="yes", sites=2, routes={"registry": 2}, kinds=("self",))
    bert = replace(
        bert, found="all", captured="exact", cut="exact", cuts=(Cut("head", "A in b (self)", "exact", "whole"),)
    )
    t5 = replace(bert, model_type="t5", cut="refused", cuts=(Cut("head", "B in c (self)", "refused"),))
    t5 = replace(t5, why={"cut": "something that differs from head to head is added to its scores, as a bias is"})
    large = Result(model_type="large_one", why={"built": "too large: 400 million parameters"})
    path = tmp_path / "families.csv"
    FamilyTable((bert, t5, large), {"versions": {"headscope": "9.9"}, "date": "2026-01-31"}).write(path)
    shown = PIECES["families"].__globals__["families"](path)
    assert "Of 3 model types **2** are built, **2** of these run" in shown
    assert "Run on 2026-01-31 with headscope 9.9." in shown
    assert "| BERT (`bert`) | self | all | exact | single heads |" in shown
    assert "- something that differs from head to head is added to its scores (1): `t5`" in shown
    assert "- too large at the smallest setting (1): `large_one`" in shown
    whole = shown[shown.index("## Every model type") :]
    assert [whole.count(f"`{name}`") for name in ("bert", "t5", "large_one")] == [1, 1, 1]
    assert "No result is committed" in PIECES["families"].__globals__["families"](tmp_path / "absent.csv")


def test_every_public_name_is_in_the_reference_with_all_that_it_takes() -> None:
    sections = re.split(r"^### ", (DOCS / "reference.md").read_text("utf-8"), flags=re.MULTILINE)
    told = {section.split("\n", 1)[0]: section for section in sections}
    for name in headscope.__all__:
        thing = getattr(headscope, name)
        assert name in told
        if inspect.isfunction(thing):
            missing = [
                parameter
                for parameter in inspect.signature(thing).parameters
                if f"- `{parameter}`"
                not in re.sub(
                    r"- (`\w+`(?:, `\w+`)*): ",
                    lambda found: "".join(f"- {one} " for one in found[1].split(", ")),
                    told[name],
                )
            ]
            assert not missing, f"{name}: {missing}"


@pytest.mark.parametrize("name", PIECES)
def test_a_page_holds_what_the_code_says_now(name: str) -> None:
    page = (DOCS / f"{name}.md").read_text("utf-8")
    assert page == beside("pages").filled(page, PIECES[name]()), "run: python docs/pages.py"


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no line"):
        beside("pages").filled("# A page\n", "a piece")


def test_docstrings_become_lists_and_examples() -> None:
    read = beside("docstrings")

    def told(a: int, b: float = 0.5, *, c: str = "x") -> int:
        """Add.

        In two lines
        of text.

        Args:
            a, b: two numbers,
                told together.
            c: a word.

        Returns:
            (n,) a number.

        Raises:
            ValueError: never.

        >>> 1 + 1
        2
        """
        return a

    shown = read.described("told", told)
    assert shown.startswith("```python\ntold(a: int, b: float = 0.5, *, c: str = 'x') -> int\n```")
    for part in (
        "In two lines of text.",
        "**Arguments**\n\n- `a`, `b`: two numbers, told together.\n- `c`: a word.",
        "**Returns**\n\n(n,) a number.",
        "- `ValueError`: never.",
        "```python\n>>> 1 + 1\n2\n```",
    ):
        assert part in shown
