"""A new file in a package, without writing into the package."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from headscope._support.registry import Registry


def add_file(
    monkeypatch: pytest.MonkeyPatch, folder: Path, package: ModuleType, registry: Registry, source: str
) -> None:
    """As if a file with this source lay in the package; gone again after the test."""
    (folder / "added_by_a_test.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(registry, "_scanned", False)
    # noted before the import, so that the module leaves with the test
    monkeypatch.setitem(sys.modules, f"{package.__name__}.added_by_a_test", ModuleType("unused"))
    del sys.modules[f"{package.__name__}.added_by_a_test"]
