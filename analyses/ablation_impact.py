"""What does removing one head cost? Exact ablation of every head, as a table and a picture."""

from typing import Annotated

import typer

import headscope as hs
from headscope.cli import script
from headscope.cli.options import Folder, Loading, Metric, Model, Sampling, Skip, Tokens
from headscope.cli.printing import progress_told
from headscope.reporting.figures import figure_of, head_map


def main(
    model: Model,
    folder: Folder,
    mode: Annotated[str, typer.Option(help="what stands in for a removed head: zero or mean")] = "zero",
    metric: Metric = "auto",
    sampling: Sampling = Sampling(),
    tokens: Tokens = None,
    skip_first: Skip = 0,
    loading: Loading = Loading(),
) -> None:
    """Switch off one head after another and measure the difference.

    Example: python analyses/ablation_impact.py ./my-model --text notes.txt --out impact
    """
    folder.check()
    texts, loaded = sampling.texts(), loading.load(model)
    anatomy, sample = sampling.for_effects(loaded, sampling.batches(loaded, texts), tokens)
    with progress_told() as step:
        told = {"anatomy": anatomy, "skip_first": skip_first, "progress": step}
        table = hs.importance(loaded.model, sample, hs.Ablation(mode=mode), metric, **told)
    with folder.new() as new:
        table.save(new)
        figure_of(head_map(table, label=f"{table.facts['metric']} without the head")).savefig(new / "map.png", dpi=150)
    print(table.to_frame().sort_values("score", ascending=False).head(10).to_string(index=False))


if __name__ == "__main__":
    script(main)
