"""Which heads should go first? Importance against replaceability, the candidates and a plan."""

import typer

import headscope as hs
from headscope.cli import script
from headscope.cli.options import Folder, Heads, Loading, Model, Share
from headscope.cli.story import Story
from headscope.reporting.figures import figure_of, quadrant_plot


def main(
    model: Model,
    folder: Folder,
    story: Story = Story(),
    heads: Heads = None,
    share: Share = None,
    loading: Loading = Loading(),
) -> None:
    """Rank every head by what it costs alone, measure the first ones together, and plan as many as may go.

    Example: python analyses/pruning_candidates.py ./my-model --text notes.txt --max-loss-rise 1% --out candidates
    """
    folder.check()
    if heads is not None and share is not None:
        raise typer.BadParameter("--heads and --share each say how many heads go; give one of them")
    run = story.analysis(model, loading)
    plan = hs.plan(run, share, heads=heads)  # with neither, as many as --max-loss-rise allows
    with folder.new() as new:
        run.candidates.to_csv(new / "candidates.csv", index=False)
        run.removal.save(new)
        (new / "plan.json").write_text(plan.to_json(), encoding="utf-8")
        ax = quadrant_plot(run.importance, run.replaceability, run.verdict.lines, chosen=plan.heads)
        figure_of(ax).savefig(new / "quadrants.png", dpi=150)
    print(run.candidates[["rank", "head", "importance", "replaceability", "reason"]].head(10).to_string(index=False))
    print(plan.reason)


if __name__ == "__main__":
    script(main)
