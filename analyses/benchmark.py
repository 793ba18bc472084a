"""What do watching and comparing cost? Ratios of arms that take turns in one process."""

from typing import Annotated

import typer

from headscope.cli import script
from headscope.cli.options import Folder, Loading, Sampling
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
    model: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="hub names, local folders, or package.module:factory; the demo's models without it",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="how often each arm is timed")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="the smallest case and the first model only")] = False,
    sampling: Sampling = Sampling(),
    loading: Loading = Loading(),
) -> None:
    """Time every arm and write the table of ratios.

    Example: python analyses/benchmark.py --out benchmark
    """
    folder.check()
    texts = sampling.texts()
    cases = CASES[:1] if quick else CASES
    demo = {str(demo_model(name)): DEMO_MODELS[name] for name in list(DEMO_MODELS)[: 1 if quick else None] if not model}
    frames = [bench(case, rounds) for case in cases for bench in (bench_pairs, bench_minibatch)]
    for name in model or demo:
        loaded = loading.load(name)
        batches = list(sampling.batches(loaded, texts))
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
