"""What the analyses return: one number per head, or per pair of heads, with what it was measured on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from headscope.errors import StorageError, UnknownNameError
from headscope.heads import HeadId, HeadLike

__all__ = ["HeadTable", "PairTable", "read_number"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HeadTable:
    """One score per head.

    Attributes:
        name: which score, e.g. "ablation".
        unit: unit of the score, e.g. "nats/token"; "" for none.
        heads: the heads, in the order of the arrays.
        score: (head,); NaN where the score is not defined.
        low, high: (head,) ends of the 95% interval over documents; NaN where there is none.
        facts: what it was measured on and how (metric, ablation mode, documents, tokens, seed …); JSON values only.
    """

    name: str
    unit: str
    heads: tuple[HeadId, ...]
    score: Floats
    low: Floats
    high: Floats
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, head: HeadLike) -> float:
        return float(self.score[_place(self.heads, head)])

    def to_frame(self) -> pd.DataFrame:
        """Columns layer, head, score, low, high, n_documents, n_tokens; a row per head."""
        return pd.DataFrame(
            {
                "layer": [head.layer for head in self.heads],
                "head": [head.head for head in self.heads],
                "score": self.score,
                "low": self.low,
                "high": self.high,
                "n_documents": self.facts.get("documents"),
                "n_tokens": self.facts.get("tokens"),
            }
        )

    def _repr_html_(self) -> str:
        return f"<p>{self.name} ({self.unit or 'no unit'})</p>" + self.to_frame().to_html(index=False)

    def save(self, folder: str | Path) -> None:
        """Write NAME.csv (the rows) and NAME.json (name, unit, facts) into an existing folder."""
        folder = Path(folder)
        self.to_frame().to_csv(folder / f"{self.name}.csv", index=False)
        about = {"name": self.name, "unit": self.unit, "facts": dict(self.facts)}
        (folder / f"{self.name}.json").write_text(json.dumps(about, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, name: str) -> Self:
        """Read back what `save` wrote; floats return bit-equal."""
        frame, about = _read(Path(folder), name, {"layer", "head", "score", "low", "high"})
        heads = tuple(HeadId(int(layer), int(head)) for layer, head in zip(frame["layer"], frame["head"], strict=True))
        score, low, high = (frame[column].to_numpy(np.float64) for column in ("score", "low", "high"))
        return cls(about["name"], about["unit"], heads, score, low, high, about["facts"])


@dataclass(frozen=True, eq=False)
class PairTable:
    """One number per ordered pair of heads.

    Attributes:
        name: which measure, e.g. "cka".
        of: what was compared: "z", "q", "k", "v", "contribution".
        heads: the heads, in the order of the matrix (for "k" and "v": key heads, numbered as heads).
        matrix: (head, head); NaN for pairs that were not asked for or are not defined.
        low, high: (head, head) ends of the 95% interval; NaN where there is none.
        facts: what it was measured on and how; JSON values only.
    """

    name: str
    of: str
    heads: tuple[HeadId, ...]
    matrix: Floats
    low: Floats
    high: Floats
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, pair: tuple[HeadLike, HeadLike]) -> float:
        a, b = (_place(self.heads, head) for head in pair)
        return float(self.matrix[a, b])

    def to_frame(self) -> pd.DataFrame:
        """Columns head_a, head_b, value, low, high; one row per ordered pair that has a value, self-pairs included."""
        rows, columns = np.nonzero(~np.isnan(self.matrix))
        names = np.array([str(head) for head in self.heads], dtype=object)
        return pd.DataFrame(
            {
                "head_a": names[rows],
                "head_b": names[columns],
                "value": self.matrix[rows, columns],
                "low": self.low[rows, columns],
                "high": self.high[rows, columns],
            }
        )

    def _repr_html_(self) -> str:
        return f"<p>{self.name} of {self.of}</p>" + self.to_frame().to_html(index=False, max_rows=40)

    def save(self, folder: str | Path) -> None:
        """Write NAME.csv (the pairs) and NAME.json (name, of, heads, facts) into an existing folder."""
        folder = Path(folder)
        self.to_frame().to_csv(folder / f"{self.name}.csv", index=False)
        heads = [str(head) for head in self.heads]
        about = {"name": self.name, "of": self.of, "heads": heads, "facts": dict(self.facts)}
        (folder / f"{self.name}.json").write_text(json.dumps(about, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, name: str) -> Self:
        """Read back what `save` wrote; floats return bit-equal."""
        frame, about = _read(Path(folder), name, {"head_a", "head_b", "value", "low", "high"})
        heads = tuple(HeadId.parse(head) for head in about["heads"])
        place = {str(head): index for index, head in enumerate(heads)}
        rows = [place[head] for head in frame["head_a"]]
        columns = [place[head] for head in frame["head_b"]]
        value, low, high = (np.full((len(heads), len(heads)), np.nan) for _ in range(3))
        for target, column in ((value, "value"), (low, "low"), (high, "high")):
            target[rows, columns] = frame[column]
        return cls(about["name"], about["of"], heads, value, low, high, about["facts"])


def _place(heads: tuple[HeadId, ...], head: HeadLike) -> int:
    wanted = HeadId.parse(head)
    if wanted not in heads:
        have = ", ".join(str(own) for own in heads if own.layer == wanted.layer) or "none"
        raise UnknownNameError(f"{wanted} is not in this table of {len(heads)} heads; of layer {wanted.layer}: {have}")
    return heads.index(wanted)


def _read(folder: Path, name: str, columns: set[str]) -> tuple[pd.DataFrame, dict[str, Any]]:
    try:
        about = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        numbers = dict.fromkeys(("score", "low", "high", "value"), read_number)
        frame = pd.read_csv(folder / f"{name}.csv", converters=numbers)
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read the table {name!r} in {folder}: {error}") from error
    if missing := sorted(columns - set(frame)):
        raise StorageError(f"the table {folder / name}.csv has no column {missing[0]!r}; it is not as it was saved")
    return frame, about


def read_number(cell: str) -> float:
    """A cell of a CSV file, "" = NaN; a converter, since pandas' own reader is off in the last place now and then."""
    return float(cell) if cell else float("nan")
