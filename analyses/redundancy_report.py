"""The whole story of one model as a page: verdict, importance, similarity, facts.

python analyses/redundancy_report.py --model ./my-model --text notes.txt --out report
"""

from pathlib import Path
from typing import Annotated

import typer

import headscope as hs
from headscope._support.folders import check_free
from headscope.cli import refusing
from headscope.cli.printing import progress_bar


def main(
    model: Annotated[str, typer.Option(help="hub name, folder, or package.module:factory")],
    out: Annotated[Path, typer.Option(help="output folder")],
    text: Annotated[list[Path] | None, typer.Option(help="text file or folder; the default corpus without it")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace the output folder")] = False,
) -> None:
    """Analyse a model and write its report."""
    check_free(out, force=force)
    with progress_bar() as step:
        run = hs.analyze(model, texts=hs.read_texts(text) if text else None, progress=step)
    run.report(out, force=force)
    print(run.verdict.sentence)


if __name__ == "__main__":
    refusing(lambda: typer.run(main))
