"""The demo says what it is about to do, where that will be, and how long it takes here."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from headscope.cli import starting
from headscope.cli.story import Report
from headscope.models.demo import DEMO_MODELS
from tests.cli.conftest import Run


@pytest.fixture
def quick(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A demo of the tiny Llama that analyses nothing; the names of the models that it loads."""
    loaded: list[str] = []
    monkeypatch.setattr("headscope.models.demo.demo_model", lambda name: loaded.append(name) or folder)
    monkeypatch.setattr(starting, "analyzed", lambda *_, **__: SimpleNamespace())
    monkeypatch.setattr(Report, "write", lambda *_, **__: None)
    return loaded


def test_the_demo_says_first_what_it_does_and_last_how_long_it_took(
    run: Run, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headscope.surgery.timing.time_pass", lambda model, batch: 1.5 + 0 * len(batch["input_ids"]))
    code, out, err = run("demo", "--out", tmp_path / "out", "--json")
    assert (code, out, quick) == (0, "", ["minilm"])
    first, second, last = err.splitlines()
    assert first.endswith(f"; the report: {tmp_path / 'out' / 'index.html'}")
    assert second.startswith("takes about 11 min on this machine: ")
    assert "8 windows of text, one of which took 1.5 s here" in second
    assert re.fullmatch(r"took (\d+ ms|\d+\.\d s)", last)


def test_a_demo_that_goes_on_says_that_it_takes_less(run: Run, quick: list[str], tmp_path: Path) -> None:
    (tmp_path / "out.unfinished").mkdir()
    err = run("demo", "--model", "gemma", "--out", tmp_path / "out")[2]
    assert "takes about 1 min" in err
    assert f"less where {tmp_path / 'out.unfinished'} holds a part of it" in err
    assert quick == ["gemma"]


def test_every_demo_model_has_a_forecast() -> None:
    assert set(starting._PASSES) == set(DEMO_MODELS)
