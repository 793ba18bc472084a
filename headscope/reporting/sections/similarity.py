"""How alike the heads are: every layer's matrix, the most similar pairs, and the whole matrix where it was made."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure as Drawing

from headscope._support.formatting import MISSING, count, fixed
from headscope.reporting import figures
from headscope.reporting.blocks import Block, Column, Figure, Table, Text
from headscope.reporting.pictures import WIDE
from headscope.reporting.reportable import Reportable
from headscope.reporting.sections import SECTIONS, Section
from headscope.tables import NULLS, PairTable, head_names

__all__ = ["Similarity"]

_NAMES = {"cka": "CKA", "cosine": "cosine"}
_MEANINGS = {
    "cka": "CKA compares what two heads carry over all tokens (their z, before the output projection), whatever the "
    "rotation and scale: 1 = the same up to those, 0 = unrelated. The estimate is unbiased, so unrelated heads may "
    "come out a little below 0.",
    "cosine": "Token by token, whether two heads push the model's state in the same direction: 1 = always.",
}
_NULLS_TOLD = {
    "chance": "By chance: the same two heads, one of them as it is in other documents; told within a layer. ",
    "random_tokens": "On random tokens: the same two heads there. ",
    "untrained": "Untrained: the two heads of these numbers in an untrained copy, any two that is, since numbers of "
    "heads mean nothing before training. ",
}
_SHOWN = 10
_LEAST, _BESIDE = 0.36, 0.7  # share of the page that blocks take at the least, and up to which words find room beside


@SECTIONS.register("similarity")
class Similarity(Section):
    """One measure drawn, layer by layer; the others beside it in the table of pairs."""

    title: ClassVar[str] = "Similarity"
    order: ClassVar[int] = 30

    def blocks(self, analysis: Reportable) -> Iterator[Block]:
        if not analysis.pairs:
            return
        name = "cka" if "cka" in analysis.pairs else next(iter(analysis.pairs))
        pairs = analysis.pairs[name]
        layer = np.array([head.layer for head in pairs.heads])
        frame = _ranked(name, analysis)
        if frame.empty:
            yield Text("There are no two heads whose outputs could be compared.")
            return
        yield _blocks(name, pairs, frame)
        yield _top_pairs(name, frame, [measure for measure in analysis.pairs if measure in frame])
        if np.isfinite(pairs.matrix[layer[:, None] != layer[None, :]]).any():
            yield _whole(name, pairs, frame)


def _ranked(name: str, analysis: Reportable) -> pd.DataFrame:
    """Every pair of different heads once, most similar first, a column for each measure."""
    pairs = analysis.pairs[name]
    # a measure that is not symmetric has two numbers a pair: its mean ranks the pair
    mean = (pairs.matrix + pairs.matrix.T) / 2
    rows, columns = np.nonzero(np.triu(np.isfinite(mean), k=1))
    order = np.argsort(-mean[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    layer = np.array([head.layer for head in pairs.heads])
    frame = pd.DataFrame(
        {
            "head_a": head_names([pairs.heads[row] for row in rows], pairs.heads),
            "head_b": head_names([pairs.heads[column] for column in columns], pairs.heads),
            "same_layer": layer[rows] == layer[columns],
            "value": mean[rows, columns],
            "low": pairs.low[rows, columns],
            "high": pairs.high[rows, columns],
        }
    )
    for other, table in analysis.pairs.items():
        if table.heads != pairs.heads:
            continue
        prefix = "" if other == name else f"{other}_"
        own = {} if other == name else {other: table.matrix}
        nulls = table.nulls.items()
        own |= {f"{prefix}{null}": one if prefix else (one + one.T) / 2 for null, one in nulls}
        frame = frame.assign(**{column: numbers[rows, columns] for column, numbers in own.items()})
    return frame.rename(columns={"value": name})


def _label(name: str, pairs: PairTable) -> str:
    return f"{_NAMES.get(name, name)} of {pairs.of}"


def _blocks(name: str, pairs: PairTable, frame: pd.DataFrame) -> Figure:
    within = frame[frame["same_layer"]]
    values = within[name].to_numpy()
    layers = len({head.layer for head in pairs.heads})

    def draw(width: float, narrow: bool) -> Drawing:
        return figures.figure_of(figures.layer_blocks(pairs, width=width, label=_label(name, pairs)))

    share = max(figures.blocks_width(pairs) / WIDE, _LEAST)
    middle = f"Half of all pairs within a layer are above {fixed(float(np.median(values)), 2)}. " if len(values) else ""
    return Figure(
        "similarity",
        "Layer by layer",
        f"{count(layers, 'square matrix', 'square matrices')}, one a layer. Most similar: {_in_words(within, name)}.",
        f"Each square is one layer; row and column are its heads. {_MEANINGS.get(name, '')} {middle}Framed and named: "
        "the most similar two of each layer. Grey: a head with itself, or a head whose output never varies.",
        draw,
        share if share <= _BESIDE else 1.0,
    )


def _in_words(frame: pd.DataFrame, name: str) -> str:
    top = frame.head(3)
    rows = zip(top["head_a"], top["head_b"], top[name], strict=True)
    return ", ".join(f"{a} and {b} ({fixed(float(value), 2)})" for a, b, value in rows) or "none"


def _top_pairs(name: str, frame: pd.DataFrame, measures: Sequence[str]) -> Table:
    estimated = bool(np.isfinite(frame["low"]).any())
    nulls = [null for null in NULLS if null in frame and frame[null].notna().any()]
    columns = [
        Column("Pair", lambda row: f"{row.head_a}\u00a0–\u00a0{row.head_b}", strong=True),
        Column("Layer", lambda row: "same" if row.same_layer else "other"),
    ]
    for measure in measures:
        columns.append(Column(_NAMES.get(measure, measure), _reader(measure), numeric=True))
        if measure == name:
            columns += [Column("95% interval", _interval, numeric=True)] if estimated else []
            columns += [Column(NULLS[null].capitalize(), _reader(null), numeric=True) for null in nulls]
    caption = "Most similar first. "
    if estimated and frame["low"].isna().any():
        caption += "A dash in place of an interval: none could be made. "
    caption += "".join(_NULLS_TOLD[null] for null in nulls)
    if len(measures) > 1:
        caption += "A pair that is alike in one way only may still differ in what it does to the model's state."
    return Table("similar_pairs", "Most similar pairs", frame, tuple(columns), _SHOWN, caption.strip())


def _interval(row: Any) -> str:
    return MISSING if np.isnan(row.low) or np.isnan(row.high) else f"{fixed(row.low)} to {fixed(row.high)}"


def _reader(measure: str) -> Callable[[Any], str]:
    # a function of its own: a lambda in the loop over measures would see the last one only
    return lambda row: fixed(float(getattr(row, measure)))


def _whole(name: str, pairs: PairTable, frame: pd.DataFrame) -> Figure:
    across = frame[~frame["same_layer"]]

    def draw(width: float, narrow: bool) -> Drawing:
        ax = figures.canvas(width, figures.matrix_height(pairs, width))
        figures.whole_matrix(pairs, label=_label(name, pairs), ax=ax)
        return figures.figure_of(ax)

    values: npt.NDArray[np.float64] = across[name].to_numpy()
    return Figure(
        "similarity_all",
        "Every head with every other",
        f"Square matrix of {count(len(pairs.heads), 'head')}. Most similar across layers: {_in_words(across, name)}.",
        "All heads in order, layers set apart by lines; the squares along the diagonal are those above. Most alike "
        f"across layers: {_in_words(across, name)}. Half of the pairs across layers are above "
        f"{fixed(float(np.median(values)), 2)}.",
        draw,
        0.62,
    )
