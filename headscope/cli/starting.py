"""Commands to start with: a demo that needs nothing, and where a model's heads are."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headscope.cli.application import command
from headscope.cli.options import AsJson, Force, Loading, Model, Seed
from headscope.cli.printing import print_table
from headscope.cli.story import Report, analyzed

if TYPE_CHECKING:
    from headscope.sites import Anatomy

__all__: list[str] = []

_GROUP = "Start"


@command(_GROUP)
def demo(
    model: Annotated[str, typer.Option(help="minilm or gemma")] = "minilm",
    out: Annotated[Path | None, typer.Option(help="output folder", show_default="headscope-demo-MODEL")] = None,
    force: Force = False,
    loading: Loading = Loading(),
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Analyse a real model that comes as a package, on text that comes with Python.

    Example: headscope demo
    """
    report = Report(Path(f"headscope-demo-{model}") if out is None else out, force)
    report.check()
    from headscope.models.demo import DEMO_MODELS, demo_model
    from headscope.verdict.preparation import Budget

    loaded = replace(loading.load(demo_model(model)), name=DEMO_MODELS[model])
    report.write(analyzed(loaded, None, Budget(seed=seed, claims=True), keep=report.unfinished), as_json=as_json)


@command(_GROUP)
def inspect(model: Model, loading: Loading = Loading(), as_json: AsJson = False) -> None:
    """Print where a model's attention heads are.

    Example: headscope inspect ./my-model
    """
    from headscope.anatomy import discover

    loaded = loading.load(model)
    anatomy = discover(loaded.model, loaded.batches[0] if loaded.batches else None)
    if as_json:
        typer.echo(anatomy.to_json())
        return
    _print_anatomy(anatomy)


def _print_anatomy(anatomy: "Anatomy") -> None:
    rows = []
    for site in anatomy.sites:
        apart = "yes" if site.prunable and not site.entangled else f"mixed in {', '.join(site.entangled) or 'o'}"
        counts = site.n_heads, site.n_kv_heads, site.head_dim
        rows.append((str(site.layer), site.kind, site.module_name, *map(str, counts), site.route, apart))
    columns = ("layer", "kind", "module", "heads", "KV heads", "head_dim", "route", "heads apart")
    print_table(f"{anatomy.model_class}: {anatomy.n_heads} heads in {len(anatomy.sites)} layers", columns, rows)
    for remark in anatomy.remarks:
        typer.echo(remark)
