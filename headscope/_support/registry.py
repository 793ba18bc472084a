"""A registry: a read-only mapping over the modules of one folder.

One file is the whole extension: put a module into the folder (or register from code of your own) and the command
line, the documentation and the contract tests see it.
"""

import difflib
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from headscope.errors import UnknownNameError

__all__ = ["Registry", "by_number"]

T = TypeVar("T")


def by_number(name: str) -> list[Any]:
    """What names are sorted by, so that numbers in them count as numbers.

    >>> sorted(["C10", "C2", "cka"], key=by_number)
    ['C2', 'C10', 'cka']
    """
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


class Registry(Mapping[str, type[T]]):
    """Named classes of one kind, found by importing every module of a package on first use.

    Args:
        kind: what one entry is called in messages, e.g. "measure".
        package: dotted name of the package whose modules register themselves.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[str, type[T]] = {}
        self._scanned = False

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator that adds a class under `name`.

        Raises:
            ValueError: another class already has that name.
        """

        def add(entry: type[T]) -> type[T]:
            known = self._entries.get(name)
            if known is not None and (known.__module__, known.__qualname__) != (entry.__module__, entry.__qualname__):
                raise ValueError(f"the {self.kind} {name!r} is registered already, by {known.__module__}")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> type[T]:
        self._scan()
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownNameError(self._unknown(name)) from None

    def __contains__(self, name: object) -> bool:
        self._scan()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._scan()
        return iter(sorted(self._entries, key=by_number))

    def __len__(self) -> int:
        self._scan()
        return len(self._entries)

    def name_of(self, entry: T) -> str:
        """The name that an object's class is registered under.

        Raises:
            UnknownNameError: under none.
        """
        for name, kind in self.items():
            if kind is type(entry):
                return name
        raise UnknownNameError(
            f"{entry!r} is not an object of a registered {self.kind}; register its class under a name, then pass "
            "the name or an object of it"
        )

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name.lower(), self._entries, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"there is no {self.kind} named {name!r}; {hint}there are: {', '.join(self)}"

    def _scan(self) -> None:
        if self._scanned:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        self._scanned = True  # last: a scan that failed, or that another thread is still at, is no scan
