"""How often do the 95% intervals hold the value of endless text? Made-up documents, whose truth is known."""

from typing import Annotated

import typer

from headscope.cli import script
from headscope.cli.options import Folder, Seed
from headscope.cli.printing import progress_told
from headscope.reporting.figures import coverage_plot, figure_of
from headscope.studies.coverage import NAMES, coverage


def main(
    folder: Folder,
    repetitions: Annotated[int, typer.Option(help="texts drawn for each case")] = 400,
    count: Annotated[
        list[str] | None, typer.Option(help=f"a number to count: {', '.join(NAMES)}; repeatable [default: all]")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="one case, at most 20 texts")] = False,
    seed: Seed = 0,
) -> None:
    """Draw texts, make the intervals, count how many hold the truth.

    Example: python analyses/interval_coverage.py --out coverage
    """
    folder.check()
    size = {"tokens_per_dimension": (20,), "n_documents": (20,)} if quick else {}
    with progress_told() as step:
        counted = min(repetitions, 20) if quick else repetitions
        table = coverage(repetitions=counted, **size, names=count or NAMES, seed=seed, progress=step)
    with folder.new() as new:
        table.to_csv(new / "coverage.csv", index=False)
        figure_of(coverage_plot(table)).savefig(new / "coverage.png", dpi=150)
    print(table.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    script(main)
