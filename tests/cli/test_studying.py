"""Commands of the studies as a user meets them: what they print, what they write, and how they refuse."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from headscope.studies.claims import CLAIMS
from headscope.studies.headcount import Settings, Sweep
from headscope.studies.rulings import Rulings
from tests.cli.conftest import Run

EXAMPLE = "headscope.models.reference:example"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quick sweep that is quicker still."""
    taste = Settings(tasks=("maps-8",), heads=(1, 8), seeds=2, rates=(0.01,), share=0.01)
    monkeypatch.setattr(Settings, "quick", classmethod(lambda _: taste))


@pytest.mark.usefixtures("quick")
def test_headcount_writes_tables_and_figures_and_goes_on(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "heads"
    code, said, err = run("headcount", "--quick", "--workers", "1", "--out", out)
    assert (code, err) == (0, "")
    assert "maps-8" in said
    assert "error against the number of heads" in said
    assert {"runs.csv", "rates.csv", "removal.csv", "shapes.csv", "error.png", "bound.png"} <= {
        path.name for path in out.iterdir()
    }
    first = Sweep.load(out).runs
    code, said, _ = run("headcount", "--quick", "--workers", "1", "--out", out, "--json")
    assert code == 0
    assert [row["task"] for row in json.loads(said)["shapes"]] == ["maps-8", "maps-8"]
    pd.testing.assert_frame_equal(Sweep.load(out).runs, first)  # read, not made again


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--heads", "1,3"), "3 heads do not divide the width 64"),
        (("--heads", "one"), "whole numbers separated by commas"),
        (("--task", "lookup"), "did you mean 'lookups'"),
        (("--task", "maps-100"), "2 to 64 tokens"),
        (("--seeds", "1"), "at least 2 seeds"),
    ],
)
def test_headcount_refuses_what_it_cannot_sweep(
    run: Run, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    code, _, err = run("headcount", "--quick", *options, "--out", tmp_path / "heads")
    assert code == 1
    assert message in " ".join(err.split())
    assert not (tmp_path / "heads").exists()


@pytest.mark.usefixtures("quick")
def test_headcount_refuses_a_folder_of_other_work(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "heads"
    assert run("headcount", "--quick", "--workers", "1", "--out", out)[0] == 0
    code, _, err = run("headcount", "--quick", "--workers", "1", "--seeds", "3", "--out", out)
    assert code == 1
    assert "seeds: 2 there, 3 here" in err


def test_headcount_says_that_a_text_is_too_short(run: Run, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("A few words only.", encoding="utf-8")
    code, _, err = run("headcount", "--quick", "--task", "language", "--text", text, "--out", tmp_path / "heads")
    assert code == 1
    assert "8 documents at the least" in err
    assert "there is 1:" in err


def test_claims_of_a_model(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "claims"
    code, said, err = run("claims", EXAMPLE, "--quick", "--claim", "c14", "--claim", "C1", "--out", out)
    assert (code, err) == (0, "")
    assert "does not hold" in said
    made = Rulings.load(out)
    assert [ruling.claim for ruling in made.rulings] == ["C1", "C14"]
    assert (made["C14"].effect, made["C14"].verdict.word) == (1.0, "does not hold")
    assert (
        made["C14"].command
        == f"headscope claims {EXAMPLE} --claim C14 --quick --out claims-C14-headscope-models-reference-example"
    )
    page = (out / "C14.md").read_text("utf-8")
    assert page.startswith("# C14: the embedding is divided")
    assert "figures/C14-headscope-models-reference-example.png" in page
    assert (out / "figures/C14-headscope-models-reference-example.png").exists()
    assert "seed 0. Made on" in page
    assert "Timed on" not in page  # nothing of it was
    assert "documents that came with it" in page
    assert "[C14](C14.md)" in (out / "index.md").read_text("utf-8")
    assert "成り立たない" in (out / "index.ja.md").read_text("utf-8")
    code, said, _ = run("claims", EXAMPLE, "--quick", "--claim", "C1", "--out", out, "--force", "--json")
    assert code == 0
    assert json.loads(said)["claims"][EXAMPLE][0]["verdict"] == "holds"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--claim", "C99"), "there are: C1, C2, C3, C4, C5, C6, C7, C8, C9, C10"),
        ((EXAMPLE, "--claim", "C7"), "leave the model out"),
        (("--claim", "C1", "--windows", "8", "--seed", "1"), "--windows, --seed: of a model that is named"),
        ((EXAMPLE, "--costs", "costs"), "--costs holds timings of the reference's layers"),
        ((EXAMPLE, "--results", "a", "--quick"), f"leave out {EXAMPLE}, --quick"),
        (("--claim", "C5", "--costs", "nowhere"), "nowhere"),
    ],
)
def test_claims_refuses_what_cannot_be_asked(run: Run, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    code, _, err = run("claims", *options, "--out", tmp_path / "claims")
    assert code == 1
    assert message in " ".join(err.split())
    assert not (tmp_path / "claims").exists()
    assert run("claims", EXAMPLE)[0] == 2  # nowhere to write


def test_results_are_put_side_by_side(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run("claims", EXAMPLE, "--quick", "--claim", "C1", "--seed", "1", "--out", tmp_path / name)[0] == 0
    made = Rulings.load(tmp_path / "b")
    Rulings("another", made.rulings, made.facts).save(tmp_path / "c")
    code, _, err = run("claims", "--results", tmp_path / "a", "--results", tmp_path / "c", "--out", tmp_path / "both")
    assert (code, err) == (0, "")
    page = (tmp_path / "both" / "C1.md").read_text("utf-8")
    assert "### another" in page
    assert f"### {EXAMPLE}" in page
    assert (
        made["C1"].command
        == f"headscope claims {EXAMPLE} --claim C1 --quick --out claims-C1-headscope-models-reference-example --seed 1"
    )
    code, _, err = run("claims", "--results", tmp_path / "a", "--results", tmp_path / "b", "--out", tmp_path / "twice")
    assert code == 1
    assert "two of the results are of the same name" in err
    assert Rulings.load(tmp_path / "both" / "another").subject == "another"


@pytest.fixture
def untaught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be trained, and no model loaded."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("work was begun before the folder was looked at")

    for name in ("headscope.studies.asking.sweep", "headscope.studies.asking.reference_subjects",
                 "headscope.studies.asking.scale_costs", "headscope.cli.options.Loading.load"):  # fmt: skip
        monkeypatch.setattr(name, refuse)


@pytest.mark.usefixtures("untaught")
@pytest.mark.parametrize("asked", [(), ("--claim", "C1"), ("--quick",), (EXAMPLE,), ("--results", "made")])
def test_a_folder_without_a_sweep_is_refused_at_once(run: Run, tmp_path: Path, asked: tuple[str, ...]) -> None:
    code, _, err = run("claims", *asked, "--sweep", tmp_path / "sweeep", "--out", tmp_path / "claims")
    assert code == 1
    assert "sweeep holds no sweep, finished or begun" in err
    assert f"`headscope headcount --out {tmp_path / 'sweeep'}` makes one" in " ".join(err.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quick")
def test_a_sweep_that_was_begun_is_gone_on_with_for_the_reference_alone(run: Run, tmp_path: Path) -> None:
    asked = ("claims", "--quick", "--claim", "C10")
    assert run(*asked, "--out", tmp_path / "first")[0] == 0
    begun = tmp_path / "first-quick-sweep"  # a taste is kept in pieces, and not saved as a whole
    assert run(*asked, "--sweep", begun, "--out", tmp_path / "second")[0] == 0
    code, _, err = run("claims", EXAMPLE, "--claim", "C1", "--sweep", begun, "--out", tmp_path / "third")
    assert code == 1
    assert "is not finished" in err
    assert f"`headscope headcount --out {begun}` goes on with it" in " ".join(err.split())


@pytest.mark.usefixtures("untaught")
def test_what_was_made_before_is_read_before_anything_is_trained(run: Run, tmp_path: Path) -> None:
    code, _, err = run("claims", "--costs", tmp_path / "costs", "--out", tmp_path / "claims")
    assert code == 1
    assert f"`python analyses/cost_scaling.py --out {tmp_path / 'costs'}` makes such a folder" in " ".join(err.split())
    spoilt = tmp_path / "spoilt"
    spoilt.mkdir()
    (spoilt / "runs.json").write_text("{", encoding="utf-8")
    code, _, err = run("claims", "--sweep", spoilt, "--out", tmp_path / "claims")
    assert code == 1
    assert "cannot read the table 'runs'" in err
    code, _, err = run("headcount", "--earlier", tmp_path / "nowhere", "--out", tmp_path / "heads")
    assert code == 1
    assert f"`headscope headcount --out {tmp_path / 'nowhere'}` makes such a folder" in " ".join(err.split())
    for option, name in (("--run", "report"), ("--plan", "plan.json")):
        share = ("--share", "0.5") if option == "--run" else ()
        code, _, err = run("prune", EXAMPLE, option, tmp_path / name, *share, "--out", tmp_path / "smaller")
        assert code == 1
        assert name in err


@pytest.mark.usefixtures("quick")
def test_pieces_of_another_sweep_are_refused_before_the_reference_is_trained(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = tmp_path / "begun"
    assert run("headcount", "--quick", "--seeds", "3", "--workers", "1", "--out", begun)[0] == 0
    for path in begun.glob("runs.*"):  # as if it had been stopped
        path.unlink()
    monkeypatch.setattr("headscope.studies.asking.reference_subjects", None)
    code, _, err = run("claims", "--quick", "--sweep", begun, "--out", tmp_path / "claims")
    assert code == 1
    assert "seeds: 3 there, 2 here" in err


@pytest.mark.usefixtures("quick")
def test_a_taste_decides_nothing_about_numbers_of_heads(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "claims"
    code, said, err = run("claims", "--quick", "--claim", "C7", "--claim", "C10", "--out", out)
    assert (code, err) == (0, "")
    made = Rulings.load(out)
    assert [ruling.verdict.word for ruling in made.rulings] == ["not decided"] * 2
    assert all(ruling.sentence.en and ruling.verdict.where.ja for ruling in made.rulings)
    assert (tmp_path / "claims-quick-sweep" / "work.json").exists()
    assert "not decided" in said


def test_claims_that_are_decided_are_kept_until_all_are(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked = tmp_path / "claims", ("claims", EXAMPLE, "--quick", "--claim", "C1", "--claim", "C6", "--claim", "C14")
    whole = tmp_path / "whole"
    assert run(*asked, "--out", whole)[0] == 0
    measured: list[str] = []
    for name in ("C1", "C6", "C14"):
        kind = CLAIMS[name]
        monkeypatch.setattr(kind, "measure", _noted(kind.measure, name, measured, stop=name == "C14"))
    assert run(*asked, "--out", out)[0] == 130
    assert measured == ["C1", "C6", "C14"]
    assert not out.exists()
    assert (tmp_path / "claims.unfinished").is_dir()
    monkeypatch.undo()
    monkeypatch.setattr(CLAIMS["C1"], "measure", None)  # not asked again
    code, _, err = run(*asked, "--seed", "1", "--out", out)
    assert (code, "seed" in err) == (1, True)  # other work is not mixed in
    assert run(*asked, "--out", out)[0] == 0
    assert not (tmp_path / "claims.unfinished").exists()
    one, other = (Rulings.load(folder) for folder in (out, whole))
    for claim in ("C1", "C6", "C14"):
        pd.testing.assert_series_equal(pd.Series(one[claim].numbers), pd.Series(other[claim].numbers), check_exact=True)
        assert one[claim].sentence == other[claim].sentence
        pd.testing.assert_frame_equal(one[claim].table, other[claim].table, check_exact=True)


def _noted(measure: Any, name: str, measured: list[str], *, stop: bool) -> Any:
    def noted(self: Any, subject: Any) -> Any:
        measured.append(name)
        if stop:
            raise KeyboardInterrupt
        return measure(self, subject)

    return noted
