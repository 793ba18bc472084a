"""What does removing one head cost? Exact ablation of every head, as a table and a picture.

python analyses/ablation_impact.py --model ./my-model --text notes.txt --out impact
"""

from typing import Annotated

import typer

import headscope as hs
from headscope.cli import script
from headscope.cli.options import Folder, Loading, Metric, ModelOption, Sampling
from headscope.cli.printing import progress_told
from headscope.reporting.figures import figure_of, head_map


def main(
    model: ModelOption,
    folder: Folder,
    mode: Annotated[str, typer.Option(help="what stands in for a removed head: zero or mean")] = "zero",
    metric: Metric = "auto",
    sampling: Sampling = Sampling(windows=16),
    loading: Loading = Loading(),
) -> None:
    """Switch off one head after another and measure the difference."""
    folder.check()
    texts, loaded = sampling.texts(), loading.load(model)
    batches = sampling.batches(loaded, texts)
    with progress_told() as step:
        table = hs.importance(loaded.model, batches, hs.Ablation(mode=mode), metric, progress=step)
    with folder.new() as new:
        table.save(new)
        figure_of(head_map(table, label=f"{table.facts['metric']} without the head")).savefig(new / "map.png", dpi=150)
    print(table.to_frame().sort_values("score", ascending=False).head(10).to_string(index=False))


if __name__ == "__main__":
    script(main)
