"""Everything public says what it takes, what it gives, when it refuses and, where it is a number, what that means."""

import builtins
import inspect
import re
from dataclasses import fields
from typing import Any

import pytest

import headscope
from headscope import errors
from headscope._support.cards import Card
from headscope.likeness.measures import MEASURES, Measure
from headscope.scoring.scores import SCORES

PUBLIC = {name: getattr(headscope, name) for name in headscope.__all__ if not name.startswith("__")}
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
