"""The table: rows round trip, what got worse is named, each row comes to one thing, many are run one by one."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from headscope.anatomy.examples import make_example
from headscope.errors import InputError, InterruptedWorkError, StorageError
from headscope.studies.families import Cut, FamilyTable, Limits, Result, run_types, worse
from headscope.studies.families.outcomes import OUTCOMES, grouped_reasons, heading, outcome

GOOD = Result(
    model_type="some", class_name="Some", built="yes", forward="yes", sites=2, routes={"registry": 2},
    kinds=("self", "cross"), found="all", captured="exact", cut="exact",
    cuts=(
        Cut("head", "SomeAttention in encoder (self)", "exact", "whole"),
        Cut("group", "Other in h (causal)", "exact", "padded"),
    ),
    saved="yes", trained="yes", copied="yes", seconds=1.5,
)  # fmt: skip
BAD = Result(
    model_type="other", class_name="Other", built="yes", forward="yes", sites=1, routes={"handwritten": 1},
    kinds=("causal",), found="some", captured="in part", cut="refused",
    cuts=(Cut("head", "A in h (causal)", "refused"),),
    why={"cut": "its heads: are mixed", "found": "a: b; c", "captured": "no contribution: mixed"},
)  # fmt: skip
NONE = Result(model_type="none", why={"built": "too large: 400 million"})


def test_rows_come_back_from_files(tmp_path: Path) -> None:
    table = FamilyTable((GOOD, BAD, NONE), {"date": "2026-01-01"})
    table.write(tmp_path / "deep" / "families.csv")
    assert FamilyTable.read(tmp_path / "deep" / "families.csv") == table
    assert [Result.from_json(row.to_json()) for row in table.rows] == [*table.rows]
    assert table["other"] is BAD


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no table of model types"):
        FamilyTable.read(tmp_path / "absent.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(StorageError, match="no table of model types"):
        FamilyTable.read(tmp_path / "other.csv")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"built": "no"}, "built: yes before, no now"),
        ({"found": "some"}, "found: all before, some now"),
        ({"captured": "wrong"}, "captured: exact before, wrong now"),
        ({"cut": "in part"}, "cut: exact before, in part now"),
        ({"sites": 1}, "sites: 2 before, 1 now"),
        ({"cuts": GOOD.cuts[:1]}, "group of Other in h (causal): exact, padded before; not tried now"),
    ],
)
def test_what_got_worse_is_named(changed: dict[str, Any], told: str) -> None:
    assert any(line.startswith(told) for line in worse(replace(GOOD, **changed), GOOD))
    assert worse(GOOD, replace(GOOD, **changed)) == [], "what got better is no fault"
    assert worse(GOOD, GOOD) == []


def test_attention_where_there_was_none_is_told() -> None:
    without = replace(GOOD, sites=0, found="", captured="", cut="", cuts=())
    assert worse(GOOD, without) == ["sites: none before, as there is no attention; 2 now"]


def test_counts_are_of_types() -> None:
    many = FamilyTable((GOOD, BAD, NONE)).counts()
    assert (many["types"], many["built"], many["run"], many["dispatch"], many["all of it"]) == (3, 2, 2, 1, 1)
    assert (many["captured exact"], many["cut refused"], many["saved"]) == (1, 1, 1)


def test_every_row_comes_to_one_thing() -> None:
    assert outcome(GOOD) == "read and cut exactly"
    assert outcome(BAD) == "read in part; cuts are refused, or there is nothing to cut"
    assert outcome(NONE) == "not built"
    assert outcome(replace(GOOD, cut="wrong")) == OUTCOMES[0]
    assert outcome(replace(GOOD, found="failed")) == OUTCOMES[0]
    assert outcome(replace(GOOD, cut="in part")) == "read; some cuts are exact, others refused"
    assert outcome(replace(GOOD, cut="")) == "read; nothing to cut"
    assert outcome(replace(GOOD, sites=0, found="none")).startswith("with attention of another kind")
    assert outcome(replace(GOOD, sites=0, found="")) == "without attention"
    assert len({*OUTCOMES}) == len(OUTCOMES)


def test_reasons_that_are_alike_stand_under_one_heading() -> None:
    assert grouped_reasons([NONE, replace(NONE, model_type="more")], "built") == {
        "too large at the smallest setting": ["none", "more"]
    }
    assert heading("cut", "layer 3 of a.b.c is odd; and so on") == "layer … of … is odd"


def test_types_run_in_processes_and_go_on_where_they_were(tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    first = run_types(["bert", "fnet"], keep=tmp_path / "kept", progress=lambda *step: steps.append(step))
    assert [row.model_type for row in first.rows] == ["bert", "fnet"]
    assert [row.captured for row in first.rows] == ["exact", ""]
    assert steps == [("model types", 1, 2)] * 2
    began = time.monotonic()
    again = run_types(["bert", "fnet"], keep=tmp_path / "kept")
    assert again.rows == first.rows
    assert time.monotonic() - began < 0.5, "nothing is run again"


def test_a_type_that_takes_too_long_or_dies_is_told() -> None:
    def slow(model: nn.Module) -> Any:
        time.sleep(60)

    def dies(model: nn.Module) -> Any:
        os._exit(9)

    late = run_types(["bert"], limits=Limits(seconds=1.0), example=slow).rows[0]
    assert (late.built, late.why["built"]) == ("no", "it took more than 1 seconds")
    assert "process died" in run_types(["bert"], example=dies).rows[0].why["built"]


def test_an_interruption_keeps_what_is_finished(tmp_path: Path) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(InterruptedWorkError, match="stopped after 1 of 2 model types; what is finished is kept"):
        run_types(["fnet", "bert"], keep=tmp_path / "kept", progress=interrupt)
    assert run_types(["fnet"], keep=tmp_path / "kept", example=make_example).rows[0].class_name == "FNetModel"


def test_an_unknown_type_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="no model type 'lama'; did you mean 'llama'"):
        run_types(["lama"])
