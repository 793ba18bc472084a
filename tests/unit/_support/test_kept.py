"""Kept pieces: whole or not there, and of one work only."""

from pathlib import Path

import pytest

from headscope._support.kept import Kept
from headscope.errors import StorageError


def test_pieces_come_back_and_outlive_the_object(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "a", {"heads": (1, 2)})
    assert kept.get("one") is None
    kept.put("one", {"value": 0.1 + 0.2, "none": None})
    assert Kept(tmp_path / "a", {"heads": [1, 2]}).get("one") == {"value": 0.1 + 0.2, "none": None}


def test_other_work_is_named(tmp_path: Path) -> None:
    Kept(tmp_path / "a", {"heads": [1, 2], "seeds": 5}).put("one", {})
    with pytest.raises(StorageError, match=r"heads: \[1, 2\] there, \[4\] here"):
        Kept(tmp_path / "a", {"heads": [4], "seeds": 5})


def test_without_a_piece_there_is_no_folder(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "a", {"heads": 4})
    assert kept.get("one") is None
    assert not (tmp_path / "a").exists()
    Kept(tmp_path / "a", {"heads": 8}).put("one", {})  # nothing was kept of the first


def test_what_is_no_work_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(StorageError, match="Name another folder"):
            Kept(place, {})
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_spoilt_piece_is_named(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "a", {})
    kept.put("one", {})
    (tmp_path / "a" / "pieces" / "one.json").write_text("{", encoding="utf-8")
    with pytest.raises(StorageError, match=r"one\.json.*remove it"):
        kept.get("one")


def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no name"):
        Kept(tmp_path / "a", {}).put("../one", {})
