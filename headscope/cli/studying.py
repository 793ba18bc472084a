"""Commands of the studies: how many heads a task wants, and what the paper's claims come to."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headscope.cli.application import command
from headscope.cli.options import AsJson, Force, Loading, Metric, Reading, Sampling, Seed, registered
from headscope.cli.printing import print_json, print_table, progress_told

if TYPE_CHECKING:
    import pandas as pd

    from headscope.models.loading import Loaded
    from headscope.studies.headcount import Sweep
    from headscope.studies.rulings import Rulings
    from headscope.studies.subjects import Subject
    from headscope.text.texts import Texts

__all__ = ["Sweeping"]

_GROUP = "Study"
_TASKS, _CLAIMS = registered("studies/tasks"), registered("studies/claims")


@dataclass(frozen=True)
class Sweeping:
    """What a sweep over numbers of heads tries, and where it keeps its runs."""

    out: Annotated[Path, typer.Option(help="output folder; finished runs are kept there, and the command goes on")]
    quick: Annotated[
        bool, typer.Option("--quick", help="look-ups and maps, 1, 4, 16 and 64 heads, 3 seeds: a taste, no evidence")
    ] = False
    task: Annotated[
        list[str] | None,
        typer.Option(help=f"{_TASKS}; maps-LENGTH for maps of so many tokens; repeatable [default: all]"),
    ] = None
    heads: Annotated[
        str | None, typer.Option(help="numbers of heads, separated by commas", show_default="1,2,4,…,64")
    ] = None
    head_dim: Annotated[
        int | None, typer.Option(help="dimensions of a head in the arm where they are fixed", show_default="8")
    ] = None
    seeds: Annotated[int | None, typer.Option(help="runs of each case", show_default="5, or 3 with --quick")] = None
    width: Annotated[int | None, typer.Option(help="dimensions of the residual stream", show_default="64")] = None
    earlier: Annotated[
        Path | None,
        typer.Option(help="a finished sweep: its runs are used, and only missing seeds are trained"),
    ] = None
    workers: Annotated[
        int | None, typer.Option(min=1, help="runs at a time, one thread each", show_default="one a core")
    ] = None

    def sweep(self, texts: "Texts | None") -> "Sweep":
        """Run it, or what of it is not kept yet, and write tables and figures."""
        from headscope.studies.headcount import Settings, Sweep, draw, sweep

        asked: dict[str, Any] = {
            "tasks": tuple(self.task) if self.task else None,
            "heads": _counts(self.heads) if self.heads else None,
            "width": self.width,
            "head_dim": self.head_dim,
            "seeds": self.seeds,
        }
        given = {name: value for name, value in asked.items() if value is not None}
        settings = replace(Settings.quick() if self.quick else Settings(), **given)
        earlier = None if self.earlier is None else Sweep.load(self.earlier)
        with progress_told() as step:
            found = sweep(self.out, settings, texts=texts, earlier=earlier, workers=self.workers, progress=step)
        found.save(self.out)
        draw(found, self.out)
        return found


@command(_GROUP)
def headcount(sweeping: Sweeping, reading: Reading = Reading(), as_json: AsJson = False) -> None:
    """Train the same small transformer with few heads and with many: how many does a task want?

    It trains once with the width shared among the heads, and once with heads of fixed size. If it is interrupted, the
    same command goes on.

    Example: headscope headcount --quick --out heads
    """
    found = sweeping.sweep(reading.texts())
    if as_json:
        print_json({"out": str(sweeping.out), "shapes": _rows(found.shapes), "facts": dict(found.facts)})
        return
    _print_shapes(found)
    typer.echo(f"tables and figures: {sweeping.out}")


def _counts(text: str) -> tuple[int, ...]:
    from headscope.errors import InputError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--heads takes whole numbers separated by commas, as in 1,4,16; it was {text!r}") from None


def _rows(frame: "pd.DataFrame") -> Any:
    """Rows as JSON values, numbers to 15 digits."""
    return json.loads(frame.to_json(orient="records", double_precision=15))


def _print_shapes(found: "Sweep") -> None:
    from headscope._support.formatting import number
    from headscope.studies.headcount.telling import difference

    rows = []
    for row in found.shapes.to_dict("records"):
        ends = [difference(row, end) for end in ("few", "many")]
        error = f"{number(row['best_error'])} {row['unit']}"
        rows.append((row["task"], row["arm"], str(row["best"]), error, row["good"], *ends))
    print_table(
        "error against the number of heads, and how much worse the fewest and the most do than the best",
        ("task", "arm", "best", "error there", "as good", "fewest heads", "most heads"),
        rows,
    )
    typer.echo("as shares of what the best learns over chance, with 95% intervals over seeds")


@command(_GROUP, "claims")
def claims_(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="output folder: the table, a page and a figure for each claim")],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="hub name, local folder, package.module:factory, minilm or gemma; "
            "the reference transformer without it",
            show_default=False,
        ),
    ] = None,
    claim: Annotated[list[str] | None, typer.Option(help=f"{_CLAIMS}; repeatable [default: all]")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="takes minutes; claims that need the whole sweep are not decided")
    ] = False,
    sweep_folder: Annotated[
        Path | None,
        typer.Option(
            "--sweep",
            help="a folder that `headscope headcount` wrote: its runs are used, and an unfinished sweep is continued",
            show_default="OUT-sweep, or OUT-quick-sweep",
        ),
    ] = None,
    costs: Annotated[
        Path | None,
        typer.Option(help="a folder that analyses/cost_scaling.py wrote; its timings are taken, of a GPU for instance"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="what the model is called on the pages", show_default="as it was named")
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(help="measure nothing; put the results of earlier calls together, a page a claim; repeatable"),
    ] = None,
    metric: Metric = "auto",
    reading: Reading = Reading(),
    windows: Annotated[
        int | None, typer.Option(min=0, help="windows of text; 0 for all", show_default="256, or 64 with --quick")
    ] = None,
    length: Annotated[int, typer.Option(help="tokens of a window")] = 128,
    seed: Seed = 0,
    force: Force = False,
    loading: Loading = Loading(),
    as_json: AsJson = False,
) -> None:
    """Measure the claims of a Japanese paper that explains multi-head attention, and say which hold.

    With MODEL, only claims that a trained model can answer are measured, beside untrained copies of it where likeness
    is asked. If it is interrupted, the same command goes on: finished claims are kept in OUT.unfinished. Without MODEL,
    all are measured on a small transformer that is trained for it. That takes hours, nearly all for the sweep over
    numbers of heads; --quick takes minutes.

    Example: headscope claims --quick --out claims
    """
    from headscope._support.folders import check_free, new_folder
    from headscope._support.kept import remove_kept
    from headscope.studies.asking import ask_model, ask_reference, names_of
    from headscope.studies.headcount import Sweep
    from headscope.studies.rulings import Rulings

    check_free(out, force=force)
    unfinished = out.with_name(f"{out.name}.unfinished")
    names_of(claim)  # before anything is loaded
    given = _given(context)
    _check_given(given, model, results)
    kind = "quick-sweep" if quick else "sweep"  # a taste is not mixed with the whole
    folder = out.with_name(f"{out.name}-{kind}") if sweep_folder is None else sweep_folder
    if sweep_folder is not None:  # one that is named is there, or it was mistyped
        Sweep.check_there(sweep_folder, finished=model is not None or bool(results))
    if results:
        made = [Rulings.load(one) for one in results]
    elif model is None:
        with progress_told() as step:
            made = [ask_reference(folder, claim, timings=costs, quick=quick, progress=step)]
    else:
        amount = (64 if quick else 256) if windows is None else windows
        sampling = Sampling(text=reading.text, split=reading.split, windows=amount, length=length, seed=seed)
        subject = _subject(model, loading, sampling, metric, quick)
        with progress_told() as step:
            made = [ask_model(subject, claim, keep=unfinished, progress=step)]
    if not results:
        options = " ".join(given[option] for option in _REPEATED if option in given)
        made = [one.asked_with(options, given.get("--sweep", ""), name) for one in made]
    found = Sweep.load(folder) if Sweep.saved(folder) else None
    with new_folder(out, force=force) as new:
        _write(made, new, found, whole=bool(results))
    remove_kept(unfinished)
    if as_json:
        print_json({"out": str(out), "claims": {one.subject: _rows(one.to_frame()) for one in made}})
        return
    for one in made:
        _print_rulings(one)
    typer.echo(f"pages and figures: {out}")


def _subject(model: str, loading: Loading, sampling: Sampling, metric: str, quick: bool) -> "Subject":
    """The model that is asked, with its text."""
    from headscope.models.demo import demo_model
    from headscope.studies.subjects import Subject

    texts = sampling.texts()
    loaded = loading.load(demo_model(model) if _is_demo(model) else model)
    about, what = _described(model, loaded, texts)
    batches = sampling.batches(loaded, texts)
    return Subject(model, loaded.model, batches, metric, sampling.seed, quick, about=about, text=what)


def _is_demo(model: str) -> bool:
    from headscope.models.demo import DEMO_MODELS

    return model in DEMO_MODELS and not Path(model).exists()


def _described(model: str, loaded: "Loaded", texts: "Texts | None") -> tuple[str, str]:
    """What a model is, and what its documents are."""
    from headscope.models.demo import DEMO_MODELS

    about = f"{DEMO_MODELS[model]}, {type(loaded.model).__name__}" if _is_demo(model) else ""
    if texts is not None:
        return about, "of the text that was named"
    return about, "that came with it" if loaded.batches is not None else "of the documentation that Python brings"


def _write(made: "Sequence[Rulings]", folder: Path, found: "Sweep | None", *, whole: bool) -> None:
    """Results and pages; the sweep beside them where everything is put together."""
    from headscope.errors import InputError
    from headscope.studies.claim_pages import write_pages

    if len({one.slug for one in made}) < len(made):
        raise InputError("two of the results are of the same name; make one of them again with another --name")
    for one in made:
        one.write(folder / one.slug if len(made) > 1 else folder)
    write_pages(made, folder, found if found is not None and found.decisive else None)
    if found is not None and whole:
        (folder / "sweep").mkdir()
        found.save(folder / "sweep")


_OF_A_MODEL = (
    "--metric", "--text", "--split", "--windows", "--length", "--dtype", "--device", "--seed", "--trust-remote-code",
)  # fmt: skip
_REPEATED = ("--name", *_OF_A_MODEL)  # in the command that makes one claim's page again


def _given(context: typer.Context) -> dict[str, str]:
    """Options that were given, each with its values as a shell takes them."""
    found = {}
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is None or source.name != "COMMANDLINE":
            continue
        value, option = context.params[parameter.name or ""], parameter.opts[0]
        values = value if isinstance(value, list | tuple) else [value]
        found[option] = " ".join(option if one is True else f"{option} {shlex.quote(str(one))}" for one in values)
    return found


def _check_given(given: Mapping[str, str], model: str | None, results: list[Path] | None) -> None:
    """Refuse options that nothing would come of."""
    from headscope.errors import InputError

    alone = [option for option in _OF_A_MODEL if option in given]
    if alone and model is None:
        raise InputError(f"{', '.join(alone)}: of a model that is named; the reference is trained on a text of its own")
    if "--costs" in given and model is not None:
        raise InputError("--costs holds timings of the reference's layers; leave it out, or the model")
    asking = [option for option in ("--claim", "--quick", "--costs", "--name") if option in given]
    if results and (model is not None or asking):
        raise InputError(f"--results asks nothing, so leave out {', '.join([*([model] if model else []), *asking])}")


def _print_rulings(made: "Rulings") -> None:
    from headscope._support.formatting import MISSING, interval, number

    rows = [
        (one.claim, one.about, one.verdict.told(), number(one.effect), interval(one.low, one.high) or MISSING, one.over)
        for one in made.rulings
    ]
    print_table(
        f"claims of the paper, asked of {made.subject}",
        ("claim", "about", "verdict", "number", "interval", "measured on"),
        rows,
    )
