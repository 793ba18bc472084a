"""What commands print: tables, one JSON object, a progress bar."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.progress import TaskID

__all__ = ["print_json", "print_table", "progress_bar", "records"]

_PIPE = 200  # columns: a pipe has no width to fit into


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


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr; nothing at all where stderr is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = _stderr()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
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
