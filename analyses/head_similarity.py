"""How alike are the heads of a model? CKA of every two heads, as a table and a picture.

python analyses/head_similarity.py --model ./my-model --text notes.txt --out similarity
"""

from pathlib import Path
from typing import Annotated

import typer

import headscope as hs
from headscope.cli import refusing
from headscope.folders import check_free, new_folder
from headscope.reporting.figures import figure_of, whole_matrix


def main(
    model: Annotated[str, typer.Option(help="hub name, folder, or package.module:factory")],
    out: Annotated[Path, typer.Option(help="output folder")],
    text: Annotated[list[Path] | None, typer.Option(help="text file or folder; the default corpus without it")] = None,
    measure: Annotated[str, typer.Option(help="measure of similarity")] = "cka",
    force: Annotated[bool, typer.Option("--force", help="replace the output folder")] = False,
) -> None:
    """Compare every head with every other."""
    check_free(out, force=force)
    loaded = hs.load_model(model)
    batches = loaded.batches or hs.text_batches(loaded.tokenizer, hs.read_texts(text) if text else None)
    pairs = hs.similarity(loaded.model, batches, measure=measure, scope="model")
    with new_folder(out, force=force) as new:
        pairs.save(new)
        figure_of(whole_matrix(pairs, label=measure)).savefig(new / f"{measure}.png", dpi=150)
    apart = pairs.to_frame().query("head_a < head_b").sort_values("value", ascending=False)
    print(apart.head(10).to_string(index=False))


if __name__ == "__main__":
    refusing(lambda: typer.run(main))
