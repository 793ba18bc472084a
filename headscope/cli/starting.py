"""Commands to start with: a demo that needs nothing, and where a model's heads are."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headscope.cli.application import command
from headscope.cli.options import AsJson, Force, Loading, Model, Seed, few_batches
from headscope.cli.printing import print_table, say
from headscope.cli.story import Report, analyzed

if TYPE_CHECKING:
    from headscope.models.loading import Loaded
    from headscope.sites import Anatomy

__all__: list[str] = []

_GROUP = "Start"
_WINDOWS, _LENGTH = 8, 128  # of the forward pass that tells how fast the machine is: a batch of the demo's text
# how many such passes the whole demo is worth: minilm's by processor time, one thread, 2026-11-29; gemma's by its
# heads, tokens and windows: as many, but sweeps over half the tokens
_PASSES = {"minilm": 450, "gemma": 300}


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

    If it is interrupted, the same command goes on: what was measured is kept in OUT.unfinished until the report is
    written.

    Example: headscope demo
    """
    report = Report(Path(f"headscope-demo-{model}") if out is None else out, force)
    report.check()
    begun, page = time.monotonic(), report.out / "index.html"
    say(f"measures every attention head of {model} on the documentation that comes with Python; the report: {page}")
    from headscope._support.formatting import duration
    from headscope.models.demo import DEMO_MODELS, demo_model
    from headscope.verdict.preparation import Budget

    loaded = replace(loading.load(demo_model(model)), name=DEMO_MODELS[model])
    say(_forecast(model, loaded, report.unfinished))
    # short windows: of as many tokens more documents speak; a minute of MiniLM, some of Gemma
    budget = Budget(length=64, windows=448, size=16, ablation_tokens=1024, passes=100, seed=seed, claims=True)
    report.write(analyzed(loaded, None, budget, keep=report.unfinished), as_json=as_json)
    say(f"took {duration(time.monotonic() - begun)}")


def _forecast(model: str, loaded: "Loaded", unfinished: Path) -> str:
    """How long the demo takes here, from a forward pass on its own text."""
    from headscope._support.formatting import duration
    from headscope.surgery.timing import time_pass
    from headscope.text.corpus import text_batches

    (batch,) = text_batches(loaded.tokenizer, length=_LENGTH, size=_WINDOWS, windows=_WINDOWS)
    seconds = time_pass(loaded.model, batch)
    minutes = max(1, round(_PASSES[model] * seconds / 60))
    goes_on = f"; less where {unfinished} holds a part of it" if unfinished.exists() else ""
    return (
        f"takes about {minutes} min on this machine: the work of some {_PASSES[model]} forward passes over {_WINDOWS} "
        f"windows of text, one of which took {duration(seconds)} here{goes_on}"
    )


@command(_GROUP)
def inspect(model: Model, loading: Loading = Loading(), as_json: AsJson = False) -> None:
    """Print where a model's attention heads are.

    The column "route" says how attention was found: registry, by transformers' own dispatch; handwritten, by PyTorch's
    operations; described, by --describe. "heads apart" says whether single heads can be told apart, and so switched
    off. "cut" says whether a cut may be tried; each cut is proven when it is made.

    Example: headscope inspect ./my-model
    """
    from headscope.anatomy import discover

    loaded = loading.load(model)
    # a model of transformers makes an example of its own
    shown = None if hasattr(loaded.model, "config") and loaded.batches is None else few_batches(loaded)
    anatomy = discover(loaded.model, shown[0] if shown else None)
    if as_json:
        typer.echo(anatomy.to_json())
        return
    _print_anatomy(anatomy)


def _print_anatomy(anatomy: "Anatomy") -> None:
    rows = []
    for site in anatomy.sites:
        apart = "yes" if site.apart and not site.entangled else f"mixed in {', '.join(site.entangled) or 'o'}"
        cut = "no" if site.uncuttable else "if proven"
        counts = site.n_heads, site.n_kv_heads, site.head_dim
        rows.append((str(site.layer), site.kind, site.module_name, *map(str, counts), site.route, apart, cut))
    columns = ("layer", "kind", "module", "heads", "KV heads", "head_dim", "route", "heads apart", "cut")
    print_table(f"{anatomy.model_class}: {anatomy.n_heads} heads in {len(anatomy.sites)} layers", columns, rows)
    for remark in anatomy.remarks:
        typer.echo(remark)
