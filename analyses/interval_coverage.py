"""How often do the 95% intervals hold the value of endless text? Made-up documents, whose truth is known.

python analyses/interval_coverage.py --out coverage
"""

from pathlib import Path
from typing import Annotated

import typer

from headscope._support.folders import check_free, new_folder
from headscope.cli import refusing
from headscope.cli.printing import progress_bar
from headscope.reporting.figures import coverage_plot, figure_of
from headscope.studies.coverage import coverage


def main(
    out: Annotated[Path, typer.Option(help="output folder")],
    repetitions: Annotated[int, typer.Option(help="texts drawn for each case")] = 400,
    seed: Annotated[int, typer.Option(help="of every draw")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="one case, 20 texts")] = False,
    force: Annotated[bool, typer.Option("--force", help="replace the output folder")] = False,
) -> None:
    """Draw texts, make the intervals, count how many hold the truth."""
    check_free(out, force=force)
    size = {"tokens_per_dimension": (20,), "n_documents": (20,), "repetitions": 20} if quick else {}
    with progress_bar() as step:
        table = coverage(**({"repetitions": repetitions} | size), seed=seed, progress=step)
    with new_folder(out, force=force) as new:
        table.to_csv(new / "coverage.csv", index=False)
        figure_of(coverage_plot(table)).savefig(new / "coverage.png", dpi=150)
    print(table.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    refusing(lambda: typer.run(main))
