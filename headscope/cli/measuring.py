"""Commands that measure: the whole story, how alike heads are, what each is worth, what changed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headscope.cli.application import command
from headscope.cli.options import (
    AsJson,
    Intervals,
    Loading,
    Memory,
    Metric,
    Model,
    Null,
    Sampling,
    Skip,
    Tables,
    Tokens,
    check_same_tokens,
    compared,
    registered,
)
from headscope.cli.printing import print_json, print_table, progress_told, records
from headscope.cli.story import Report, Story

if TYPE_CHECKING:
    import pandas as pd

    from headscope.contrast import Contrast
    from headscope.tables import HeadTable, PairTable

__all__: list[str] = []

_GROUP = "Measure"
_SHOWN = 10
_MEASURES, _SCORES = registered("likeness/measures"), registered("scoring/scores")


@command(_GROUP, "analyze")
def analyze_(
    model: Model,
    report: Report,
    story: Story = Story(),
    claims: Annotated[
        bool, typer.Option("--claims/--no-claims", help="ask the paper's claims of the model too, which takes longest")
    ] = False,
    loading: Loading = Loading(),
    as_json: AsJson = False,
) -> None:
    """Measure every head of a model and write the report.

    If it is interrupted, the same command goes on: effects are kept in OUT.unfinished until the report is written.
    Under a metric of your own nothing is kept.

    Example: headscope analyze ./my-model --text notes.txt --out report
    """
    report.check()
    report.write(story.analysis(model, loading, report.unfinished, claims=claims), as_json=as_json)


@command(_GROUP, "similarity")
def similarity_(
    model: Model,
    saving: Tables = Tables(),
    measure: Annotated[list[str] | None, typer.Option(help=f"{_MEASURES}; repeatable [default: cka]")] = None,
    of: Annotated[
        str | None,
        typer.Option(
            help=f"what is compared: {compared('likeness/measures')}; with several measures, those that cannot "
            "compare it use their own default",
            show_default="the first that the measure compares",
        ),
    ] = None,
    scope: Annotated[str, typer.Option(help="layer, or model: every head with every other")] = "layer",
    other: Annotated[str | None, typer.Option(help="a second model, compared with the first on the same text")] = None,
    memory: Memory = "2GB",
    intervals: Intervals = False,
    null: Null = "",
    sampling: Sampling = Sampling(length=256),
    skip_first: Skip = 0,
    loading: Loading = Loading(),
    as_json: AsJson = False,
) -> None:
    """Measure how alike the heads of a model are, with intervals over documents.

    Example: headscope similarity ./my-model --measure cka --measure pattern_js --text notes.txt --out alike
    """
    from headscope.likeness.asking import How, needs_text
    from headscope.likeness.comparing import compare_heads
    from headscope.likeness.measures import MEASURES

    saving.check()
    chosen = [MEASURES[name]() for name in dict.fromkeys(measure or ["cka"])]
    # of several measures, one that does not compare what was asked for compares its own
    several = any(of in one.sources for one in chosen)
    asked = [(one, None if several and of not in one.sources else of) for one in chosen]
    how = How(scope=scope, memory=memory, intervals=intervals, skip_first=skip_first, seed=sampling.seed, null=null)
    reads = any(needs_text(one) for one in chosen)
    texts = sampling.texts()
    loaded = loading.load(model)
    second = None if other is None else loading.load(other)
    if second is not None and reads:
        check_same_tokens(loaded, second)
    # what comes with a model is what it is probed with, if it is none of transformers
    probed = loaded.batches is not None or (loaded.tokenizer is not None and not hasattr(loaded.model, "config"))
    batches = sampling.batches(loaded, texts) if reads or probed else None
    with progress_told() as step:
        tables = compare_heads(
            loaded.model, batches, asked, how, other=None if second is None else second.model, progress=step
        )
    _hand_over(tables, saving, _apart, _print_pairs, as_json=as_json)


@command(_GROUP, "importance")
def importance_(
    model: Model,
    saving: Tables = Tables(),
    score: Annotated[list[str] | None, typer.Option(help=f"{_SCORES}; repeatable [default: ablation]")] = None,
    metric: Metric = "auto",
    sampling: Sampling = Sampling(),
    tokens: Tokens = None,
    skip_first: Skip = 0,
    null: Null = "",
    loading: Loading = Loading(),
    as_json: AsJson = False,
) -> None:
    """Measure what each head is worth, with intervals over documents.

    Example: headscope importance ./my-model --score ablation --score norm --text notes.txt --out worth
    """
    from headscope.scoring.rating import by_metric, importance
    from headscope.scoring.scores import SCORES
    from headscope.tables import HeadTable

    saving.check()
    chosen = [SCORES[name]() for name in dict.fromkeys(score or ["ablation"])]
    texts = sampling.texts()
    loaded = loading.load(model)
    batches = sampling.batches(loaded, texts)
    anatomy, sample = sampling.for_effects(loaded, batches, tokens)
    with progress_told() as step:
        settings: dict[str, Any] = {
            "anatomy": anatomy, "skip_first": skip_first, "seed": sampling.seed, "null": null, "progress": step
        }  # fmt: skip
        tables = [
            importance(loaded.model, sample if by_metric(one) else batches, one, metric, **settings) for one in chosen
        ]
    _hand_over(tables, saving, HeadTable.to_frame, _print_heads, as_json=as_json)


@command(_GROUP, "compare")
def compare_(
    a: Annotated[str, typer.Argument(metavar="A", help="a saved analysis, or a model", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="another one", show_default=False)],
    saving: Tables = Tables(),
    score: Annotated[
        list[str] | None, typer.Option(help=f"of two models: {_SCORES}; repeatable [default: ablation, norm]")
    ] = None,
    metric: Metric = "auto",
    sampling: Sampling = Sampling(),
    tokens: Tokens = None,
    skip_first: Skip = 0,
    loading: Loading = Loading(),
    as_json: AsJson = False,
) -> None:
    """Say what changed between two saved analyses, or between two models on the same text, head by head.

    Example: headscope compare report-before report-after
    """
    from headscope.analysis import Analysis
    from headscope.contrast import compare
    from headscope.errors import InputError

    saving.check()
    saved = [_is_analysis(Path(name)) for name in (a, b)]
    last = Path(a).name, Path(b).name
    names = last if last[0] != last[1] else (a, b)
    if all(saved):
        asked = {"--score": score, "--text": sampling.text, "--tokens": tokens, "--skip-first": skip_first}
        if ignored := [option for option, value in asked.items() if value]:
            raise InputError(f"{', '.join(ignored)}: of two models; two saved analyses are compared as they are")
        contrast = compare(Analysis.load(a), Analysis.load(b), names=names)
    elif any(saved):
        raise InputError(f"{a} and {b}: one is a saved analysis and the other a model; compare two of a kind")
    else:
        texts = sampling.texts()
        first, second = loading.load(a), loading.load(b)
        check_same_tokens(first, second)
        batches = sampling.batches(first, texts)
        _, sample = sampling.for_effects(first, batches, tokens)
        with progress_told() as step:
            contrast = compare(
                first.model, second.model, batches, scores=score or ("ablation", "norm"), metric=metric, names=names,
                sample=list(sample), skip_first=skip_first, progress=step,
            )  # fmt: skip
    if saving.out is not None:
        contrast.save(saving.out, force=saving.force)
    if as_json:
        about = {"names": contrast.names, "sentence": contrast.sentence, "facts": dict(contrast.facts)}
        print_json({**about, "rows": records(contrast.frame), "itself": records(contrast.itself)})
        return
    _print_contrast(contrast)


def _is_analysis(folder: Path) -> bool:
    return (folder / "analysis.json").exists() or (folder / "run" / "analysis.json").exists()


def _hand_over(
    tables: "Sequence[Any]",
    saving: Tables,
    rows: "Callable[[Any], pd.DataFrame]",
    show: Callable[[Any], None],
    *,
    as_json: bool,
) -> None:
    """Write tables where they are wanted, then print them, as JSON with these rows or as they are shown."""
    saving.write(tables)
    if as_json:
        print_json({table.name: _as_json(table, rows(table)) for table in tables})
        return
    for table in tables:
        show(table)
    if saving.out is not None:
        typer.echo(f"tables: {saving.out}")


def _as_json(table: "PairTable | HeadTable", rows: "pd.DataFrame") -> dict[str, Any]:
    """What a table is of, and its rows."""
    from headscope.tables import PairTable

    about = {"of": table.of} if isinstance(table, PairTable) else {"unit": table.unit}
    return {**about, "facts": dict(table.facts), "rows": records(rows)}


def _say_why(table: "PairTable | HeadTable") -> None:
    from headscope._support.shown import reasons

    for reason in reasons(table.facts):
        typer.echo(reason)


def _apart(table: "PairTable") -> "pd.DataFrame":
    """Pairs of different heads, most alike first; of two models, every pair."""
    frame = table.to_frame().sort_values("value", ascending=False, kind="stable")
    return frame if table.other is not None else frame[frame["head_a"] != frame["head_b"]]


def _print_pairs(table: "PairTable") -> None:
    from headscope._support.formatting import interval, number
    from headscope.tables import NULLS

    columns = ["head", "head", "value", "95% interval", *(NULLS[name] for name in table.nulls)]
    rows = []
    for row in _apart(table).head(_SHOWN).to_dict("records"):
        nulls = [number(row[name]) for name in table.nulls]
        rows.append((row["head_a"], row["head_b"], number(row["value"]), interval(row["low"], row["high"]), *nulls))
    print_table(f"{table.name} of {table.of}: most alike", columns, rows)
    _say_why(table)


def _print_heads(table: "HeadTable") -> None:
    import pandas as pd

    from headscope._support.formatting import interval, number

    frame = table.to_frame().sort_values("score", ascending=False, kind="stable")
    some = frame if len(frame) <= 2 * _SHOWN else pd.concat([frame.head(_SHOWN), frame.tail(_SHOWN)])
    rows = [
        (
            f"L{row['layer']}H{row['head']}", number(row["score"]), interval(row["low"], row["high"]),
            *(number(row[name]) for name in table.columns),
        )
        for row in some.to_dict("records")
    ]  # fmt: skip
    unit = f", {table.unit}" if table.unit else ""
    print_table(f"{table.name}{unit}: highest and lowest", ("head", "score", "95% interval", *table.columns), rows)
    _say_why(table)


def _print_contrast(contrast: "Contrast") -> None:
    from headscope._support.formatting import fixed, interval, number

    typer.echo(contrast.sentence)
    changed = [
        (
            f"L{row['layer']}H{row['head']}", row["score"], number(row["first"]), number(row["second"]),
            number(row["change"]), interval(row["low"], row["high"]), number(row["q_value"]),
        )
        for row in contrast.changed.head(2 * _SHOWN).to_dict("records")
    ]  # fmt: skip
    if changed:
        print_table("what changed", ("head", "score", *contrast.names, "change", "95% interval", "q"), changed)
    alike = [
        (f"L{row['layer']}H{row['head']}", fixed(row["cka"]), interval(row["low"], row["high"]))
        for row in contrast.itself.head(_SHOWN).to_dict("records")
    ]
    if alike:
        print_table("least like themselves", ("head", "CKA", "95% interval"), alike)
