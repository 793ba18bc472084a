"""Commands of the studies: how many heads a task wants, and what the paper's claims come to."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from headscope.cli.options import AsJson, Split, TextFiles, app, progress_bar, stdout
from headscope.errors import InputError
from headscope.formatting import MISSING, number
from headscope.studies.headcount import Settings, Sweep, draw, sweep
from headscope.studies.tasks import TASKS
from headscope.texts import read_texts

__all__: list[str] = []

_FULL = Settings()


@app.command()
def headcount(
    out: Annotated[Path, typer.Option(help="output folder; finished runs are kept there, and the command goes on")],
    quick: Annotated[
        bool, typer.Option("--quick", help="look-ups and maps, 1, 4, 16 and 64 heads, 3 seeds: a taste, no evidence")
    ] = False,
    task: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(TASKS)}; maps-LENGTH for maps of so many tokens; repeatable [default: all]"),
    ] = None,
    heads: Annotated[
        str | None, typer.Option(help="numbers of heads, separated by commas", show_default="1,2,4,…,64")
    ] = None,
    head_dim: Annotated[
        int, typer.Option(help="dimensions of a head in the arm where they are fixed")
    ] = _FULL.head_dim,
    seeds: Annotated[
        int | None, typer.Option(help="runs of each case", show_default=f"{_FULL.seeds}, or 3 with --quick")
    ] = None,
    text: TextFiles = None,
    split: Split = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="runs at a time, one thread each", show_default="one a core")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train the same small transformer with few heads and with many: how many does a task want?

    Once with the width shared among the heads, and once with heads of fixed size. Interrupted, it goes on where it was.

    Example: headscope headcount --quick --out heads
    """
    settings = Settings.quick() if quick else _FULL
    settings = replace(
        settings,
        tasks=tuple(task) if task else settings.tasks,
        heads=_counts(heads) if heads else settings.heads,
        head_dim=head_dim,
        seeds=settings.seeds if seeds is None else seeds,
    )
    texts = read_texts(text, split) if text else None
    with progress_bar() as step:
        found = sweep(out, settings, texts=texts, workers=workers, progress=step)
    found.save(out)
    draw(found, out)
    if as_json:
        shapes = json.loads(found.shapes.to_json(orient="records", double_precision=15))
        typer.echo(json.dumps({"out": str(out), "shapes": shapes, "facts": dict(found.facts)}))
        return
    _print_shapes(found)
    typer.echo(f"tables and figures: {out}")


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--heads takes whole numbers separated by commas, as in 1,4,16; it was {text!r}") from None


def _print_shapes(found: Sweep) -> None:
    table = Table(
        title="error against the number of heads, and how much worse the fewest and the most do than the best"
    )
    for column in ("task", "arm", "best", "error there", "as good", "fewest heads", "most heads"):
        table.add_column(column)
    for row in found.shapes.to_dict("records"):
        ends = [_end(row, end) for end in ("few", "many")]
        error = f"{number(row['best_error'])} {row['unit']}"
        table.add_row(row["task"], row["arm"], str(row["best"]), error, row["good"], *ends)
    stdout.print(table)
    typer.echo("in percent of what the best learns over chance, with 95% intervals over seeds")


def _end(row: dict[str, Any], end: str) -> str:
    middle, low, high = (_percent(row[name]) for name in (end, f"{end}_low", f"{end}_high"))
    return f"{middle} ({low} to {high}): {row[f'{end}_is']}"


def _percent(share: float) -> str:
    return MISSING if share != share else f"{100 * share:.1f}%".replace("-", "−")
