"""Which heads should go first? Importance against replaceability, the candidates and a plan.

python analyses/pruning_candidates.py --model ./my-model --text notes.txt --share 0.2 --out candidates
"""

from pathlib import Path
from typing import Annotated

import typer

import headscope as hs
from headscope._support.folders import check_free, new_folder
from headscope.cli import refusing
from headscope.cli.printing import progress_bar
from headscope.reporting.figures import figure_of, quadrant_plot


def main(
    model: Annotated[str, typer.Option(help="hub name, folder, or package.module:factory")],
    out: Annotated[Path, typer.Option(help="output folder")],
    text: Annotated[list[Path] | None, typer.Option(help="text file or folder; the default corpus without it")] = None,
    share: Annotated[float, typer.Option(help="share of the heads that the plan removes")] = 0.2,
    force: Annotated[bool, typer.Option("--force", help="replace the output folder")] = False,
) -> None:
    """Rank every head and plan the removal of the least needed."""
    check_free(out, force=force)
    with progress_bar() as step:
        run = hs.analyze(model, texts=hs.read_texts(text) if text else None, progress=step)
    plan = hs.plan(run.scores["needed"], share=share)
    with new_folder(out, force=force) as new:
        run.candidates.to_csv(new / "candidates.csv", index=False)
        (new / "plan.json").write_text(plan.to_json(), encoding="utf-8")
        ax = quadrant_plot(run.importance, run.replaceability, run.verdict.lines, chosen=plan.heads)
        figure_of(ax).savefig(new / "quadrants.png", dpi=150)
    print(run.candidates[["rank", "head", "importance", "replaceability", "reason"]].head(10).to_string(index=False))


if __name__ == "__main__":
    refusing(lambda: typer.run(main))
