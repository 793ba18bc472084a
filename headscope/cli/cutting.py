"""Commands that cut: choose heads as data, then take them out for real."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headscope.cli.application import command
from headscope.cli.options import AsJson, Force, Loading, Model, Reading, Seed
from headscope.cli.printing import print_json
from headscope.cli.story import analyzed

if TYPE_CHECKING:
    from headscope.analysis import Analysis
    from headscope.models.loading import Loaded
    from headscope.plans import Plan
    from headscope.text.batches import Batch
    from headscope.text.texts import Texts

__all__: list[str] = []

_GROUP = "Cut"


@command(_GROUP, "plan")
def plan_(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="a saved analysis: what `headscope analyze --out` wrote", show_default=False
        ),
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
    from headscope._support.folders import new_file
    from headscope.errors import StorageError

    if not run.is_dir():
        raise StorageError(f"there is no folder {run}; name what `headscope analyze --out` wrote")
    from headscope.analysis import Analysis

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


@command(_GROUP, "prune")
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
    reading: Reading = Reading(),
    force: Force = False,
    loading: Loading = Loading(),
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Remove heads for real: a smaller model, proven equal to the masked one on real text before it is written.

    Example: headscope prune ./my-model --plan plan.json --out smaller
    """
    if (plan is None) == (share is None):
        raise typer.BadParameter("give either --plan FILE or --share X")
    from headscope._support.folders import check_free
    from headscope.surgery import prune, save

    check_free(out, force=force)
    texts = reading.texts()
    loaded = loading.load(model)
    chosen = _read_plan(plan) if plan is not None else _made_plan(loaded, texts, share or 0.0, run, seed)
    smaller = prune(loaded.model, chosen, batches=_proof(loaded, texts, seed))
    before, after = (sum(own.numel() for own in one.parameters()) for one in (loaded.model, smaller))
    save(smaller, out, tokenizer=loaded.tokenizer, force=force)
    if as_json:
        sizes = {"parameters_before": before, "parameters_after": after}
        print_json({"removed": [str(head) for head in chosen.heads], **sizes, "out": str(out)})
        return
    own = "" if hasattr(loaded.model, "config") else ", model=an_instance_of_the_original"
    typer.echo(
        f"removed {len(chosen.heads)} heads: {before:,} → {after:,} parameters ({1 - after / before:.1%} fewer); "
        f"equal to the masked model on real input\nwritten to {out}; load it with headscope.load({str(out)!r}{own})"
    )


def _made_plan(loaded: "Loaded", texts: "Texts | None", share: float, run: Path | None, seed: int) -> "Plan":
    """A plan of so large a share, from a saved analysis or from one that is made for it."""
    from headscope.analysis import Analysis
    from headscope.verdict.preparation import Budget

    analysis = Analysis.load(run) if run is not None else analyzed(loaded, texts, Budget(seed=seed))
    return _planned(analysis, share, "needed", False, 1)


def _planned(analysis: "Analysis", share: float, score: str, uniform: bool, keep_per_layer: int) -> "Plan":
    from headscope.errors import InputError
    from headscope.planning.planner import plan

    if score not in analysis.scores or score == "replaceability":
        usable = ", ".join(name for name in analysis.scores if name != "replaceability")
        raise InputError(f"a plan cannot be made by {score!r}; this analysis holds: {usable}")
    return plan(analysis.scores[score], share=share, uniform=uniform, keep_per_layer=keep_per_layer)


def _proof(loaded: "Loaded", texts: "Texts | None", seed: int) -> "list[Batch] | None":
    """A little real text that the pruned model is compared on; None where there is no tokenizer."""
    from headscope.text.corpus import text_batches

    if loaded.batches is not None and texts is None:
        return list(loaded.batches[:1])
    if loaded.tokenizer is None:
        return None
    return list(text_batches(loaded.tokenizer, texts, length=64, size=4, windows=4, seed=seed))


def _read_plan(path: Path) -> "Plan":
    from headscope.errors import InputError
    from headscope.plans import Plan

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the plan {path}: {error}") from error
    return Plan.from_json(text)
