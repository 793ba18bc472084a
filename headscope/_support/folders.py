"""Folders and files that appear whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headscope.errors import HeadscopeError, StorageError

__all__ = ["check_free", "check_new", "new_file", "new_folder", "whole_file"]


def check_free(folder: str | Path, *, force: bool = False) -> Path:
    """Refuse a place that holds something, before any work is done.

    Raises:
        StorageError: a file is in the way, or a folder with content and `force` is off.
    """
    folder = Path(folder).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise StorageError(
            f"{folder} exists and is not empty, and was kept",
            python="name another folder, or pass force=True",
            shell="name another folder, or give --force",
        )
    if folder in (Path.home(), *(Path.cwd() / "here").parents):
        raise StorageError(f"{folder} is where you stand or live, so it is not replaced; name a new folder inside it")
    return folder


def check_new(path: str | Path, *, force: bool = False) -> Path:
    """Refuse a file that is there, before any work is done.

    Raises:
        StorageError: a folder is in the way, or a file and `force` is off.
    """
    path = Path(path).expanduser().absolute()
    if path.is_dir() or (path.exists() and not force):
        raise StorageError(
            f"{path} exists and was kept",
            python="name another file, or pass force=True",
            shell="name another file, or give --force",
        )
    return path


def new_file(path: str | Path, text: str, *, force: bool = False) -> None:
    """Write a text file whole or not at all.

    Raises:
        StorageError: something is in the way and `force` is off, or the disk refused.
    """
    path = check_new(path, force=force)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}") from error
    with whole_file(path) as new:
        new.write_text(text, encoding="utf-8")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well, and goes away when it does not.

    Raises:
        StorageError: the disk refused.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: str | Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends well, and goes away when it does not.

    Args:
        folder: where the content is to stand; its parents are made.
        force: whether a folder with content is replaced.

    Raises:
        StorageError: see `check_free`; or the disk refused.
    """
    folder = check_free(folder, force=force)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        temporary.chmod(0o755)
    except OSError as error:
        raise StorageError(f"cannot write beside {folder}: {error}") from error
    try:
        yield temporary
        _replace(folder, temporary)
    except HeadscopeError:
        raise
    except OSError as error:
        if error.errno is None:  # not the system's word: some libraries raise OSError for a file they cannot make out
            raise
        raise StorageError(f"cannot write {folder}: {error}; nothing was written") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(folder: Path, temporary: Path) -> None:
    """Move the new folder into place; what stood there goes only once the new one stands."""
    if not folder.exists():
        temporary.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent)) / folder.name
    folder.rename(old)
    try:
        temporary.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old.parent, ignore_errors=True)
