"""What the analyses return: one number per head, or per pair of heads, with what it was measured on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from headscope._support.formatting import interval, number
from headscope._support.grids import heat_grid
from headscope._support.shown import Shown, reasons
from headscope._support.tabular import read_table, write_table
from headscope.errors import StorageError, UnknownNameError
from headscope.heads import HeadId, HeadLike

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "NULLS",
    "HeadTable",
    "PairTable",
    "block_columns",
    "find_head",
    "head_names",
    "settle_tokens",
    "token_counts",
]

Floats = npt.NDArray[np.float64]

NULLS: Mapping[str, str] = {
    "random_tokens": "on random tokens",
    "chance": "by chance",
    "untrained": "untrained",
}
"""What a likeness stands beside: its columns, and their headings.

The same maps on random tokens; the same head beside other heads of other documents; an untrained copy of the model.
"""

_SHOWN = 40  # heads whose pairs a notebook shows


@dataclass(frozen=True, eq=False, repr=False)
class HeadTable(Shown):
    """One score per head.

    Attributes:
        name: which score, e.g. "ablation".
        unit: unit of the score, e.g. "nats/token"; "" for none.
        heads: the heads, in the order of the arrays.
        score: (head,); NaN where the score is not defined.
        low, high: (head,) ends of the 95% interval over documents; NaN where there is none.
        facts: what it was measured on and how (metric, ablation mode, documents, tokens, seed …); JSON values only.
        columns: further numbers of each head by name, (head,) each, e.g. "p_value" and "q_value" where a test is made.
    """

    name: str
    unit: str
    heads: tuple[HeadId, ...]
    score: Floats
    low: Floats
    high: Floats
    facts: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Floats] = field(default_factory=dict)

    def __getitem__(self, head: HeadLike) -> float:
        return float(self.score[find_head(self.heads, head)])

    def to_frame(self) -> "pd.DataFrame":
        """Columns layer, (block,) head, score, low, high, those of `columns`, n_documents, n_tokens; a row per head.

        "block" is where the layer stands, as "decoder.block.3 cross", in models whose layers' numbers do not tell it.
        """
        import pandas as pd  # here and below: who captures tensors makes no frame, and pandas is slow to load

        return pd.DataFrame(
            {
                "layer": [head.layer for head in self.heads],
                **block_columns(self.facts, block=self.heads),
                "head": [head.head for head in self.heads],
                "score": self.score,
                "low": self.low,
                "high": self.high,
                **self.columns,
                "n_documents": self.facts.get("documents"),
                "n_tokens": token_counts(self.facts, [head.layer for head in self.heads]),
            }
        )

    def _tables(self) -> "dict[str, pd.DataFrame]":
        return {f"{self.name} ({self.unit or 'no unit'})": self.to_frame()}

    def _grid(self) -> str:
        told = {
            (head.layer, head.head): (score, _told(str(head), score, low, high))
            for head, score, low, high in zip(self.heads, self.score, self.low, self.high, strict=True)
        }
        layers, numbers = (sorted({place[axis] for place in told}) for axis in (0, 1))
        return heat_grid(told, {one: f"L{one}" for one in layers}, {one: f"H{one}" for one in numbers})

    def _missing(self) -> list[str]:
        return reasons(self.facts)

    def save(self, folder: str | Path, name: str | None = None) -> None:
        """Write NAME.csv and NAME.parquet (the rows) and NAME.json (name, unit, facts) into an existing folder.

        Args:
            folder: where.
            name: what the files are called; the score's name without it.
        """
        about = {"name": self.name, "unit": self.unit, "columns": list(self.columns), "facts": dict(self.facts)}
        write_table(Path(folder), name or self.name, self.to_frame(), about)

    @classmethod
    def load(cls, folder: str | Path, name: str) -> Self:
        """Read back what `save` wrote; floats return bit-equal."""
        frame, about = read_table(Path(folder), name, {"layer", "head", "score", "low", "high"})
        heads = tuple(HeadId(int(layer), int(head)) for layer, head in zip(frame["layer"], frame["head"], strict=True))
        score, low, high = (frame[column].to_numpy(np.float64) for column in ("score", "low", "high"))
        columns = {name: frame[name].to_numpy(np.float64) for name in about.get("columns", ())}
        if about["name"] == "replaceability" and "constant" not in columns:
            raise StorageError(
                f"{folder}/{name}.csv holds a replaceability of an earlier version, which counted a head's constant "
                "too: it is another number under the same name. Make it again",
                python='headscope.importance(model, batches, score="replaceability")',
                shell="headscope importance MODEL --score replaceability",
            )
        return cls(about["name"], about["unit"], heads, score, low, high, about["facts"], columns)


@dataclass(frozen=True, eq=False, repr=False)
class PairTable(Shown):
    """One number per ordered pair of heads: of one model, or of two models.

    Attributes:
        name: which measure, e.g. "cka".
        of: what was compared: "z", "q", "k", "v", "contribution", "pattern", "weights".
        heads: the heads of the rows (for "k" and "v": key heads, numbered as heads).
        matrix: (head, head); NaN for pairs that were not asked for or are not defined.
        low, high: (head, head) ends of the 95% interval over documents; NaN where there is none.
        facts: what it was measured on and how; JSON values only.
        nulls: what the values stand beside, (head, head) each, by a name out of `NULLS`; NaN where there is none.
        other: the heads of the columns where they are another model's; None where rows and columns are the same heads.
        symmetric: whether the measure says that value(a, b) = value(b, a). Within one model the numbers above the
            diagonal then stand below it too: sums in another order differ in their last digits.
    """

    name: str
    of: str
    heads: tuple[HeadId, ...]
    matrix: Floats
    low: Floats
    high: Floats
    facts: Mapping[str, Any] = field(default_factory=dict)
    nulls: Mapping[str, Floats] = field(default_factory=dict)
    other: tuple[HeadId, ...] | None = None
    symmetric: bool = False

    def __post_init__(self) -> None:
        if self._twofold:
            lower = np.tri(len(self.matrix), dtype=bool)
            for name in ("matrix", "low", "high"):
                object.__setattr__(self, name, np.where(lower, getattr(self, name).T, getattr(self, name)))
            twofold = {name: np.where(lower, numbers.T, numbers) for name, numbers in self.nulls.items()}
            object.__setattr__(self, "nulls", twofold)

    @property
    def _twofold(self) -> bool:
        """Whether the matrix holds every pair twice."""
        return self.symmetric and self.other is None

    @property
    def column_heads(self) -> tuple[HeadId, ...]:
        """The heads of the columns."""
        return self.heads if self.other is None else self.other

    def __getitem__(self, pair: tuple[HeadLike, HeadLike]) -> float:
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise UnknownNameError(f"a table of pairs is read by two heads, as in pairs['L0H1', 'L0H2']; got {pair!r}")
        a, b = pair
        return float(self.matrix[find_head(self.heads, a), find_head(self.column_heads, b)])

    def to_frame(self, *, every: bool = False) -> "pd.DataFrame":
        """Columns head_a, head_b, (block_a, block_b,) value, low, high, those of `nulls`, n_documents, n_tokens.

        A row per pair that has a value; blocks as in `HeadTable.to_frame`. Names of heads are ordered categories: they
        sort, compare and group by layer and head, "L2H1" before "L10H2".

        Args:
            every: every ordered pair, self-pairs included. Without it, a symmetric measure within one model gives each
                pair of different heads once, the earlier head as head_a. Other tables always give every ordered pair.
        """
        return self._frame(~np.tri(len(self.heads), dtype=bool) if self._twofold and not every else None)

    def _frame(self, chosen: "npt.NDArray[np.bool_] | None" = None) -> "pd.DataFrame":
        """A row per pair that has a value and is among the chosen, all of them by default."""
        has = ~np.isnan(self.matrix)
        rows, columns = np.nonzero(has if chosen is None else has & chosen)
        heads = sorted({*self.heads, *self.column_heads})
        import pandas as pd

        return pd.DataFrame(
            {
                "head_a": head_names([self.heads[row] for row in rows], heads),
                "head_b": head_names([self.column_heads[column] for column in columns], heads),
                **self._blocks(rows, columns),
                "value": self.matrix[rows, columns],
                "low": self.low[rows, columns],
                "high": self.high[rows, columns],
                **{name: numbers[rows, columns] for name, numbers in self.nulls.items()},
                "n_documents": self.facts.get("documents"),
                "n_tokens": token_counts(self.facts, [self.heads[row].layer for row in rows]),
            }
        )

    def _blocks(self, rows: Iterable[int], columns: Iterable[int]) -> dict[str, list[str]]:
        if self.other is not None:
            return {}
        return block_columns(
            self.facts, block_a=[self.heads[row] for row in rows], block_b=[self.heads[column] for column in columns]
        )

    def _tables(self) -> "dict[str, pd.DataFrame]":
        return {f"{self.name} of {self.of}" + ("" if self.other is None else ", of two models"): self.to_frame()}

    def _grid(self) -> str:
        """Heads by heads; by the heads of their own layer, where layers were not compared with each other."""
        a, b, alone = self.heads, self.column_heads, self.other is None
        same = np.equal.outer([head.layer for head in a], [head.layer for head in b])
        within = not np.isfinite(self.matrix[~same]).any()
        apart = np.where(np.eye(len(a), dtype=bool), np.nan, self.matrix) if alone else self.matrix
        rows, columns = _foremost(apart), np.arange(len(b)) if within else _foremost(apart.T)
        asked = [
            (row, column)
            for row in rows for column in columns
            if (same[row, column] or not within) and not (alone and row == column)
        ]  # fmt: skip
        told = {}
        for row, column in asked:
            value, low, high = (float(part[row, column]) for part in (self.matrix, self.low, self.high))
            place = row, b[column].head if within else column
            told[place] = value, _told(f"{a[row]}, {b[column]}", value, low, high)
        names = {head.head: f"H{head.head}" for head in sorted(b)} if within else {one: str(b[one]) for one in columns}
        notes = ["columns: the heads of the row's own layer"] if within and not same.all() else []
        if len(rows) < len(a) or len(columns) < len(b):
            notes.append(f"{len(rows)} of {len(a)} heads: those most like another; to_frame() has all")
        return heat_grid(told, {row: str(a[row]) for row in rows}, names, most=1.0, notes=notes)

    def _missing(self) -> list[str]:
        return reasons(self.facts)

    def save(self, folder: str | Path, name: str | None = None) -> None:
        """Write NAME.csv and NAME.parquet (the pairs) and NAME.json (what they are of) into an existing folder.

        The rows are those of `to_frame`, and the self-pairs, by which a constant head is told.

        Args:
            folder: where.
            name: what the files are called; the measure's name without it.
        """
        about = {
            "name": self.name,
            "of": self.of,
            "heads": [str(head) for head in self.heads],
            "other": None if self.other is None else [str(head) for head in self.other],
            "nulls": list(self.nulls),
            "symmetric": self.symmetric,
            "facts": dict(self.facts),
        }
        chosen = ~np.tri(len(self.heads), k=-1, dtype=bool) if self._twofold else None
        write_table(Path(folder), name or self.name, self._frame(chosen), about)

    @classmethod
    def load(cls, folder: str | Path, name: str) -> Self:
        """Read back what `save` wrote; floats return bit-equal."""
        frame, about = read_table(Path(folder), name, {"head_a", "head_b", "value", "low", "high"})
        heads = tuple(HeadId.parse(head) for head in about["heads"])
        other = None if about.get("other") is None else tuple(HeadId.parse(head) for head in about["other"])
        sides = (heads, heads if other is None else other)
        place_a, place_b = ({str(head): i for i, head in enumerate(own)} for own in sides)
        rows = [place_a[head] for head in frame["head_a"]]
        columns = [place_b[head] for head in frame["head_b"]]
        filled = {}
        frame = frame.rename(columns={"null": "random_tokens"})  # as earlier versions called it
        nulls = about.get("nulls") or [column for column in ("random_tokens",) if column in frame]
        for column in ("value", "low", "high", *nulls):
            filled[column] = np.full((len(place_a), len(place_b)), np.nan)
            filled[column][rows, columns] = frame[column]
        value, low, high = filled["value"], filled["low"], filled["high"]
        beside = {name: filled[name] for name in nulls}
        return cls(
            about["name"],
            about["of"],
            heads,
            value,
            low,
            high,
            about["facts"],
            beside,
            other,
            about.get("symmetric", False),  # files of before hold every ordered pair, and do not say so
        )


def _foremost(matrix: Floats) -> npt.NDArray[np.int64]:
    """Which rows are shown where they are many, in order: those with the largest values."""
    largest = np.where(np.isnan(matrix), -np.inf, matrix).max(1, initial=-np.inf)
    return np.sort(np.argsort(-largest, kind="stable")[:_SHOWN])


def _told(name: str, value: float, low: float, high: float) -> str:
    """What a pointer on a number is told."""
    words = "no value" if np.isnan(value) else number(value)
    return f"{name}: {words}" + (f" ({around})" if (around := interval(low, high)) else "")


def settle_tokens(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts with "layer_tokens" (positions by layer, its number as text) only where layers differ in them."""
    by_layer = facts.get("layer_tokens", {})
    settled = {name: value for name, value in facts.items() if name != "layer_tokens"}
    counts = set(by_layer.values())
    if len(counts) > 1:
        return {**settled, "layer_tokens": by_layer}
    return {**settled, "tokens": counts.pop()} if counts else settled


def token_counts(facts: Mapping[str, Any], layers: Sequence[int | str]) -> Any:
    """How many positions the numbers of each layer rest on: one for all, or one for each."""
    by_layer, whole = facts.get("layer_tokens"), facts.get("tokens")
    return whole if by_layer is None else [by_layer.get(str(layer), whole) for layer in layers]


def block_columns(facts: Mapping[str, Any], **columns: Sequence[HeadId]) -> dict[str, list[str]]:
    """Columns that tell where the heads' layers stand, where the facts know; else none."""
    blocks = facts.get("blocks")
    if blocks is None:
        return {}
    return {name: [blocks.get(str(head.layer), "") for head in heads] for name, heads in columns.items()}


def head_names(names: Iterable[HeadId | str], order: Iterable[HeadId | str]) -> "pd.Categorical":
    """A column of names that sorts, compares and groups as they are ordered, and not letter by letter.

    Args:
        names: a name a row.
        order: every name, first to last.
    """
    import pandas as pd

    return pd.Categorical([*map(str, names)], categories=[*map(str, order)], ordered=True)


def find_head(heads: tuple[HeadId, ...], head: HeadLike) -> int:
    """Where a head stands among those of a table.

    Raises:
        UnknownNameError: it is not there.
    """
    wanted = HeadId.parse(head)
    if wanted not in heads:
        have = ", ".join(str(own) for own in heads if own.layer == wanted.layer) or "none"
        raise UnknownNameError(f"{wanted} is not in this table of {len(heads)} heads; of layer {wanted.layer}: {have}")
    return heads.index(wanted)
