"""The support matrix as a command: what it prints and writes, and how it ends."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from headscope.studies import families
from headscope.studies.families import FamilyTable, Result
from tests.cli.conftest import Run


def test_named_types_are_tried_and_counted(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "families.csv"
    code, said, err = run("families", "bert", "fnet", "--out", out)
    assert (code, err) == (0, "")
    assert "what headscope does with tiny random models" in said
    assert "fnet, found: no attention was found in FNetModel" in said
    assert "types: 2; built: 2; run: 2; dispatch: 1" in said
    table = FamilyTable.read(out)
    assert [row.model_type for row in table.rows] == ["bert", "fnet"]
    assert {"headscope", "torch", "transformers"} <= {*table.facts["versions"]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["families.csv", "families.json"]


def test_a_table_that_is_there_is_kept(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "families.csv"
    out.write_text("mine", encoding="utf-8")
    code, _, err = run("families", "bert", "--out", out)
    assert (code, out.read_text("utf-8")) == (1, "mine")
    assert "families.csv exists and was kept" in err
    assert "--force" in err
    monkeypatch.setattr(families, "run_types", lambda *_, **__: FamilyTable((GOOD,), {"date": "2026-01-01"}))
    assert run("families", "bert", "--out", out, "--force")[0] == 0
    assert FamilyTable.read(out).rows == (GOOD,)


GOOD = Result(model_type="bert", built="yes", forward="yes", sites=2, found="all", captured="exact", cut="exact")


@pytest.mark.parametrize(
    ("row", "code"), [(GOOD, 0), (replace(GOOD, cut="refused"), 0), (replace(GOOD, cut="wrong"), 1)]
)
def test_what_is_wrong_is_an_exit_code(run: Run, monkeypatch: pytest.MonkeyPatch, row: Result, code: int) -> None:
    monkeypatch.setattr(families, "run_types", lambda *_, **__: FamilyTable((row,), {"date": "2026-01-01"}))
    ended, said, err = run("families", "bert", "--json")
    assert ended == code
    assert json.loads(said)["types"][0]["model_type"] == "bert"
    assert ("right: bert" in err) == bool(code)


@pytest.mark.parametrize(
    ("options", "message"),
    [(("lama",), "did you mean 'llama'"), (("bert", "--all"), "one of them"), (("--quick", "--all"), "one of them")],
)
def test_what_cannot_be_tried_is_refused(run: Run, options: tuple[str, ...], message: str) -> None:
    code, said, err = run("families", *options)
    assert (code, said) == (1, "")
    assert message in " ".join(err.split())


def test_all_types_or_the_quick_ones(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def note(types: tuple[str, ...], *, exported: tuple[str, ...], **_: object) -> FamilyTable:
        asked.append((len(types), len(exported)))
        return FamilyTable((GOOD,), {})

    monkeypatch.setattr(families, "run_types", note)
    assert [run("families", *options)[0] for options in ((), ("--quick",), ("--all",))] == [0, 0, 0]
    quick = len(families.QUICK)
    assert asked == [(quick, quick), (quick, quick), (len(families.all_types()), 0)]
