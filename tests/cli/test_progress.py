"""How far commands are: a bar where somebody looks at a terminal, plain lines in a log."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from headscope.cli import printing
from tests.cli.conftest import LOGGED, SMALL

STEPS = """
from headscope.cli.printing import progress_told
with progress_told() as step:
    step("watching", 2, 2)
    step("watching", 1, 3)
    step("streaming", 1, 0)
print("done")
"""
LOG = ["0:00 watching: 2 of 2", "0:00 watching: 1 of 3", "0:00 streaming: 1"]


def in_terminal(source: str, **environment: str) -> str:
    """What a script shows on stderr, where that is a terminal."""
    ours, its = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", source], stderr=its, stdout=subprocess.PIPE, env=os.environ | environment, check=True
    )
    os.close(its)
    assert done.stdout.decode().split() == ["done"]
    shown = b""
    while chunk := _read(ours):
        shown += chunk
    os.close(ours)
    return shown.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux's word for the end of what was written there
        return b""


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}], ids=["plain", "no colour"])
def test_a_terminal_has_a_bar_that_begins_anew_where_a_stage_comes_again(environment: dict[str, str]) -> None:
    shown = in_terminal(STEPS, COLUMNS="100", **environment)
    assert "\x1b[" in shown
    assert any("watching" in line and "1/3" in line for line in shown.splitlines())
    assert any("streaming" in line and "1/?" in line for line in shown.splitlines())


def test_a_terminal_that_moves_no_cursor_has_lines() -> None:
    assert in_terminal(STEPS, TERM="dumb").splitlines() == LOG


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1", "COLUMNS": "20"}], ids=["plain", "forced"])
def test_a_log_has_plain_lines_as_stages_begin(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STEPS], capture_output=True, text=True, env=os.environ | environment, check=True
    )
    assert done.stderr.splitlines() == LOG


def test_lines_come_every_ten_seconds_and_more_rarely_in_long_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    monkeypatch.setattr(printing.time, "monotonic", lambda: now[0])
    with printing.progress_told() as step:
        for _ in range(7200):
            now[0] += 1
            step("ablation", 1, 7200)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == ["0:01 ablation: 1 of 7200", "0:11 ablation: 11 of 7200", "0:21 ablation: 21 of 7200"]
    assert 60 < len(lines) < 120, "two hours"
    assert lines[-1].startswith("11")


def test_a_command_logs_its_stages(folder: Path, text: Path, tmp_path: Path) -> None:
    given = ["analyze", folder, "--text", text, "--split", "^# ", "--out", tmp_path / "out", *SMALL, "--json"]
    source = "from headscope.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", source, *map(str, given)], capture_output=True, text=True, check=True)
    assert LOGGED.sub("", done.stderr) == ""
    stages = [line.split()[1].removesuffix(":") for line in done.stderr.splitlines()]
    assert list(dict.fromkeys(stages)) == ["ablation", "watching", "gradients", "removal", "verdict"]
    assert done.stdout.startswith("{")
    assert done.stdout.count("\n") == 1
