"""Registry: a mapping over a folder; a new file is found without being named anywhere."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headscope._support.registry import Registry
from headscope.errors import UnknownNameError

MODULE = """
from {package} import REGISTRY

@REGISTRY.register("{name}")
class Entry:
    name = "{name}"
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with a registry of its own and two entries."""
    folder = tmp_path / "some_plugins"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from headscope._support.registry import Registry\nREGISTRY = Registry('plugin', 'some_plugins')\n"
    )
    for name in ("second", "first"):
        (folder / f"{name}.py").write_text(MODULE.format(package="some_plugins", name=name))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "some_plugins"]:
        del sys.modules[name]


def _registry(package: Path) -> Registry:
    return __import__(package.name).REGISTRY


def test_every_file_of_the_folder_is_an_entry(package: Path) -> None:
    (package / "dropped_in.py").write_text(MODULE.format(package="some_plugins", name="dropped-in"))
    registry = _registry(package)
    assert list(registry) == ["dropped-in", "first", "second"]
    assert len(registry) == 3
    assert registry["second"].__module__ == "some_plugins.second"
    assert {entry.name for entry in registry.values()} == set(registry)


def test_numbers_in_names_count_as_numbers(package: Path) -> None:
    for name in ("C10", "C2", "C1"):
        (package / f"{name.lower()}.py").write_text(MODULE.format(package="some_plugins", name=name))
    registry = _registry(package)
    assert list(registry) == ["C1", "C2", "C10", "first", "second"]
    with pytest.raises(UnknownNameError, match="there are: C1, C2, C10, first, second"):
        registry["C99"]


def test_nothing_is_imported_before_it_is_needed(package: Path) -> None:
    registry = _registry(package)
    assert "some_plugins.first" not in sys.modules
    assert "first" in registry
    assert "some_plugins.first" in sys.modules


def test_an_unknown_name_lists_what_there_is_and_what_was_meant(package: Path) -> None:
    registry = _registry(package)
    with pytest.raises(
        UnknownNameError, match=r"no plugin named 'frist'; did you mean 'first'. there are: first, second"
    ):
        registry["frist"]
    with pytest.raises(UnknownNameError, match="did you mean 'second'"):
        registry["SECOND"]
    assert registry.get("frist") is None
    assert "frist" not in registry


def test_a_name_is_taken_once(package: Path) -> None:
    registry = _registry(package)
    list(registry)
    with pytest.raises(ValueError, match=r"plugin 'first' is registered already, by some_plugins.first"):
        registry.register("first")(type("Other", (), {}))
    again = type("Entry", (), {"__module__": "some_plugins.first"})  # the same file, run anew in a notebook
    registry.register("first")(again)
    assert registry["first"] is again


def test_users_register_from_their_own_code(package: Path) -> None:
    registry = _registry(package)
    mine = registry.register("mine")(type("Mine", (), {}))
    assert registry["mine"] is mine
    assert list(registry) == ["first", "mine", "second"]


def test_a_file_that_fails_is_not_passed_over_the_second_time(package: Path) -> None:
    (package / "broken.py").write_text("raise RuntimeError('broken file')")
    registry = _registry(package)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken file"):
            len(registry)
