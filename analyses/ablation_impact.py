"""What does removing one head cost? Exact ablation of every head, as a table and a picture.

python analyses/ablation_impact.py --model ./my-model --text notes.txt --out impact
"""

from pathlib import Path
from typing import Annotated

import typer

import headscope as hs
from headscope._support.folders import check_free, new_folder
from headscope.cli import refusing
from headscope.cli.printing import progress_bar
from headscope.reporting.figures import figure_of, head_map


def main(
    model: Annotated[str, typer.Option(help="hub name, folder, or package.module:factory")],
    out: Annotated[Path, typer.Option(help="output folder")],
    text: Annotated[list[Path] | None, typer.Option(help="text file or folder; the default corpus without it")] = None,
    mode: Annotated[str, typer.Option(help="what stands in for a removed head: zero or mean")] = "zero",
    metric: Annotated[str, typer.Option(help="auto, loss, mlm, kl or drift")] = "auto",
    windows: Annotated[int, typer.Option(help="windows of 128 tokens that each head is ablated on")] = 16,
    force: Annotated[bool, typer.Option("--force", help="replace the output folder")] = False,
) -> None:
    """Switch off one head after another and measure the difference."""
    check_free(out, force=force)
    loaded = hs.load_model(model)
    batches = loaded.batches or hs.text_batches(
        loaded.tokenizer, hs.read_texts(text) if text else None, length=128, windows=windows
    )
    with progress_bar() as step:
        table = hs.importance(loaded.model, batches, hs.Ablation(mode=mode), metric, progress=step)
    with new_folder(out, force=force) as new:
        table.save(new)
        figure_of(head_map(table, label=f"{table.facts['metric']} without the head")).savefig(new / "map.png", dpi=150)
    print(table.to_frame().sort_values("score", ascending=False).head(10).to_string(index=False))


if __name__ == "__main__":
    refusing(lambda: typer.run(main))
