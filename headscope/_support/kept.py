"""Finished pieces of long work, kept in a folder as they come, so that work that was stopped goes on where it was."""

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from headscope._support.environment import versions
from headscope._support.folders import new_file
from headscope.errors import StorageError

__all__ = ["Kept", "is_begun", "remove_kept"]

_ABOUT, _PIECES = "work.json", "pieces"
_VERSIONS = ("headscope", "python", "torch")  # of Python too: its documentation is a text
_NAME = re.compile(r"[\w.+-]+")


class Kept:
    """Pieces of one work by name, a JSON file each.

    Args:
        folder: where they are; made with the first piece.
        work: what is done, as JSON values. Pieces of other work, or of another version of headscope, Python or torch,
            are not mixed in.

    Raises:
        StorageError: the folder holds something else, or pieces of other work.
    """

    def __init__(self, folder: str | Path, work: Mapping[str, Any]) -> None:
        self.folder = Path(folder).expanduser().absolute()
        made_by = versions()
        work = {**work, **{name: made_by[name] for name in _VERSIONS}}
        about, self._work = self.folder / _ABOUT, json.dumps(work, indent=1)
        if about.exists():
            _check_same(self.folder, _read(about), json.loads(self._work))
        elif self.folder.is_file() or (self.folder.is_dir() and any(self.folder.iterdir())):
            raise StorageError(f"{self.folder} holds something that is no such work; it was kept. Name another folder")

    def get(self, name: str) -> dict[str, Any] | None:
        """A finished piece; None while it is not there."""
        path = self._path(name)
        return _read(path) if path.exists() else None

    def put(self, name: str, piece: Mapping[str, Any]) -> None:
        """Keep a finished piece, whole or not at all."""
        if not (self.folder / _ABOUT).exists():
            new_file(self.folder / _ABOUT, self._work, force=True)
        new_file(self._path(name), json.dumps(dict(piece)), force=True)

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a file")
        return self.folder / _PIECES / f"{name}.json"


def is_begun(folder: str | Path) -> bool:
    """Whether a folder holds pieces of a work."""
    return (Path(folder).expanduser() / _ABOUT).is_file()


def remove_kept(folder: str | Path) -> None:
    """Remove the pieces of a work, and the folder unless something else is in it."""
    folder = Path(folder).expanduser()
    if is_begun(folder):
        shutil.rmtree(folder / _PIECES, ignore_errors=True)
        (folder / _ABOUT).unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}: {error}; remove it, and it is made again") from error
    return found


def _check_same(folder: Path, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    apart = [name for name in {**there, **wanted} if there.get(name) != wanted.get(name)]
    if apart:
        listed = "; ".join(f"{name}: {there.get(name)} there, {wanted.get(name)} here" for name in apart)
        raise StorageError(
            f"{folder} holds other work ({listed}); it was kept. Name another folder, or give the same settings"
        )
