"""What commands print: tables, one JSON object, how far they are."""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.progress import TaskID

    from headscope._support.progress import Progress

__all__ = ["print_json", "print_table", "progress_told", "records", "say"]

_PIPE = 200  # columns: a pipe has no width to fit into
_EVERY = 10.0, 0.05  # seconds between two lines of a log, at least; and the same as a share of the time so far


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table with a title, on stdout.

    Args:
        title: what it is of.
        columns: their heads.
        rows: cells as text; a long one is folded.
    """
    from rich.table import Table

    table = Table(title=title)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    _stdout().print(table)


def print_json(values: Mapping[str, Any]) -> None:
    """One JSON object, on stdout.

    Args:
        values: without NaN, which JSON does not know.
    """
    typer.echo(json.dumps(values, allow_nan=False))


def records(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    """Rows as JSON values, what is not defined as null.

    Args:
        frame: of plain columns.
    """
    import pandas as pd

    return [
        {name: None if isinstance(value, float) and pd.isna(value) else value for name, value in row.items()}
        for row in frame.astype(object).where(frame.notna(), None).to_dict("records")
    ]


def say(line: str) -> None:
    """A line about the work, on stderr, at once.

    Args:
        line: without its end.
    """
    print(line, file=sys.stderr, flush=True)


@contextmanager
def progress_told() -> Iterator["Progress"]:
    """How far the work is, on stderr: a bar in a terminal; in a log plain lines, as each stage begins and now and then.

    Colours and codes that move the cursor are for terminals alone, whatever FORCE_COLOR says, and not for dumb ones.
    """
    console = _stderr()
    if sys.stderr.isatty() and console.is_terminal and not console.is_dumb_terminal:
        with _bar(console) as step:
            yield step
    else:
        yield _log()


def _log() -> "Progress":
    begun = time.monotonic()
    told = begun
    stages: dict[str, tuple[int, int]] = {}  # how far each is, of how many steps

    def step(stage: str, done: int, total: int) -> None:
        nonlocal told
        before, whole = stages.get(stage, (0, 0))
        begins = stage not in stages or before >= whole > 0  # for the first time, or again
        stages[stage] = (done if begins else before + done), total
        now = time.monotonic()
        least, share = _EVERY
        if begins or now - told >= max(least, share * (now - begun)):
            told = now
            minutes, seconds = divmod(int(now - begun), 60)
            say(f"{minutes}:{seconds:02} {stage}: {stages[stage][0]}{f' of {total}' if total else ''}")

    return step


@contextmanager
def _bar(console: "Console") -> "Iterator[Progress]":
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
    )  # fmt: skip
    with progress.Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def step(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total or None)
            elif bar.tasks[tasks[stage]].finished:  # the stage has come again
                bar.reset(tasks[stage], total=total or None)
            bar.advance(tasks[stage], done)

        yield step


@cache
def _stdout() -> "Console":
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=_PIPE)


@cache
def _stderr() -> "Console":
    from rich.console import Console

    return Console(stderr=True)
