"""Everything public says what it takes, what it gives, when it refuses and, where it is a number, what that means."""

import ast
import builtins
import inspect
import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import headscope
from headscope import errors
from headscope._support.cards import Card
from headscope.likeness.measures import MEASURES, Measure
from headscope.scoring.scores import SCORES
from tests.heavy import HEAVY

ROOT = Path(__file__).parents[1]
PUBLIC = {name: getattr(headscope, name) for name in headscope.__all__}
FUNCTIONS = {name: thing for name, thing in PUBLIC.items() if inspect.isfunction(thing)}
CLASSES = {name: thing for name, thing in PUBLIC.items() if inspect.isclass(thing)}
NUMBERS = {f"{registry.kind} {name}": entry for registry in (MEASURES, SCORES) for name, entry in registry.items()}


def _parameters(thing: Any) -> list[str]:
    return [name for name in inspect.signature(thing).parameters if name not in {"self", "cls"}]


def _undocumented(thing: Any, doc: str) -> list[str]:
    """Parameters without an entry: 'name: …' or 'name, other: …' at the start of an indented line."""
    entries = re.findall(r"^\s+((?:\w+, )*\w+):", doc, flags=re.MULTILINE)
    named = {name for entry in entries for name in entry.split(", ")}
    return [name for name in _parameters(thing) if name not in named]


def test_the_list_of_names_is_sorted_and_whole() -> None:
    assert list(headscope.__all__) == sorted(set(headscope.__all__))
    modules = [name for name, thing in PUBLIC.items() if inspect.ismodule(thing)]
    assert not modules, "modules are nouns and stay where they are; the public names are what is in them"


def _fresh(source: str) -> Any:
    """What a program prints, as JSON, in a process that has imported nothing yet."""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_checkers_see_the_names_that_are_loaded() -> None:
    source = ast.parse(Path(headscope.__file__).read_text(encoding="utf-8"))
    shown = next(node for node in source.body if isinstance(node, ast.If))
    seen = {alias.name: line.module for line in shown.body for alias in line.names}
    assert seen == headscope._PLACE_OF | {"errors": "headscope"}


def test_a_checker_knows_which_names_there_are(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(
        "import headscope as hs\n"
        "hs.similarity, hs.MEASURES, hs.errors, hs.__version__\n"
        "hs.similarty\n"
        "from headscope import capture, nonsense\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "mypy", "--follow-imports=skip", "--cache-dir", tmp_path / "cache",
               "--config-file", "", tmp_path / "user.py", ROOT / "headscope/__init__.py"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    wrong = [line for line in done.stdout.splitlines() if "user.py" in line and "error" in line]
    assert len(wrong) == 2, done.stdout + done.stderr
    assert "similarty" in wrong[0]
    assert "nonsense" in wrong[1]


def test_rooms_are_there_when_they_are_asked_for() -> None:
    assert _fresh("""
import headscope as hs, json
try:
    hs.HeadId.parse("L3")
except hs.errors.UnknownNameError as error:
    print(json.dumps([str(error)[:4], hs.reporting.__name__, "errors" in dir(hs)]))
""") == ["'L3'", "headscope.reporting", False]


def test_names_are_what_they_say_whatever_was_imported_before() -> None:
    found = _fresh("""
import importlib, inspect, json, pkgutil
import headscope
for module in pkgutil.walk_packages(headscope.__path__, "headscope."):
    importlib.import_module(module.name)
modules = [name for name in headscope.__all__ if inspect.ismodule(getattr(headscope, name))]
strangers = [
    name for name, place in headscope._PLACE_OF.items()
    if getattr(headscope, name) is not getattr(importlib.import_module(place), name)
]
print(json.dumps([modules, strangers]))
""")
    assert found == [[], []]


def test_the_start_loads_nothing_heavy() -> None:
    loaded = _fresh("import headscope, json, sys; headscope.__version__; print(json.dumps(list(sys.modules)))")
    assert not set(HEAVY) & set(loaded)


def test_capture_loads_no_tables_and_no_figures() -> None:
    """What transformers imports for itself does not count: the importer is looked at."""
    found = _fresh("""
import json, sys
class Told:
    asked = []
    def find_spec(self, name, path=None, target=None):
        frame = sys._getframe(1)
        while "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        self.asked.append((name, frame.f_globals.get("__name__", "")))
sys.meta_path.insert(0, Told())
import torch
import headscope as hs
from torch import nn
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
    def forward(self, x):
        heads = [f(x).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v)]
        return self.o(nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
model, x = Model(), torch.randn(2, 5, 8)
with hs.capture(model, example={"x": x}) as seen:
    model(x)
print(json.dumps({"shape": list(seen[0].pattern.shape), "asked": Told.asked}))
""")
    assert found["shape"] == [2, 2, 5, 5]
    ours = {name.split(".")[0] for name, importer in found["asked"] if importer.split(".")[0] == "headscope"}
    assert "headscope" in ours, "the importer is seen"
    assert not ours & {"pandas", "pyarrow", "matplotlib", "seaborn", "sklearn"}


def test_a_name_that_does_not_exist_is_answered_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'similarty'; did you mean 'similarity'\?"):
        _ = headscope.similarty
    with pytest.raises(AttributeError, match=r"no attribute 'zzz'$"):
        _ = headscope.zzz
    assert dir(headscope) == sorted({*headscope.__all__, "__version__"})


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_it_opens_with_one_line_that_says_what_it_is(name: str) -> None:
    doc = inspect.getdoc(PUBLIC[name])
    if not inspect.isfunction(PUBLIC[name]) and not inspect.isclass(PUBLIC[name]):
        return  # a registry or a constant: its type has the docstring
    assert PUBLIC[name].__doc__, f"{name} has no docstring of its own"
    assert doc is not None
    summary = doc.split("\n\n")[0]
    assert len(summary) <= 240
    assert summary[-1] in ".:;", f"{name}: {summary!r}"


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_a_function_names_what_it_takes_and_gives(name: str) -> None:
    function = FUNCTIONS[name]
    doc = inspect.getdoc(function) or ""
    missing = _undocumented(function, doc)
    assert not missing, f"{name}: no entry for {missing}"
    returned = str(inspect.signature(function).return_annotation)
    if not re.search(r"\bNone\b", returned):
        assert re.search(r"^(Returns|Yields):", doc, flags=re.MULTILINE), f"{name} returns {returned}: what is in it?"


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_class_names_its_settings_and_explains_its_methods(name: str) -> None:
    cls = CLASSES[name]
    if issubclass(cls, BaseException):
        return
    missing = [] if inspect.isabstract(cls) else _undocumented(cls, inspect.getdoc(cls) or "")
    assert not missing, f"{name}: no entry for {missing}"
    members = {key: getattr(cls, key) for key in vars(cls) if not key.startswith("_")}
    methods = {key: m for key, m in members.items() if inspect.isroutine(m) or isinstance(m, property)}
    silent = [key for key, member in methods.items() if not inspect.getdoc(member)]
    assert not silent, f"{name}: no docstring on {silent}"


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_errors_that_are_announced_exist(name: str) -> None:
    raises = re.search(r"Raises:\n((?:\s+.*\n?)+)", inspect.getdoc(PUBLIC[name]) or "")
    announced = re.findall(r"^\s{4}(\w+):", raises[1], flags=re.MULTILINE) if raises else []
    assert not [error for error in announced if not hasattr(errors, error) and not hasattr(builtins, error)]


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_a_number_has_a_card_that_says_what_it_means(name: str) -> None:
    entry = NUMBERS[name]
    assert isinstance(entry.card, Card)
    silent = [field.name for field in fields(Card) if len(getattr(entry.card, field.name)) < 4]
    assert not silent, f"{name}: {silent}"
    assert re.search(r"\d|at most|at least|any number", entry.card.span), f"{name}: which values does it take?"
    assert "NaN" in entry.card.undefined
    assert re.search(r"arXiv|definition|19\d\d|20\d\d|cosine of", entry.card.source), f"{name}: where is it from?"
    if issubclass(entry, Measure):
        module = inspect.getmodule(entry)
        assert module is not None
        assert ">>>" in inspect.getsource(module), f"{name}: an example with hand-made numbers"


def test_the_reader_of_docstrings_sees_what_is_missing() -> None:
    def told(a: int, b: int, c: int) -> None:
        """Something.

        Args:
            a, b: two numbers.
            d: c: is not told.
        """

    assert _undocumented(told, inspect.getdoc(told) or "") == ["c"]
