"""The whole story on the command line: analyse, write the report, say what came out. Several commands tell it."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headscope.cli.options import Folder, Loading, Metric, Name, Null, Sampling, Tokens
from headscope.cli.printing import print_json, print_table, progress_told

if TYPE_CHECKING:
    from headscope.analysis import Analysis
    from headscope.models.loading import Loaded
    from headscope.text.texts import Texts
    from headscope.verdict.preparation import Budget

__all__ = ["Report", "Story", "analyzed"]

_SHOWN = 8  # candidates


@dataclass(frozen=True)
class Report(Folder):
    """Where the report goes."""

    out: Annotated[Path, typer.Option(help="output folder: index.html, tables/, figures/, run/")]

    @property
    def unfinished(self) -> Path:
        """Where what was measured is kept until the report stands."""
        return self.out.with_name(f"{self.out.name}.unfinished")

    def write(self, analysis: "Analysis", *, as_json: bool) -> None:
        """Write page and run, whole or not at all, and print the finding."""
        from headscope._support.kept import remove_kept
        from headscope.surgery.timing import told_of_cut

        with self.new() as new:
            analysis.report(new)
            analysis.save(new / "run")
        remove_kept(self.unfinished)
        if as_json:
            print_json({"out": str(self.out), "verdict": analysis.verdict.to_json(), "facts": dict(analysis.facts)})
            return
        for said in (*analysis.warnings, analysis.verdict.found):
            typer.echo(said)
        _print_candidates(analysis)
        if "cut" in analysis.facts and not analysis.verdict.refused:
            typer.echo("\n".join(["without the chosen heads:", *told_of_cut(analysis.facts["cut"])]))
        typer.echo(f"report: {self.out / 'index.html'}")
        how = "" if analysis.verdict.chosen else " --heads 1"  # within the budget none goes
        typer.echo(f"next: headscope plan {shlex.quote(str(self.out))}{how} --out plan.json")


@dataclass(frozen=True)
class Story(Sampling):
    """What an analysis is asked, and of which text."""

    windows: Annotated[int, typer.Option(min=0, help="windows of text; 0 for all")] = 256
    name: Name = ""
    metric: Metric = "auto"
    max_loss_rise: Annotated[
        str, typer.Option(help="what the chosen heads may cost together: a number of the metric's unit, or 1%")
    ] = "1%"
    ablation_tokens: Tokens = None
    passes: Annotated[
        int, typer.Option(min=0, help="forward passes for random sets of heads; at least five sets are measured")
    ] = 240
    null: Null = ""

    def analysis(self, model: str, loading: Loading, keep: Path | None = None, *, claims: bool = False) -> "Analysis":
        """The analysis of a model.

        Args:
            model, loading: which one, and how it is loaded.
            keep: where what was measured is kept; see `headscope.analyze`.
            claims: whether the paper's claims are asked too.
        """
        from headscope.verdict.preparation import Budget

        texts = self.texts()
        budget = Budget(
            length=self.length,
            windows=self.windows or None,
            ablation_tokens=self.ablation_tokens,
            passes=self.passes,
            max_loss_rise=self.max_loss_rise,
            seed=self.seed,
            claims=claims,
            null=self.null,
        )
        return analyzed(loading.load(model), texts, budget, self.metric, self.name, keep)


def analyzed(
    loaded: "Loaded",
    texts: "Texts | None",
    budget: "Budget",
    metric: str = "auto",
    name: str = "",
    keep: Path | None = None,
) -> "Analysis":
    """An analysis that tells how far it is.

    Args:
        loaded, texts, budget, metric, name, keep: see `headscope.analyze`.

    Raises:
        InterruptedWorkError: it was stopped, and what was measured is kept.
        ModelError: there was no memory left.
    """
    import torch

    from headscope.analysis import analyze
    from headscope.errors import InterruptedWorkError, ModelError

    try:
        with progress_told() as progress:
            return analyze(loaded, texts=texts, metric=metric, budget=budget, name=name, keep=keep, progress=progress)
    except KeyboardInterrupt:
        raise InterruptedWorkError(f"interrupted{_goes_on(keep) or '; nothing was written'}") from None
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelError(
            f"there was no memory left ({error or type(error).__name__}){_goes_on(keep)}; a shorter --length takes less"
        ) from error


def _goes_on(keep: Path | None) -> str:
    """What is said of work that was stopped; "" where nothing of it is kept."""
    if keep is None or not keep.exists():
        return ""
    return f"; what was measured is kept in {keep}, and the same command goes on from there"


def _print_candidates(analysis: "Analysis") -> None:
    from headscope._support.formatting import number

    rows = [
        (row["head"], number(row["importance"]), number(row["replaceability"]), row["stand_in"], row["reason"])
        for row in analysis.candidates.head(_SHOWN).to_dict("records")
    ]
    print_table("first to cut", ("head", "importance", "replaceability", "stand-in", "reason"), rows)
