"""An analysis that was stopped on the command line: what was measured is kept, and the same command goes on."""

from collections.abc import Callable
from pathlib import Path

import pytest

import headscope as hs
from headscope.verdict import gathering
from tests.cli.conftest import SMALL

Run = Callable[..., tuple[int, str, str]]


def _stop(error: type[BaseException]) -> Callable[..., None]:
    def stop(*_: object, **__: object) -> None:
        raise error

    return stop


@pytest.mark.parametrize(
    ("error", "code", "said"), [(KeyboardInterrupt, 130, "interrupted"), (MemoryError, 1, "memory")]
)
def test_the_same_command_goes_on(
    run: Run, folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException], code: int, said: str,
) -> None:  # fmt: skip
    command = ("analyze", folder, "--text", text, "--split", "^# ", "--out", tmp_path / "out", *SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(gathering, "gate_gradients", _stop(error))  # after the sweep
        found, out, err = run(*command)
    assert (found, out) == (code, "")
    assert said in err
    assert f"kept in {tmp_path / 'out.unfinished'}, and the same command goes on from there" in err
    assert not (tmp_path / "out").exists()
    kept = sorted((tmp_path / "out.unfinished" / "pieces").iterdir())
    times = [piece.stat().st_mtime_ns for piece in kept]
    assert kept

    with monkeypatch.context() as patch:
        patch.setattr(gathering, "gate_gradients", _stop(error))
        run(*command)
    assert [piece.stat().st_mtime_ns for piece in kept] == times, "measured once"

    (tmp_path / "out.unfinished" / "mine.txt").write_text("mine")
    code, _, _ = run(*command)
    assert code == 0
    assert [path.name for path in (tmp_path / "out.unfinished").iterdir()] == ["mine.txt"], "what is ours goes"
    assert hs.Analysis.load(tmp_path / "out").anatomy.n_heads == 16


@pytest.mark.parametrize("wrong", [("--metric", "nonsense"), ("--max-loss-rise", "x"), ("--split", "^w1")])
def test_what_is_refused_leaves_nothing(
    run: Run, folder: Path, text: Path, tmp_path: Path, wrong: tuple[str, str]
) -> None:
    code, _, _ = run("analyze", folder, "--text", text, "--split", "^# ", "--out", tmp_path / "out", *SMALL, *wrong)
    assert code == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_interrupted_before_anything_is_kept_says_so(
    run: Run, folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headscope.analysis.discover", _stop(KeyboardInterrupt))
    code, _, err = run("analyze", folder, "--text", text, "--split", "^# ", "--out", tmp_path / "out", *SMALL)
    assert (code, "interrupted; nothing was written" in err) == (130, True)


def test_a_folder_of_the_users_own_is_not_touched(run: Run, folder: Path, text: Path, tmp_path: Path) -> None:
    own = tmp_path / "out.unfinished"
    own.mkdir()
    (own / "mine.txt").write_text("mine")
    code, _, err = run("analyze", folder, "--text", text, "--split", "^# ", "--out", tmp_path / "out", *SMALL)
    assert code == 1
    assert "holds something that is no such work" in err
    assert [path.name for path in own.iterdir()] == ["mine.txt"]
