"""Commands that cut: choose heads as data, then take them out for real."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headscope.cli.application import command
from headscope.cli.options import AsJson, Force, Heads, Loading, MaxLossRise, Model, Reading, Seed, Share, few_batches
from headscope.cli.printing import print_json
from headscope.cli.story import analyzed

if TYPE_CHECKING:
    from headscope.analysis import Analysis
    from headscope.models.loading import Loaded
    from headscope.plans import Plan
    from headscope.text.texts import Texts

__all__: list[str] = []

_GROUP = "Cut"


@dataclass(frozen=True)
class Wanted:
    """How many heads go, and from which costs that is read."""

    max_loss_rise: MaxLossRise = None
    heads: Heads = None
    share: Share = None
    run: Annotated[
        Path | None,
        typer.Option(help="a saved analysis to read costs from; without it one is made", show_default=False),
    ] = None

    @property
    def given(self) -> bool:
        """Whether it was said how many."""
        return (self.max_loss_rise, self.heads, self.share) != (None, None, None)

    def plan(self, loaded: "Loaded", texts: "Texts | None", seed: int, saved: "Analysis | None") -> "Plan":
        """So many heads, from a saved analysis or from one that is made for it."""
        from headscope.planning.rises import Rise
        from headscope.verdict.preparation import Budget

        if saved is not None:
            return _planned(saved, self.max_loss_rise, self.heads, self.share)
        rise = "1%" if self.max_loss_rise is None else self.max_loss_rise
        Rise.read(rise)
        analysis = analyzed(loaded, texts, Budget(seed=seed, max_loss_rise=rise))
        return _planned(analysis, self.max_loss_rise, self.heads, self.share)


@command(_GROUP, "plan")
def plan_(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="a saved analysis: what `headscope analyze --out` wrote", show_default=False
        ),
    ],
    max_loss_rise: MaxLossRise = None,
    heads: Heads = None,
    share: Share = None,
    score: Annotated[
        str | None,
        typer.Option(
            help="choose by this score in place of measured costs: ablation, gradient, norm, needed", show_default=False
        ),
    ] = None,
    uniform: Annotated[
        bool, typer.Option("--uniform", help="with --score: the same number of heads from each layer")
    ] = False,
    keep_per_layer: Annotated[int, typer.Option(help="with --score: how many heads each layer keeps at least")] = 1,
    out: Annotated[Path, typer.Option(help="plan file (JSON)")] = Path("plan.json"),
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Choose how many heads to remove, from the costs that an analysis measured. Needs no model.

    Heads go in the order of their measured effects, as many as the budget allows. Without an option, as many go as the
    analysis itself chose.

    Example: headscope plan report --max-loss-rise 1% --out plan.json
    """
    from headscope._support.folders import new_file

    analysis = _read_run(run)
    if score is None and (uniform or keep_per_layer != 1):
        raise typer.BadParameter("--uniform and --keep-per-layer go with --score: measured costs know one order")
    if score is not None and (max_loss_rise, heads) != (None, None):
        raise typer.BadParameter(
            "--score goes with --share; numbers of heads and budgets come from measured costs, without --score"
        )
    made = (
        _planned(analysis, max_loss_rise, heads, share)
        if score is None
        else _by_score(analysis, score, {"share": share, "uniform": uniform, "keep_per_layer": keep_per_layer})
    )
    new_file(out, made.to_json(), force=force)
    if as_json:
        typer.echo(made.to_json())
        return
    for warning in made.facts.get("warnings", ()):
        typer.echo(warning)
    typer.echo(f"{made.reason}\nheads: {', '.join(map(str, made.heads)) or 'none'}")
    refused = analysis.refused(made.heads)
    if refused and "refused" not in made.facts:
        typer.echo(f"they can be switched off, but not cut; refused: {refused}")
    if not refused:
        typer.echo(_spared(analysis, made))
    typer.echo(f"written to {out}")
    if made.heads and not refused and not analysis.verdict.refused:
        typer.echo(f"next: {_next(analysis, out)}")


@command(_GROUP, "prune")
def prune_(
    model: Model,
    out: Annotated[Path, typer.Option(help="folder of the smaller model")],
    plan: Annotated[Path | None, typer.Option(help="plan file made by `headscope plan`", show_default=False)] = None,
    budget: Wanted = Wanted(),
    export: Annotated[
        bool,
        typer.Option(
            "--export", help="with --plan: a folder that plain transformers loads; equally many heads from each layer"
        ),
    ] = False,
    reading: Reading = Reading(),
    force: Force = False,
    loading: Loading = Loading(),
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Remove heads for real: a smaller model, proven equal to the masked one on real text before it is written.

    Example: headscope prune ./my-model --plan plan.json --out smaller
    """
    if (plan is not None) == budget.given:
        raise typer.BadParameter("give either --plan FILE, or one of --max-loss-rise, --heads and --share")
    if plan is not None and budget.run is not None:
        raise typer.BadParameter("--run says what heads cost, and --plan has chosen them already; give one of the two")
    if export and plan is None:
        raise typer.BadParameter(
            "--export goes with --plan: equally many heads from each layer are chosen by `headscope plan RUN --score "
            "ablation --share SHARE --uniform`, and measured costs take them from anywhere"
        )
    from headscope._support.folders import check_free
    from headscope.anatomy.records import record_of
    from headscope.anatomy.remarks import cut_before
    from headscope.surgery import prune
    from headscope.surgery.timing import compare_sizes, told_of_cut

    check_free(out, force=force)
    given = None if plan is None else _read_plan(plan)  # before anything is loaded
    saved = None if budget.run is None else _read_run(budget.run)
    texts = reading.texts()
    loaded = loading.load(model)
    chosen = budget.plan(loaded, texts, seed, saved) if given is None else given
    proof = few_batches(loaded, texts, seed)
    smaller = prune(loaded.model, chosen, batches=proof)
    cut = compare_sizes(loaded.model, smaller, proof[0] if proof else None)
    _write(smaller, loaded, out, proof[0] if export and proof else None, force, export)
    ways = cut_before(record_of(smaller))
    if as_json:
        print_json({"removed": [str(head) for head in chosen.heads], **cut, "ways": ways, "out": str(out)})
        return
    typer.echo(_proven(len(chosen.heads), "real" if proof else "made-up"))
    typer.echo("\n".join([*told_of_cut(cut), *ways]))
    typer.echo(f"written to {out}\nnext: {_read_again(smaller, loaded, out, export)}")


def _proven(heads: int, kind: str) -> str:
    if not heads:
        return "the plan names no head; the model was copied whole"
    return f"removed {heads} head{'s' * (heads > 1)}; equal to the masked model on {kind} input"


def _write(smaller: Any, loaded: "Loaded", out: Path, example: Any, force: bool, plain: bool) -> None:
    from headscope.surgery import export, save

    if plain:
        export(smaller, out, tokenizer=loaded.tokenizer, example=example, force=force)
    else:
        save(smaller, out, tokenizer=loaded.tokenizer, force=force)


def _planned(analysis: "Analysis", max_loss_rise: str | None, heads: int | None, share: float | None) -> "Plan":
    from headscope.planning.planner import plan

    return plan(analysis, share, max_loss_rise=max_loss_rise, heads=heads)


def _by_score(analysis: "Analysis", score: str, settings: "dict[str, Any]") -> "Plan":
    from headscope.errors import InputError
    from headscope.planning.planner import plan

    if settings["share"] is None:
        raise typer.BadParameter(
            "--score goes with --share; numbers of heads and budgets come from measured costs, without --score"
        )
    if score not in analysis.scores or score == "replaceability":
        usable = ", ".join(name for name in analysis.scores if name != "replaceability")
        raise InputError(f"a plan cannot be made by {score!r}; it can be made by: {usable}")
    return plan(analysis.scores[score], **settings)


def _spared(analysis: "Analysis", made: "Plan") -> str:
    """What goes with the heads, from the anatomy."""
    from headscope.planning.savings import count_savings

    length = int(analysis.facts.get("window_length", 128))
    n_bytes = {"float64": 8, "float32": 4}.get(str(analysis.facts.get("dtype")), 2)
    found = count_savings(analysis.anatomy, made.heads, length, n_bytes)
    parts = []
    if found.parameters and found.parameters_left is not None and found.flops and found.flops_left is not None:
        parts.append(f"parameters of attention {_fewer(found.parameters, found.parameters_left)}")
        parts.append(f"operations of attention for a token among {length}: {_fewer(found.flops, found.flops_left)}")
    if found.kv_bytes:
        parts.append(
            f"bytes of keys and values for a token, where they are kept: {_fewer(found.kv_bytes, found.kv_bytes_left)}"
        )
    return "; ".join(parts) or "its layers do not tell their sizes"


def _fewer(before: int, after: int) -> str:
    return f"{before:,} → {after:,} (−{1 - after / before:.1%})" if after < before else f"{before:,}, none fewer"


def _next(analysis: "Analysis", out: Path) -> str:
    """What cuts by the plan: a command, or for a model that no name loads a call in Python."""
    source, options = (str(analysis.facts.get(fact, "")) for fact in ("source", "loaded_by"))
    if not source:
        plan = f"headscope.Plan.from_json(pathlib.Path({str(out)!r}).read_text())"
        return f"in Python, headscope.prune(model, {plan}, batches=batches)"
    words = ["headscope prune", shlex.quote(source), options, "--plan", shlex.quote(str(out)), "--out smaller"]
    return " ".join(word for word in words if word)


def _read_again(smaller: Any, loaded: "Loaded", out: Path, plain: bool) -> str:
    """How the saved model is used: in Python, and by a command where it brings all that this takes."""
    from headscope.anatomy.records import record_of
    from headscope.surgery import loads_alone

    if not loads_alone(smaller):
        trust = ", trust_remote_code=True" if "--trust-remote-code" in loaded.options else ""
        whole = f"headscope.load_model({loaded.source!r}{trust}).model"
        return f"in Python, headscope.load({str(out)!r}, model={whole})"
    again = f"transformers.{type(smaller).__name__}.from_pretrained" if plain else "headscope.load"
    again += f"({str(out)!r})"
    record = record_of(smaller)
    emptied = record is not None and len(record.removed) == record.anatomy.n_heads
    if loaded.tokenizer is None or "--describe" in loaded.options or emptied:
        return f"in Python, {again}"
    report = shlex.quote(f"{out}-report")
    return f"headscope analyze {shlex.quote(str(out))} --out {report}; in Python, {again}"


def _read_run(run: Path) -> "Analysis":
    from headscope.analysis import Analysis
    from headscope.errors import StorageError

    if not run.is_dir():
        raise StorageError(f"there is no folder {run}; name what `headscope analyze --out` wrote")
    return Analysis.load(run)


def _read_plan(path: Path) -> "Plan":
    from headscope.errors import InputError
    from headscope.plans import Plan

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the plan {path}: {error}") from error
    return Plan.from_json(text)
