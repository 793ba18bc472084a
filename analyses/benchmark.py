"""What do watching and comparing cost? Ratios of arms that take turns in one process.

python analyses/benchmark.py --out benchmark
"""

from typing import Annotated

import typer

import headscope as hs
from headscope.cli import script
from headscope.cli.options import Folder
from headscope.models.demo import DEMO_MODELS, demo_model
from headscope.reporting.figures import figure_of, ratios
from headscope.studies.benchmark import (
    CASES,
    bench_discovery,
    bench_minibatch,
    bench_pairs,
    bench_watching,
    put_together,
)
from headscope.studies.memory import bench_memory
from headscope.studies.peers import transformer_lens


def main(
    folder: Folder,
    model: Annotated[list[str] | None, typer.Option(help="models to watch; the demo's without it")] = None,
    rounds: Annotated[int, typer.Option(help="how often each arm is timed")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="the smallest case and the first model only")] = False,
) -> None:
    """Time every arm and write the table of ratios."""
    folder.check()
    cases = CASES[:1] if quick else CASES
    demo = {str(demo_model(name)): DEMO_MODELS[name] for name in list(DEMO_MODELS)[: 1 if quick else None] if not model}
    frames = [bench(case, rounds) for case in cases for bench in (bench_pairs, bench_minibatch)]
    for name in model or demo:
        loaded = hs.load_model(name)
        batches = loaded.batches or list(hs.text_batches(loaded.tokenizer, length=128, windows=64))
        peers, why_none = transformer_lens(loaded.model, loaded.tokenizer)
        if why_none:
            print(f"without peers: {why_none}")
        called = demo.get(name, loaded.name)
        frames.append(bench_discovery(loaded.model, batches[0], called, rounds))
        frames.append(bench_watching(loaded.model, batches, called, rounds, peers))
        frames.append(bench_memory(loaded.model, batches, called, ("1GB", "4GB")))
    table = put_together(frames)
    with folder.new() as new:
        table.to_csv(new / "benchmark.csv", index=False)
        figure_of(ratios(table)).savefig(new / "benchmark.png", dpi=150)
    print(table.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    script(main)
