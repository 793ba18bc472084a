"""Commands of the whole story: from a model to a verdict and a smaller model."""

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from headscope._support.folders import check_free, new_file, new_folder
from headscope._support.formatting import number
from headscope.analysis import Analysis, analyze
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
    Split,
    TextFiles,
    Tokens,
    Windows,
    app,
    progress_bar,
    stdout,
)
from headscope.errors import InputError
from headscope.evidence.preparation import Budget
from headscope.heads import Anatomy
from headscope.models.demo import DEMO_MODELS, demo_model
from headscope.models.loading import Loaded, load_model
from headscope.planning.planner import plan as make_plan
from headscope.plans import Plan
from headscope.surgery import prune as cut_heads
from headscope.surgery import save
from headscope.text.batches import Batch
from headscope.text.corpus import text_batches
from headscope.text.texts import Texts, read_texts

__all__: list[str] = []


@app.callback(invoke_without_command=True)
def _version(
    show: Annotated[bool, typer.Option("--version", help="print the version and stop", is_eager=True)] = False,
) -> None:
    if show:
        typer.echo(f"headscope {version('headscope')}")
        raise typer.Exit


@app.command()
def demo(
    model: Annotated[str, typer.Option(help=" or ".join(DEMO_MODELS))] = "minilm",
    out: Annotated[Path | None, typer.Option(help="output folder", show_default="headscope-demo-MODEL")] = None,
    force: Force = False,
    device: Device = "auto",
    dtype: Dtype = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Analyse a real model that comes as a package, on text that comes with Python.

    Example: headscope demo
    """
    out = Path(f"headscope-demo-{model}") if out is None else out
    check_free(out, force=force)
    loaded = replace(load_model(demo_model(model), device=device, dtype=dtype), name=DEMO_MODELS[model])
    _analyze(loaded, None, Budget(seed=seed), "auto", out, force, as_json)


@app.command()
def inspect(
    model: Model,
    device: Device = "auto",
    dtype: Dtype = None,
    as_json: AsJson = False,
    trust_remote_code: Remote = False,
) -> None:
    """Print where a model's attention heads are.

    Example: headscope inspect ./my-model
    """
    loaded = load_model(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    anatomy = discover(loaded.model, _example(loaded))
    if as_json:
        typer.echo(anatomy.to_json())
        return
    _print_anatomy(anatomy)


@app.command(name="analyze")
def analyze_(
    model: Model,
    out: Annotated[Path, typer.Option(help="output folder: index.html, tables/, figures/, run/")],
    text: TextFiles = None,
    split: Split = None,
    metric: Metric = "auto",
    windows: Windows = 256,
    length: Length = 128,
    ablation_tokens: Tokens = None,
    force: Force = False,
    device: Device = "auto",
    dtype: Dtype = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    trust_remote_code: Remote = False,
) -> None:
    """Measure every head of a model and write the report.

    Example: headscope analyze ./my-model --text notes.txt --out report
    """
    check_free(out, force=force)
    budget = Budget(length=length, windows=windows or None, ablation_tokens=ablation_tokens, seed=seed)
    texts = read_texts(text, split) if text else None
    loaded = load_model(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    _analyze(loaded, texts, budget, metric, out, force, as_json)


@app.command(name="plan")
def plan_(
    run: Annotated[
        Path, typer.Argument(help="a saved analysis: what `headscope analyze --out` wrote", show_default=False)
    ],
    share: Annotated[float, typer.Option(help="share of the heads to remove, 0 to 1", show_default=False)],
    out: Annotated[Path, typer.Option(help="plan file (JSON)")] = Path("plan.json"),
    score: Annotated[str, typer.Option(help="score that decides: needed, ablation, gradient, norm")] = "needed",
    uniform: Annotated[bool, typer.Option("--uniform", help="as many heads in each layer")] = False,
    keep_per_layer: Annotated[int, typer.Option(help="heads that each layer keeps at least")] = 1,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Choose which heads to remove, from a saved analysis: so large a share, whatever it costs. Needs no model.

    The verdict's own choice, within its budget, is the column "chosen" of the analysis' candidates.

    Example: headscope plan report --share 0.3 --out plan.json
    """
    analysis = Analysis.load(run)
    made = _planned(analysis, share, score, uniform, keep_per_layer)
    new_file(out, made.to_json(), force=force)
    if as_json:
        typer.echo(made.to_json())
        return
    typer.echo(
        f"{len(made.heads)} of {analysis.anatomy.n_heads} heads, lowest by {score}: {', '.join(map(str, made.heads))}"
    )
    typer.echo(f"written to {out}")


@app.command(name="prune")
def prune_(
    model: Model,
    out: Annotated[Path, typer.Option(help="folder of the smaller model")],
    plan: Annotated[Path | None, typer.Option(help="plan file made by `headscope plan`", show_default=False)] = None,
    share: Annotated[
        float | None, typer.Option(help="instead of a plan: share of the heads to remove", show_default=False)
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="with --share: a saved analysis to choose by; else one is made")
    ] = None,
    text: TextFiles = None,
    split: Split = None,
    force: Force = False,
    device: Device = "auto",
    dtype: Dtype = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    trust_remote_code: Remote = False,
) -> None:
    """Remove heads for real: a smaller model, proven equal to the masked one on real text before it is written.

    Example: headscope prune ./my-model --plan plan.json --out smaller
    """
    if (plan is None) == (share is None):
        raise typer.BadParameter("give either --plan FILE or --share X")
    check_free(out, force=force)
    texts = read_texts(text, split) if text else None
    loaded = load_model(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    if plan is not None:
        chosen = Plan.from_json(_read_text(plan))
    else:
        analysis = Analysis.load(run) if run is not None else _run(loaded, texts, Budget(seed=seed))
        chosen = _planned(analysis, share or 0.0, "needed", False, 1)
    batches = _proof(loaded, texts, seed)
    before = sum(parameter.numel() for parameter in loaded.model.parameters())
    smaller = cut_heads(loaded.model, chosen, batches=batches)
    after = sum(parameter.numel() for parameter in smaller.parameters())
    save(smaller, out, tokenizer=loaded.tokenizer, force=force)
    facts = {
        "removed": [str(head) for head in chosen.heads],
        "parameters_before": before,
        "parameters_after": after,
        "out": str(out),
    }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    own = "" if hasattr(loaded.model, "config") else ", model=an_instance_of_the_original"
    typer.echo(
        f"removed {len(chosen.heads)} heads: {before:,} → {after:,} parameters ({1 - after / before:.1%} fewer); "
        f"equal to the masked model on real input\nwritten to {out}; load it with headscope.load({str(out)!r}{own})"
    )


def _analyze(
    loaded: Loaded, texts: Texts | None, budget: Budget, metric: str, out: Path, force: bool, as_json: bool
) -> None:
    analysis = _run(loaded, texts, budget, metric)
    with new_folder(out, force=force) as new:
        analysis.report(new)
        analysis.save(new / "run")
    if as_json:
        typer.echo(json.dumps({"out": str(out), "verdict": analysis.verdict.to_json(), "facts": dict(analysis.facts)}))
        return
    typer.echo(analysis.verdict.sentence)
    _print_candidates(analysis)
    typer.echo(f"report: {out / 'index.html'}")


def _run(loaded: Loaded, texts: Texts | None, budget: Budget, metric: str = "auto") -> Analysis:
    with progress_bar() as progress:
        return analyze(loaded, texts=texts, metric=metric, budget=budget, progress=progress)


def _planned(analysis: Analysis, share: float, score: str, uniform: bool, keep_per_layer: int) -> Plan:
    if score not in analysis.scores or score == "replaceability":
        usable = ", ".join(name for name in analysis.scores if name != "replaceability")
        raise InputError(f"a plan cannot be made by {score!r}; this analysis holds: {usable}")
    return make_plan(analysis.scores[score], share=share, uniform=uniform, keep_per_layer=keep_per_layer)


def _proof(loaded: Loaded, texts: Texts | None, seed: int) -> list[Batch] | None:
    """A little real text that the pruned model is compared on; None where there is no tokenizer."""
    if loaded.batches is not None and texts is None:
        return list(loaded.batches[:1])
    if loaded.tokenizer is None:
        return None
    return list(text_batches(loaded.tokenizer, texts, length=64, size=4, windows=4, seed=seed))


def _example(loaded: Loaded) -> Batch | None:
    return probe_example(loaded.model, loaded.batches[0]) if loaded.batches else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the plan {path}: {error}") from error


def _print_anatomy(anatomy: Anatomy) -> None:
    table = Table(title=f"{anatomy.model_class}: {anatomy.n_heads} heads in {len(anatomy.sites)} layers")
    for column in ("layer", "kind", "module", "heads", "KV heads", "head_dim", "route", "can be cut"):
        table.add_column(column, overflow="fold")
    for site in anatomy.sites:
        cut = "yes" if site.prunable and not site.entangled else f"mixed in {', '.join(site.entangled) or 'o'}"
        row = (site.layer, site.kind, site.module_name, site.n_heads, site.n_kv_heads, site.head_dim)
        table.add_row(*map(str, row), site.route, cut)
    stdout.print(table)
    for remark in anatomy.remarks:
        typer.echo(remark)


def _print_candidates(analysis: Analysis) -> None:
    table = Table(title="first to cut")
    for column in ("head", "importance", "replaceability", "stand-in", "reason"):
        table.add_column(column)
    for row in analysis.candidates.head(8).to_dict("records"):
        numbers = number(row["importance"]), number(row["replaceability"])
        table.add_row(row["head"], *numbers, row["stand_in"], row["reason"])
    stdout.print(table)
