"""The command of the support matrix: which model types of transformers headscope reads and cuts."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headscope.cli.application import command
from headscope.cli.options import AsJson, Force
from headscope.cli.printing import print_json, print_table, progress_told

if TYPE_CHECKING:
    from headscope.studies.families import FamilyTable

__all__: list[str] = []


@command("Study")
def families(
    types: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TYPE", help="model types as transformers calls them, as llama; without any, see --quick"
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="one type for each way in which attention is laid out; what is done anyway")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="every model type: half an hour")] = False,
    out: Annotated[
        Path | None, typer.Option(help="a CSV file; the command goes on in FILE.unfinished where it was interrupted")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="model types at a time, one thread each")] = 1,
    seconds: Annotated[float, typer.Option(min=1, help="time that one model type may take")] = 60.0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Try headscope on tiny random models of transformers' model types: found, captured, cut, saved, each checked.

    Nothing is downloaded. Every check is made with plain hooks, beside the proofs that headscope makes itself. The exit
    code is 1 if a capture or a cut is wrong, or something failed that should have been refused.

    Example: headscope families llama bert t5
    """
    from headscope._support.folders import check_new
    from headscope._support.kept import remove_kept
    from headscope.studies.families import QUICK, Limits, all_types, run_types
    from headscope.studies.families.outcomes import OUTCOMES, outcome

    wanted = _wanted(types, quick=quick, everything=everything)
    if out is not None:
        check_new(out, force=force)
    names = {"all": all_types(), "quick": QUICK}.get(wanted, tuple(types or ()))
    keep = None if out is None else out.with_name(f"{out.name}.unfinished")
    limits = Limits(seconds=seconds, at_once=workers)
    with progress_told() as step:
        found = run_types(names, exported=() if wanted == "all" else names, keep=keep, limits=limits, progress=step)
    if out is not None:
        found.write(out)
        assert keep is not None
        remove_kept(keep)
    if as_json:
        print_json({"types": [row.to_json() for row in found.rows], "counts": found.counts(), "facts": {**found.facts}})
    else:
        _print(found)
    wrong = [row.model_type for row in found.rows if outcome(row) == OUTCOMES[0]]
    if wrong:
        typer.echo(f"headscope: {OUTCOMES[0]}: {', '.join(wrong)}", err=True)
        raise typer.Exit(1)


def _wanted(types: Sequence[str] | None, *, quick: bool, everything: bool) -> str:
    """Which are tried: all, the quick ones, or those named.

    Raises:
        InputError: several were asked for.
    """
    from headscope.errors import InputError

    if sum((bool(types), quick, everything)) > 1:
        raise InputError("name model types, or give --quick, or --all; one of them")
    return "all" if everything else "named" if types else "quick"


def _print(found: "FamilyTable") -> None:
    columns = ("built", "forward", "found", "captured", "cut", "saved", "trained", "generated", "copied", "exported")
    rows = [
        (row.model_type, str(row.sites), *(getattr(row, column) or "–" for column in columns)) for row in found.rows
    ]
    print_table("what headscope does with tiny random models", ("model type", "sites", *columns), rows)
    for row in found.rows:
        for column, why in row.why.items():
            typer.echo(f"{row.model_type}, {column}: {why}")
    typer.echo("; ".join(f"{name}: {count}" for name, count in found.counts().items()))
