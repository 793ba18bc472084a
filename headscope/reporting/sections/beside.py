"""What likeness stands beside: chance, and an untrained copy; whether the heads have grown apart, in words."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import pandas as pd
from matplotlib.figure import Figure as Drawing

from headscope._support.formatting import count, fixed
from headscope.reporting import figures
from headscope.reporting.blocks import Block, Column, Figure, Table, Text
from headscope.reporting.figures.beside import SAID, beside
from headscope.reporting.reportable import Reportable
from headscope.reporting.sections import SECTIONS, Section
from headscope.tables import NULLS, HeadTable, PairTable

__all__ = ["Beside"]

_WHAT = (
    "By chance: the same heads, one of them as it is at the same positions of other documents. So much comes out of as "
    "much text where no more than the position is shared."
)
_COPY = (
    " Untrained: a copy of the model with weights as its own initialisation draws them, on the same text. So much "
    "architecture and text give without training. One copy is a reference and no test."
)
_APART = (
    "Most have grown apart: they are less alike than architecture, initialisation and text alone made them in that "
    "copy, so that training did not make these redundant."
)
_CLOSER = (
    "Most are more alike than in that copy. Whether training did it, one copy cannot tell: claim C9 of the command "
    "headscope claims draws several."
)
_NAMES = {"replaceability": "Replaceable", "cka": "CKA"}
_SHOWN = 12
_MOST, _FEW = 0.75, 3  # share of the heads, or of the pairs; and of how many in a layer one can lie beyond all
_HEIGHT = 3.8


@SECTIONS.register("beside")
class Beside(Section):
    """Replaceability and CKA beside chance and an untrained copy, and whether the heads have grown apart."""

    title: ClassVar[str] = "What likeness stands beside"
    order: ClassVar[int] = 32

    def blocks(self, analysis: Reportable) -> Iterator[Block]:
        tables: dict[str, HeadTable | PairTable] = {**analysis.scores, **analysis.pairs}
        found = {name: beside(tables[name]) for name in _NAMES if name in tables}
        frames = {name: frame for name, frame in found.items() if not frame.empty}
        if not frames:
            return
        yield Text(" ".join([*(_told(name, frame) for name, frame in frames.items()), *_verdict(frames)]))
        if "replaceability" in frames:
            yield _heads(frames["replaceability"], analysis.verdict.lines.replaceability)
        if "cka" in frames:
            yield _layers(frames["cka"])
        yield _table(frames)


def _told(name: str, frame: pd.DataFrame) -> str:
    """The mean, what it stands beside, and how many lie beyond the untrained copy."""
    mean, nulls = fixed(frame["value"].mean(), 2), [null for null in SAID if null in frame]
    others = ", ".join(f"{SAID[null]} {fixed(frame[null].mean(), 2)}" for null in nulls)
    text = f"Two heads of a layer have a CKA of {mean} on average; {others}."
    if name == "replaceability":
        text = f"On average the others of its layer give {mean} of what varies in a head; {others}."
    below, above, held = _beyond(frame)
    if not held:
        return text
    which = count(held, "head" if name == "replaceability" else "pair")
    which += " of layers that have three" if held < len(frame) else ""
    lie = "lies" if below == 1 else "lie"
    return f"{text} Of {which}, {below:,} {lie} below every one of the layer in the copy, {above:,} above every one."


def _beyond(frame: pd.DataFrame) -> tuple[int, int, int]:
    """How many lie below the lowest of their layer in the untrained copy, and above the highest; and out of how many.

    By whole intervals. Heads of a copy have nothing to do with those of the same number: a layer's are held against all
    of the layer's. Where these are one or two, to lie beyond them is nothing rare, and such layers are left out.
    """
    if "untrained" not in frame:
        return 0, 0, 0
    copies = frame.groupby("layer")["untrained"]
    held = copies.transform("size") >= _FEW
    below, above = frame["high"] < copies.transform("min"), frame["low"] > copies.transform("max")
    return int((below & held).sum()), int((above & held).sum()), int(held.sum())


def _verdict(frames: Mapping[str, pd.DataFrame]) -> list[str]:
    """Whether the heads have grown apart, once for all numbers; nothing where it is not clear, or not known."""
    counts = [_beyond(frame) for frame in frames.values()]
    below, above = (any(one[end] > _MOST * one[2] for one in counts) for end in (0, 1))
    return [_APART] if below and not above else [_CLOSER] if above and not below else []


def _heads(frame: pd.DataFrame, line: float) -> Figure:
    table = frame.rename(columns={"value": "share", "low": "share_low", "high": "share_high"})
    words = {name: words for name, words in SAID.items() if name in table}
    if "untrained" in table:
        table["untrained"] = table.groupby("layer")["untrained"].transform("mean")

    def draw(width: float, narrow: bool) -> Drawing:
        ax = figures.canvas(width, _HEIGHT)
        label = "share of what varies in the head\nthat the others of its layer give"
        figures.sorted_dots(table, "share", label=label, size=line, beside=words, ax=ax)
        return figures.figure_of(ax)

    copy = " Plus signs: the mean of the head's layer in an untrained copy." if "untrained" in table else ""
    return Figure(
        "replaceability",
        "How much of each head the others give",
        f"Dots of {count(len(table), 'head')} from low to high, with intervals. {_told('replaceability', frame)}",
        "Each dot is a head, with its 95% interval. Crosses: the same head by chance. Below 0 the fits are worse than "
        f"a constant, for want of text.{copy}",
        draw,
        0.5,
    )


def _layers(frame: pd.DataFrame) -> Figure:
    means = frame.groupby("layer", as_index=False).mean().drop(columns=["low", "high"])
    series = {"value": "this model", **{name: words for name, words in SAID.items() if name in means}}

    def draw(width: float, narrow: bool) -> Drawing:
        ax = figures.canvas(width, _HEIGHT)
        figures.layer_dots(means, series, label="mean CKA of two heads of the layer", ax=ax)
        return figures.figure_of(ax)

    return Figure(
        "likeness",
        "How alike the heads of each layer are",
        f"Dots of {count(len(means), 'layer')}. {_told('cka', frame)}",
        "Each mark is the mean over all pairs of heads of a layer.",
        draw,
        0.5,
    )


def _table(frames: Mapping[str, pd.DataFrame]) -> Table:
    parts = []
    for name, frame in frames.items():
        means = frame.groupby("layer").mean().drop(columns=["low", "high"])
        parts.append(means.add_prefix(f"{name}_").rename(columns={f"{name}_value": name}))
    rows = pd.concat(parts, axis=1).reset_index()
    columns = [Column("Layer", lambda row: str(row.layer), strong=True)]
    for name in (name for name in rows if name != "layer"):
        measure, _, null = name.partition("_")
        title = " ".join(filter(None, (_NAMES[measure], NULLS.get(null))))
        columns.append(Column(title, _reader(name), numeric=True))
    caption = f"Means over the heads of a layer, and over its pairs of heads. {_WHAT}"
    caption += _COPY if any("untrained" in frame for frame in frames.values()) else ""
    return Table("layers", "Layer by layer, beside them", rows, tuple(columns), _SHOWN, caption)


def _reader(name: str) -> Callable[[Any], str]:
    # a function of its own: a lambda in the loop over columns would see the last one only
    return lambda row: fixed(float(getattr(row, name)), 2)
