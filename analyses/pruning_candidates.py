"""Which heads should go first? Importance against replaceability, the candidates and a plan.

python analyses/pruning_candidates.py --model ./my-model --text notes.txt --share 0.2 --out candidates
"""

from typing import Annotated

import typer

import headscope as hs
from headscope.cli import script
from headscope.cli.options import Folder, Loading, ModelOption, Reading, Seed
from headscope.cli.story import analyzed
from headscope.reporting.figures import figure_of, quadrant_plot


def main(
    model: ModelOption,
    folder: Folder,
    share: Annotated[float, typer.Option(help="share of the heads that the plan removes")] = 0.2,
    reading: Reading = Reading(),
    seed: Seed = 0,
    loading: Loading = Loading(),
) -> None:
    """Rank every head and plan the removal of the least needed."""
    folder.check()
    texts, loaded = reading.texts(), loading.load(model)
    run = analyzed(loaded, texts, hs.Budget(seed=seed))
    plan = hs.plan(run.scores["needed"], share=share)
    with folder.new() as new:
        run.candidates.to_csv(new / "candidates.csv", index=False)
        (new / "plan.json").write_text(plan.to_json(), encoding="utf-8")
        ax = quadrant_plot(run.importance, run.replaceability, run.verdict.lines, chosen=plan.heads)
        figure_of(ax).savefig(new / "quadrants.png", dpi=150)
    print(run.candidates[["rank", "head", "importance", "replaceability", "reason"]].head(10).to_string(index=False))


if __name__ == "__main__":
    script(main)
