"""RoleTable: verdicts, scores and examples, and files that give them back."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from headscope.errors import StorageError, UnknownNameError
from headscope.head_roles.tables import ROLES, RoleExample, RoleTable, Spelled
from headscope.heads import HeadId

HEADS = (HeadId(0, 0), HeadId(0, 3), HeadId(2, 1))


def numbers(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    drawn = {role: rng.random(3) / 3 for role in ROLES}
    drawn["next"][:] = np.nan
    return drawn


@pytest.fixture
def table() -> RoleTable:
    key = Spelled(4, ("吾", "輩"), "は", (' "quoted"', ", comma"), 1 / 3)
    example = RoleExample("previous", Spelled(5, (" the", " ", "cat"), " sat", ("↵",)), (key,))
    broad = RoleExample("broad", Spelled(1, (), "a", ()), (key, Spelled(0, (), " b", (), 0.25)))
    facts = {"documents": 3, "tokens": 40, "rule": {"sink": 0.9}}
    return RoleTable(
        HEADS,
        ("previous", "mixed", "broad"),
        numbers(0),
        numbers(1),
        numbers(2),
        numbers(3),
        (example, None, broad),
        facts,
    )


def test_a_head_has_its_verdict(table: RoleTable) -> None:
    assert (table["L0H0"], table[(0, 3)], table[HeadId(2, 1)]) == ("previous", "mixed", "broad")
    with pytest.raises(UnknownNameError, match="L0H1"):
        table["L0H1"]


def test_the_score_is_that_of_the_verdict(table: RoleTable) -> None:
    want = [table.scores["previous"][0], np.nan, table.scores["broad"][2]]
    np.testing.assert_array_equal(table.score, want)
    frame = table.to_frame()
    np.testing.assert_array_equal(frame["score"], want)
    np.testing.assert_array_equal(frame["low"], [table.low["previous"][0], np.nan, table.low["broad"][2]])
    np.testing.assert_array_equal(frame["high"], [table.high["previous"][0], np.nan, table.high["broad"][2]])


def test_a_row_has_everything(table: RoleTable) -> None:
    frame = table.to_frame()
    own = [f"{role}{ending}" for role in ROLES for ending in ("", "_low", "_high", "_chance")]
    start = ["layer", "head", "role", "score", "low", "high", "example"]
    assert list(frame) == [*start, *own, "n_documents", "n_tokens"]
    assert frame["n_documents"].tolist() == [3, 3, 3]
    np.testing.assert_array_equal(frame["sink_chance"], table.chance["sink"])


def test_examples_read_as_text(table: RoleTable) -> None:
    first, none, broad = table.to_frame()["example"]
    assert first == 'the cat ‹sat›↵ → 輩‹は› "quoted" 0.33'
    assert none == ""
    assert broad == "‹a› → ‹は› 0.33, ‹b› 0.25"


def test_pieces_of_characters_are_no_neighbours() -> None:
    spelled = Spelled(6, ("か", "猫", "", "", "が", ""), "座", ("る", "", "猫"))
    assert spelled.quote(2, 2) == "猫が‹座›る猫"
    assert spelled.quote(0, 0) == "‹座›"


def test_everything_comes_back(table: RoleTable, tmp_path: Path) -> None:
    table.save(tmp_path)
    again = RoleTable.load(tmp_path)
    assert (again.heads, again.role, again.facts) == (table.heads, table.role, table.facts)
    assert [str(example) for example in again.examples] == [str(example) for example in table.examples]
    assert again.examples[0].keys == table.examples[0].keys
    assert again.examples[0].query.before == table.examples[0].query.before
    for kind in ("scores", "low", "high", "chance"):
        for role in ROLES:
            np.testing.assert_array_equal(getattr(again, kind)[role], getattr(table, kind)[role])
    pd.testing.assert_frame_equal(again.to_frame(), table.to_frame())
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "roles.parquet"), table.to_frame())
    json.loads((tmp_path / "roles.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)


def test_a_table_that_is_not_there_or_spoilt_is_refused(table: RoleTable, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="roles"):
        RoleTable.load(tmp_path)
    table.save(tmp_path)
    path = tmp_path / "roles.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("role,", "part,", 1), encoding="utf-8")
    with pytest.raises(StorageError, match="roles"):
        RoleTable.load(tmp_path)


def test_a_notebook_sees_verdicts_and_examples(table: RoleTable) -> None:
    html = table._repr_html_()
    assert "previous" in html
    assert "‹sat›" in html
    assert "_chance" not in html
