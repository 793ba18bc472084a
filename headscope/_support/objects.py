"""Objects of the user's own by name, "package.module:name", and what went wrong in their code, in a line."""

import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headscope.errors import HeadscopeError

__all__ = ["OWN_BATCHES", "find_object", "importable", "line_of", "reason_of"]

OWN_BATCHES = "let a function of yours, package.module:factory in place of the model, return (model, batches)"
"""What the command line advises where Python takes arguments that no option stands for."""


def find_object(source: str, refusal: type[HeadscopeError]) -> Any:
    """What "package.module:name" names; see `importable`.

    Args:
        source: the name.
        refusal: what is raised where there is no such module or object, or the module does not import.
    """
    module_name, _, name = source.partition(":")
    try:
        importlib.invalidate_caches()
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise refusal(f"there is no module {error.name!r}: neither in {os.getcwd()} nor installed") from error
        raise refusal(f"the module {module_name!r} does not import: {reason_of(error)}{line_of(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise refusal(f"{module_name} ({getattr(found, '__file__', '?')}) has no {name!r}")
        found = getattr(found, part)
    return found


@contextmanager
def importable() -> Iterator[None]:
    """While open, modules in the current directory are found."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


def reason_of(error: BaseException) -> str:
    """The kind of an error and the first paragraph of its text: transformers adds pages of advice after it."""
    return f"{type(error).__name__}: {' '.join(str(error).strip().partition(chr(10) * 2)[0].split())}"


def line_of(error: BaseException) -> str:
    """The line of the user's code that an error came from; empty where none was reached, as with an error of syntax."""
    here = str(Path(__file__).parents[1])
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(here)]
    frames = [frame for frame in frames if "importlib" not in frame.filename]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
