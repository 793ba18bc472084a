"""A folder appears whole or not at all, and what stands there is kept unless told otherwise."""

from pathlib import Path

import pytest

from headscope._support.folders import check_free, new_file, new_folder
from headscope.errors import StorageError


def test_a_folder_appears_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with new_folder(target) as new:
        (new / "a.txt").write_text("a")
        assert not target.exists()
    assert (target / "a.txt").read_text() == "a"
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "out") as new:
        (new / "a.txt").write_text("a")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_content_is_kept_unless_forced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match="not empty"), new_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"

    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "out", force=True):
        raise ZeroDivisionError
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"

    with new_folder(tmp_path / "out", force=True) as new:
        (new / "new.txt").write_text("new")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as new:
        (new / "a.txt").write_text("a")
    assert (tmp_path / "out" / "a.txt").exists()


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(StorageError, match="is a file"):
        check_free(tmp_path / "out", force=True)


def test_where_one_stands_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    for place in (tmp_path / "inner", tmp_path):
        with pytest.raises(StorageError, match="where you stand"):
            check_free(place, force=True)


def test_a_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No space left"), new_folder(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_whole_and_nothing_is_overwritten(tmp_path: Path) -> None:
    new_file(tmp_path / "deep" / "plan.json", "a")
    with pytest.raises(StorageError, match="was kept"):
        new_file(tmp_path / "deep" / "plan.json", "b")
    new_file(tmp_path / "deep" / "plan.json", "c", force=True)
    assert [path.read_text() for path in (tmp_path / "deep").iterdir()] == ["c"]
    for place in (tmp_path / "deep", tmp_path / "deep" / "plan.json" / "below"):
        with pytest.raises(StorageError):
            new_file(place, "d", force=True)
