"""Model types against the committed table, docs/families.csv: what was read, captured and cut exactly still is."""

import re

import pytest

from headscope.studies.families import MECHANISMS, QUICK, FamilyTable, Result, all_types, run_types, try_type, worse
from tests.pages import DOCS

TABLE = FamilyTable.read(DOCS / "families.csv")
BEFORE = {row.model_type: row for row in TABLE.rows}


def check(now: Result) -> None:
    """Nothing is wrong, and nothing worse than it was."""
    assert "wrong" not in (now.captured, now.cut), now.why
    assert "failed" not in (now.found, now.cut), now.why
    assert worse(now, BEFORE[now.model_type]) == []


@pytest.mark.parametrize("model_type", QUICK)
def test_a_model_type_is_read_and_cut_as_before(model_type: str) -> None:
    check(try_type(model_type))


@pytest.mark.families
@pytest.mark.parametrize("model_type", [name for name in all_types() if name not in QUICK])
def test_every_other_model_type_is_too(model_type: str) -> None:
    check(run_types([model_type]).rows[0])


def test_the_table_holds_every_model_type_once() -> None:
    assert [row.model_type for row in TABLE.rows] == list(all_types())


def test_every_no_has_its_reason() -> None:
    for row in TABLE.rows:
        for column, good in (("built", "yes"), ("forward", "yes"), ("found", "all"), ("captured", "exact")):
            assert getattr(row, column) in ("", good) or row.why.get(column), (row.model_type, column)
        assert row.cut in ("", "exact") or row.why.get("cut"), row.model_type


def test_the_quick_types_stand_for_something_and_are_known() -> None:
    assert len(QUICK) == len({*QUICK}), "a type stands for one mechanism"
    assert {*QUICK} <= {*all_types()}
    assert all(MECHANISMS.values())


@pytest.mark.parametrize("page", ["README.md", "README.ja.md"])
def test_the_readme_says_how_many_there_are(page: str) -> None:
    (line,) = [one for one in (DOCS.parent / page).read_text("utf-8").splitlines() if "docs/families.md" in one]
    told = [int(number) for number in re.findall(r"(?<![\d.-])\d{3}(?![\d.-])", line)]
    counts = TABLE.counts()
    assert told == [
        counts[name] for name in ("types", "built", "run", "attention found", "captured exact", "cut exact")
    ]
    year, month, day = map(int, TABLE.facts["date"].split("-"))
    assert (f"{day} November {year}" if page == "README.md" else f"{year}年{month}月{day}日") in line
    assert TABLE.facts["versions"]["transformers"] in line
