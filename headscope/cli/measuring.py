"""Commands that measure one thing: how alike heads are, what each is worth, what they do, what changed."""

import json
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.table import Table

from headscope._support.folders import check_free, new_folder
from headscope._support.formatting import fixed, interval, number
from headscope._support.shown import reasons
from headscope.analysis import Analysis
from headscope.anatomy import discover
from headscope.anatomy.examples import probe_example
from headscope.cli.options import (
    AsJson,
    Device,
    Dtype,
    Force,
    Length,
    Metric,
    Model,
    Remote,
    Seed,
    Skip,
    Split,
    TextFiles,
    Tokens,
    Windows,
    app,
    check_same_tokens,
    progress_bar,
    read_batches,
    stdout,
)
from headscope.contrast import Contrast, compare
from headscope.errors import InputError
from headscope.evidence.preparation import affordable_tokens
from headscope.likeness.comparing import How, compare_heads, needs_text
from headscope.likeness.measures import MEASURES
from headscope.models.loading import load_model
from headscope.scoring.rating import by_metric, importance
from headscope.scoring.scores import SCORES
from headscope.tables import HeadTable, PairTable
from headscope.text.splits import sample_batches
from headscope.text.texts import read_texts

__all__: list[str] = []

_SHOWN = 10


@app.command(name="similarity")
def similarity_(
    model: Model,
    out: Annotated[Path | None, typer.Option(help="folder for the tables (CSV, Parquet, JSON)")] = None,
    measure: Annotated[list[str] | None, typer.Option(help=f"{', '.join(MEASURES)}; repeatable [default: cka]")] = None,
    of: Annotated[
        str | None,
        typer.Option(
            help="z, q, k, v or contribution; one of several measures that compares no such thing compares its own",
            show_default="the measure's own",
        ),
    ] = None,
    scope: Annotated[str, typer.Option(help="layer, or model: every head with every other")] = "layer",
    other: Annotated[str | None, typer.Option(help="a second model, compared with the first on the same text")] = None,
    memory: Annotated[str, typer.Option(help="what sums may take; the rest is done in several passes")] = "2GB",
    intervals: Annotated[
        bool, typer.Option("--intervals", help="with --scope model: make intervals, in as many passes as they take")
    ] = False,
    text: TextFiles = None,
    split: Split = None,
    windows: Windows = 64,
    length: Length = 256,
    skip_first: Skip = 0,
    force: Force = False,
    device: Device = "auto",
    dtype: Dtype = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    trust_remote_code: Remote = False,
) -> None:
    """Measure how alike the heads of a model are, with intervals over documents.

    Example: headscope similarity ./my-model --measure cka --measure pattern_js --text notes.txt --out alike
    """
    if out is not None:
        check_free(out, force=force)
    chosen = [MEASURES[name]() for name in dict.fromkeys(measure or ["cka"])]
    # of several measures, one that does not compare what was asked for compares its own
    several = any(of in one.sources for one in chosen)
    asked = [(one, None if several and of not in one.sources else of) for one in chosen]
    how = How(scope=scope, memory=memory, intervals=intervals, skip_first=skip_first, seed=seed)
    reads = any(needs_text(one) for one in chosen)
    texts = read_texts(text, split) if text else None
    loaded = load_model(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    second = None
    if other is not None:
        loaded_other = load_model(other, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        second = loaded_other.model
        if reads:
            check_same_tokens(loaded, loaded_other)
    # a model's own batches are what it is probed with, if it is none of transformers
    batches = read_batches(loaded, texts, length, windows, seed) if reads or loaded.batches is not None else None
    with progress_bar() as step:
        tables = compare_heads(loaded.model, batches, asked, how, other=second, progress=step)
    if out is not None:
        with new_folder(out, force=force) as new:
            for table in tables:
                table.save(new)
    if as_json:
        typer.echo(json.dumps({table.name: _as_json(table, _apart(table)) for table in tables}, allow_nan=False))
        return
    for table in tables:
        _print_pairs(table)
    if out is not None:
        typer.echo(f"tables: {out}")


@app.command(name="importance")
def importance_(
    model: Model,
    out: Annotated[Path | None, typer.Option(help="folder for the tables (CSV, Parquet, JSON)")] = None,
    score: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(SCORES)}; repeatable [default: ablation]")
    ] = None,
    metric: Metric = "auto",
    text: TextFiles = None,
    split: Split = None,
    windows: Windows = 64,
    length: Length = 128,
    tokens: Tokens = None,
    skip_first: Skip = 0,
    force: Force = False,
    device: Device = "auto",
    dtype: Dtype = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    trust_remote_code: Remote = False,
) -> None:
    """Measure what each head is worth, with intervals over documents.

    Example: headscope importance ./my-model --score ablation --score norm --text notes.txt --out worth
    """
    if out is not None:
        check_free(out, force=force)
    chosen = [SCORES[name]() for name in dict.fromkeys(score or ["ablation"])]
    texts = read_texts(text, split) if text else None
    loaded = load_model(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    batches = read_batches(loaded, texts, length, windows, seed)
    anatomy = discover(loaded.model, probe_example(loaded.model, batches[0]))
    sample = sample_batches(batches, tokens or affordable_tokens(loaded.model, anatomy), seed)
    with progress_bar() as step:
        tables = [
            importance(
                loaded.model,
                sample if by_metric(one) else batches,
                one,
                metric,
                anatomy=anatomy,
                skip_first=skip_first,
                progress=step,
            )
            for one in chosen
        ]
    if out is not None:
        with new_folder(out, force=force) as new:
            for table in tables:
                table.save(new)
    if as_json:
        typer.echo(json.dumps({table.name: _as_json(table, table.to_frame()) for table in tables}, allow_nan=False))
        return
    for table in tables:
        _print_heads(table)
    if out is not None:
        typer.echo(f"tables: {out}")


@app.command(name="compare")
def compare_(
    a: Annotated[str, typer.Argument(help="a saved analysis, or a model", show_default=False)],
    b: Annotated[str, typer.Argument(help="another one", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="folder for the tables (CSV, Parquet, JSON)")] = None,
    score: Annotated[
        list[str] | None, typer.Option(help=f"of two models: {', '.join(SCORES)}; repeatable [default: ablation, norm]")
    ] = None,
    metric: Metric = "auto",
    text: TextFiles = None,
    split: Split = None,
    windows: Windows = 64,
    length: Length = 128,
    tokens: Tokens = None,
    skip_first: Skip = 0,
    force: Force = False,
    device: Device = "auto",
    dtype: Dtype = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    trust_remote_code: Remote = False,
) -> None:
    """Say what changed between two saved analyses, or between two models on the same text, head by head.

    Example: headscope compare report-before report-after
    """
    if out is not None:
        check_free(out, force=force)
    saved = [_is_analysis(Path(name)) for name in (a, b)]
    last = Path(a).name, Path(b).name
    names = last if last[0] != last[1] else (a, b)
    if all(saved):
        asked = {"--score": score, "--text": text, "--tokens": tokens, "--skip-first": skip_first}
        if ignored := [option for option, value in asked.items() if value]:
            raise InputError(f"{', '.join(ignored)}: of two models; two saved analyses are compared as they are")
        contrast = compare(Analysis.load(a), Analysis.load(b), names=names)
    elif any(saved):
        raise InputError(f"{a} and {b}: one is a saved analysis and the other a model; compare two of a kind")
    else:
        texts = read_texts(text, split) if text else None
        first, second = (load_model(n, device=device, dtype=dtype, trust_remote_code=trust_remote_code) for n in (a, b))
        check_same_tokens(first, second)
        batches = read_batches(first, texts, length, windows, seed)
        anatomy = discover(first.model, probe_example(first.model, batches[0]))
        sample = list(sample_batches(batches, tokens or affordable_tokens(first.model, anatomy), seed))
        with progress_bar() as step:
            contrast = compare(
                first.model, second.model, batches, scores=score or ("ablation", "norm"), metric=metric, names=names,
                sample=sample, skip_first=skip_first, progress=step,
            )  # fmt: skip
    if out is not None:
        contrast.save(out, force=force)
    if as_json:
        about = {"names": contrast.names, "sentence": contrast.sentence, "facts": dict(contrast.facts)}
        rows = {"rows": _records(contrast.frame), "itself": _records(contrast.itself)}
        typer.echo(json.dumps({**about, **rows}, allow_nan=False))
        return
    _print_contrast(contrast)


def _is_analysis(folder: Path) -> bool:
    return (folder / "analysis.json").exists() or (folder / "run" / "analysis.json").exists()


def _as_json(table: PairTable | HeadTable, rows: pd.DataFrame) -> dict[str, Any]:
    """What a table is of, and its rows."""
    about = {"of": table.of} if isinstance(table, PairTable) else {"unit": table.unit}
    return {**about, "facts": dict(table.facts), "rows": _records(rows)}


def _say_why(table: PairTable | HeadTable) -> None:
    for reason in reasons(table.facts):
        typer.echo(reason)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON values, what is not defined as null."""
    return [
        {name: None if isinstance(value, float) and pd.isna(value) else value for name, value in row.items()}
        for row in frame.astype(object).where(frame.notna(), None).to_dict("records")
    ]


def _apart(table: PairTable) -> pd.DataFrame:
    """Pairs of different heads, most alike first; of two models, every pair."""
    frame = table.to_frame().sort_values("value", ascending=False, kind="stable")
    if table.other is not None:
        return frame
    symmetric = MEASURES[table.name].symmetric
    place = {str(head): index for index, head in enumerate(table.heads)}
    first, second = frame["head_a"].map(place), frame["head_b"].map(place)
    return frame[first < second] if symmetric else frame[first != second]


def _print_pairs(table: PairTable) -> None:
    shown = Table(title=f"{table.name} of {table.of}: most alike")
    columns = ["head", "head", "value", "95% interval", *(["on random tokens"] if table.null is not None else [])]
    for column in columns:
        shown.add_column(column)
    for row in _apart(table).head(_SHOWN).to_dict("records"):
        null = [number(row["null"])] if table.null is not None else []
        shown.add_row(row["head_a"], row["head_b"], number(row["value"]), interval(row["low"], row["high"]), *null)
    stdout.print(shown)
    _say_why(table)


def _print_heads(table: HeadTable) -> None:
    frame = table.to_frame().sort_values("score", ascending=False, kind="stable")
    shown = Table(title=f"{table.name}{f', {table.unit}' if table.unit else ''}: highest and lowest")
    for column in ("head", "score", "95% interval", *table.columns):
        shown.add_column(column)
    some = frame if len(frame) <= 2 * _SHOWN else pd.concat([frame.head(_SHOWN), frame.tail(_SHOWN)])
    for row in some.to_dict("records"):
        further = [number(row[name]) for name in table.columns]
        name = f"L{row['layer']}H{row['head']}"
        shown.add_row(name, number(row["score"]), interval(row["low"], row["high"]), *further)
    stdout.print(shown)
    _say_why(table)


def _print_contrast(contrast: Contrast) -> None:
    typer.echo(contrast.sentence)
    shown = Table(title="what changed")
    for column in ("head", "score", *contrast.names, "change", "95% interval", "q"):
        shown.add_column(column)
    for row in contrast.changed.head(2 * _SHOWN).to_dict("records"):
        ends = interval(row["low"], row["high"])
        values = number(row["first"]), number(row["second"]), number(row["change"]), ends, number(row["q_value"])
        shown.add_row(f"L{row['layer']}H{row['head']}", row["score"], *values)
    if len(contrast.changed):
        stdout.print(shown)
    if len(contrast.itself):
        alike = Table("head", "CKA", "95% interval", title="least like themselves")
        for row in contrast.itself.head(_SHOWN).to_dict("records"):
            ends = interval(row["low"], row["high"])
            alike.add_row(f"L{row['layer']}H{row['head']}", fixed(row["cka"]), ends)
        stdout.print(alike)
