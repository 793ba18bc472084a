"""How alike are the heads of a model, what could stand in for what, and what does each do? Tables and figures.

python analyses/head_similarity.py --model ./my-model --text notes.txt --out similarity
"""

from pathlib import Path
from typing import Annotated

import typer

import headscope as hs
from headscope.cli import refusing
from headscope.comparing import How, compare_heads
from headscope.folders import check_free, new_folder
from headscope.measures import MEASURES
from headscope.reporting import figures


def main(
    model: Annotated[str, typer.Option(help="hub name, folder, or package.module:factory")],
    out: Annotated[Path, typer.Option(help="output folder")],
    text: Annotated[list[Path] | None, typer.Option(help="text file or folder; the default corpus without it")] = None,
    windows: Annotated[int, typer.Option(help="windows of text; 0 for all")] = 128,
    length: Annotated[int, typer.Option(help="tokens of a window")] = 128,
    memory: Annotated[str, typer.Option(help="what the sums over every two heads may take")] = "4GB",
    seed: Annotated[int, typer.Option(help="of every draw")] = 0,
    force: Annotated[bool, typer.Option("--force", help="replace the output folder")] = False,
) -> None:
    """Compare heads by every measure, cluster and map them, find how many a layer needs, and name their roles."""
    check_free(out, force=force)
    loaded = hs.load_model(model)
    texts = hs.read_texts(text) if text else None
    batches = loaded.batches or hs.text_batches(
        loaded.tokenizer, texts, length=length, windows=windows or None, seed=seed
    )
    anatomy = hs.discover(loaded.model, None if loaded.batches is None else batches[0])
    within = compare_heads(loaded.model, batches, [(name, None) for name in MEASURES], How(seed=seed), anatomy=anatomy)
    no_sink = hs.similarity(loaded.model, batches, "cka", anatomy=anatomy, skip_first=1)
    across = hs.similarity(loaded.model, batches, "cka_biased", scope="model", memory=memory, anatomy=anatomy)
    clusters, chart = hs.cluster(across), hs.map_heads(across, seed=seed)
    needed = hs.redundancy(loaded.model, batches, anatomy=anatomy)
    jobs = hs.roles(loaded.model, batches, loaded.tokenizer, anatomy=anatomy, seed=seed)
    by_name = {table.name: table for table in within}
    drawn = {
        "similarity": figures.layer_blocks(by_name["cka"], 9.0, label="CKA of z"),
        "similarity_without_first": figures.layer_blocks(no_sink, 9.0, label="CKA of z, without each first position"),
        "clusters": figures.figure_of(figures.cluster_matrix(across, clusters)),
        "map": figures.figure_of(figures.head_scatter(chart)),
        "redundancy": figures.figure_of(figures.redundancy_curve(needed)),
        "roles": figures.figure_of(figures.role_map(jobs)),
    }
    with new_folder(out, force=force) as new:
        for folder, tables in (("within_layers", within), ("without_first", [no_sink]), ("across_layers", [across])):
            (new / folder).mkdir()
            for table in tables:
                table.save(new / folder)
        needed.save(new)
        jobs.save(new)
        clusters.to_frame().to_csv(new / "clusters.csv", index=False)
        chart.to_frame().to_csv(new / "map.csv", index=False)
        for name, figure in drawn.items():
            figure.savefig(new / f"{name}.png", dpi=200)
            figure.savefig(new / f"{name}.pdf")
    print(needed.effective.to_string(index=False))
    print(jobs.to_frame()[["layer", "head", "role", "score", "low", "high", "example"]].to_string(index=False))


if __name__ == "__main__":
    refusing(lambda: typer.run(main))
