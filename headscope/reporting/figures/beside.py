"""What likeness stands beside in a figure: means of chance, of random tokens and of an untrained copy, as lines."""

from collections.abc import Mapping
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colorbar import Colorbar
from matplotlib.patheffects import Normal, Stroke

from headscope._support.formatting import fixed
from headscope.tables import NULLS, HeadTable, PairTable

__all__ = ["LOOKS", "SAID", "beside", "mark_bar", "means_beside"]

LOOKS: Mapping[str, tuple[Any, str]] = {  # how each line is drawn, and the word for it: told apart without colours
    "value": ("-", "solid"),
    "random_tokens": ((0, (5, 1.5, 1, 1.5)), "dash-dotted"),
    "chance": ((0, (1, 1.2)), "dotted"),
    "untrained": ((0, (4, 2)), "dashed"),
}
SAID: Mapping[str, str] = {**NULLS, "untrained": "in an untrained copy"}
"""What it is called in a sentence or a legend."""

_LETTERS = 14  # of a label that find room in an inch


def beside(table: HeadTable | PairTable) -> pd.DataFrame:
    """The numbers of a table with what they stand beside: a row a head, or a pair of different heads of one layer.

    Args:
        table: of scores or of pairs.

    Returns:
        Columns layer, value, low, high, and those out of `headscope.tables.NULLS` that hold any number; rows that lack
        one of these are left out. No row where the table stands beside nothing.
    """
    if isinstance(table, HeadTable):
        layers = np.array([head.layer for head in table.heads])
        parts: Mapping[str, Any] = {"value": table.score, "low": table.low, "high": table.high, **table.columns}
    else:
        rows, columns = _within(table)
        layers = np.array([head.layer for head in table.heads])[rows]
        parts = {"value": table.matrix, "low": table.low, "high": table.high, **table.nulls}
        parts = {name: numbers[rows, columns] for name, numbers in parts.items()}
    known = [name for name in NULLS if name in parts and np.isfinite(parts[name]).any()]
    frame = pd.DataFrame({"layer": layers, **{name: parts[name] for name in ("value", "low", "high", *known)}})
    return frame.dropna(subset=["value", *known], ignore_index=True) if known else frame.iloc[:0]


def means_beside(table: HeadTable | PairTable) -> dict[str, float]:
    """The mean of a table, "value", and of each that it stands beside, by name; nothing where it stands beside nothing.

    Args:
        table: of scores or of pairs.
    """
    frame = beside(table)
    return {} if frame.empty else {name: float(frame[name].mean()) for name in LOOKS if name in frame}


def mark_bar(table: HeadTable | PairTable, bar: Colorbar, width: float) -> None:
    """The same means as lines that rise from a bar of colours, and in words beneath its label.

    Args:
        table: of scores or of pairs.
        bar: as it lies beneath a map; a mean that it does not reach has no line, and is said to have none.
        width: inches that a line of words may take.
    """
    names = {"value": "mean head" if isinstance(table, HeadTable) else "mean pair of a layer", **SAID}
    edge = [Stroke(linewidth=3.2, foreground="#ffffff"), Normal()]  # as frames: to be seen on any colour
    least, most = bar.mappable.get_clim()
    told = []
    for name, mean in means_beside(table).items():
        look, called = LOOKS[name]
        if (least or 0.0) <= mean <= (most or 1.0):
            bar.ax.plot(
                [mean, mean], [0.0, 2.6], transform=bar.ax.get_xaxis_transform(), color="#000000", linewidth=1.4,
                linestyle=look, clip_on=False, path_effects=edge, label=name,
            )  # fmt: skip
        else:
            called = "off the bar"
        told.append(f"{names[name]} {fixed(mean, 2)} ({called})")
    bar.set_label("\n".join(filter(None, (bar.ax.get_xlabel(), *wrap(", ".join(told), int(_LETTERS * width))))))


def _within(table: PairTable) -> tuple[Any, Any]:
    """Rows and columns of the pairs of heads of one layer: each pair once where both orders are the same number."""
    layer_a, layer_b = ([head.layer for head in heads] for heads in (table.heads, table.column_heads))
    chosen = np.equal.outer(layer_a, layer_b)
    if table.other is None:
        chosen &= ~(np.tri(len(layer_a), dtype=bool) if table.symmetric else np.eye(len(layer_a), dtype=bool))
    rows, columns = np.nonzero(chosen)
    return rows, columns
