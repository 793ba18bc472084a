"""Bundles of options: each option reaches what it is for, and a command with bundles is as one without."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import pytest
import typer
from torch import nn
from typer.testing import CliRunner

from headscope.cli.application import refusing, spread
from headscope.cli.options import Folder, Loading, Reading, Sampling, Tables
from headscope.cli.story import Report
from headscope.errors import HeadscopeError, InterruptedWorkError, StorageError
from headscope.models.loading import Loaded
from tests.models import build


@dataclass(frozen=True)
class Fruit:
    kind: Annotated[str, typer.Option(help="which")]
    many: Annotated[int, typer.Option(help="how many")] = 1
    ripe: Annotated[bool, typer.Option("--ripe", help="or not")] = False


@dataclass(frozen=True)
class Basket(Fruit):
    many: Annotated[int, typer.Option(help="how many, at least two")] = 2


def test_a_bundle_s_fields_are_the_command_s_options() -> None:
    told = []

    def buy(shop: Annotated[str, typer.Argument()], fruit: Fruit, loud: bool = False) -> None:
        """Buy something."""
        told.append((shop, fruit, loud))

    made = spread(buy)
    assert list(inspect.signature(made).parameters) == ["shop", "kind", "many", "ripe", "loud"]
    assert made.__doc__ == "Buy something."
    app = typer.Typer()
    app.command()(made)
    run = CliRunner().invoke
    assert run(app, ["market", "--kind", "plum", "--many", "3", "--ripe", "--loud"]).exit_code == 0
    assert run(app, ["market", "--kind", "plum"]).exit_code == 0
    assert told == [("market", Fruit("plum", 3, True), True), ("market", Fruit("plum"), False)]
    assert run(app, ["market"]).exit_code == 2, "a field without a default is needed"


def test_a_bundle_as_default_gives_its_fields_theirs() -> None:
    def pick(fruit: Fruit = Basket("pear", 7)) -> None: ...

    defaults = {name: own.default for name, own in inspect.signature(spread(pick)).parameters.items()}
    assert defaults == {"kind": "pear", "many": 7, "ripe": False}


def test_how_a_model_is_loaded_reaches_the_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    made = Loaded(nn.Identity(), None, None, "mine")
    monkeypatch.setattr(
        "headscope.models.loading.load_model", lambda name, **settings: asked.append((name, settings)) or made
    )
    loaded = Loading("cuda:1", "bfloat16", True).load("my-model")
    assert loaded.model is made.model
    assert loaded.options == "--device cuda:1 --dtype bfloat16 --trust-remote-code", "for a command that loads it again"
    assert asked == [("my-model", {"device": "cuda:1", "dtype": "bfloat16", "trust_remote_code": True})]
    assert Loading() == Loading("auto", None, False)


def test_which_text_is_read_reaches_the_reader(tmp_path: Path) -> None:
    assert Reading().texts() is None
    (tmp_path / "a.txt").write_text("# one\ntext\n# two\nmore", encoding="utf-8")
    (tmp_path / "b.txt").write_text("# three\nlast", encoding="utf-8")
    texts = Reading([tmp_path / "a.txt", tmp_path / "b.txt"], "^# ").texts()
    assert texts is not None
    assert [document.text.split()[1] for document in texts.documents] == ["one", "two", "three"]


def test_how_much_text_is_read_reaches_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        "headscope.text.corpus.text_batches",
        lambda tokenizer, texts, **settings: asked.append((tokenizer, texts, settings)) or ["made"],
    )
    own = SimpleNamespace(tokenizer="tokenizer", batches=["own"], model=build("encoder"))
    named = SimpleNamespace(tokenizer="tokenizer", batches=None, model=build("encoder"))
    assert Sampling(windows=3, length=5, seed=7).batches(named, None) == ["made"]
    assert Sampling(windows=0, length=5, seed=7).batches(named, "texts") == ["made"]
    assert asked == [
        ("tokenizer", None, {"length": 5, "windows": 3, "seed": 7, "model": named.model}),
        ("tokenizer", "texts", {"length": 5, "windows": None, "seed": 7, "model": named.model}),
    ]
    assert Sampling().batches(own, None) == ["own"], "batches that came with the model"
    assert Sampling().batches(own, "texts") == ["made"], "unless a text was named"


def test_what_effects_are_measured_on_has_the_seed_and_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("headscope.anatomy.discover", lambda model, example: (model, example))
    monkeypatch.setattr("headscope.verdict.preparation.affordable_tokens", lambda model, anatomy: 99)
    monkeypatch.setattr("headscope.text.splits.sample_batches", lambda *given: asked.append(given) or "sample")
    loaded = SimpleNamespace(model=nn.Identity())
    anatomy, sample = Sampling(seed=7).for_effects(loaded, ["first", "second"], 50)
    assert (anatomy[1], sample) == ("first", "sample")
    Sampling(seed=8).for_effects(loaded, ["first", "second"], None)
    assert asked == [(["first", "second"], 50, 7), (["first", "second"], 99, 8)]


class Rows:
    """A table that writes its name."""

    def __init__(self, name: str, fails: bool = False) -> None:
        self.name, self.fails = name, fails

    def save(self, folder: Path) -> None:
        (folder / self.name).write_text("rows")
        if self.fails:
            raise ZeroDivisionError


@pytest.mark.parametrize("kind", [Folder, Tables, Report])
def test_a_folder_with_content_is_kept_unless_it_is_forced(kind: type, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(StorageError, match="not empty"):
        kind(tmp_path).check()
    kind(tmp_path, force=True).check()
    kind(tmp_path / "new").check()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_tables_are_written_all_or_none_and_nowhere_without_a_folder(tmp_path: Path) -> None:
    Tables().check()
    Tables().write([Rows("a", fails=True)])
    with pytest.raises(ZeroDivisionError):
        Tables(tmp_path / "out").write([Rows("a"), Rows("b", fails=True)])
    assert not (tmp_path / "out").exists()
    Tables(tmp_path / "out").write([Rows("a"), Rows("b")])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b"]
    Tables(tmp_path / "out", force=True).write([Rows("c")])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["c"]


def test_a_refusal_advises_what_fits_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise StorageError("no text", python="pass texts=", shell="give --text")

    with pytest.raises(SystemExit):
        refusing(fail)
    assert capsys.readouterr().err == "headscope: no text; give --text\n"


@pytest.mark.parametrize(("error", "code"), [(HeadscopeError("no"), 1), (InterruptedWorkError("stopped"), 130)])
def test_a_refusal_is_its_words_its_notes_and_a_code(
    error: HeadscopeError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    error.add_note("in layer 3")

    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        refusing(fail)
    assert stop.value.code == code
    assert capsys.readouterr().err == f"headscope: {error}\n  in layer 3\n"
