"""What each head does, as a table: a verdict, the score of every role, and an example in tokens."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from headscope._support.shown import Shown, reasons
from headscope._support.tabular import read_table, write_table
from headscope.heads import HeadId, HeadLike
from headscope.tables import block_columns, find_head, token_counts

__all__ = ["MIXED", "ROLES", "RoleExample", "RoleTable", "Spelled"]

Floats = npt.NDArray[np.float64]

ROLES = ("previous", "next", "same", "duplicate", "induction", "delimiter", "sink", "broad")
MIXED = "mixed"  # the verdict on a head that none of these describes

_BEFORE, _AFTER, _BESIDE = 4, 2, 1  # tokens shown round the query, and on each side of a key


@dataclass(frozen=True, slots=True)
class Spelled:
    """One token in its place, as text.

    Attributes:
        position: in its row of the batch, from 0.
        before: the tokens before it, nearest last; "" where a token only continues a character.
        token: itself; the whole character, where several tokens make one.
        after: the tokens after it.
        weight: the share of the query's attention that it gets; NaN for the query itself.
    """

    position: int
    before: tuple[str, ...]
    token: str
    after: tuple[str, ...]
    weight: float = float("nan")

    def quote(self, n_before: int, n_after: int) -> str:
        """The token in ‹ › among its neighbours."""
        before = [piece for piece in self.before if piece]
        after = [piece for piece in self.after if piece]
        start, end = "".join(before[max(len(before) - n_before, 0) :]), "".join(after[:n_after])
        gap = " " if self.token.startswith(" ") else ""
        return f"{start}{gap}‹{self.token.strip() or self.token}›{end}".strip()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read back what `dataclasses.asdict` gave."""
        return cls(**{**data, "before": tuple(data["before"]), "after": tuple(data["after"])})


@dataclass(frozen=True, slots=True)
class RoleExample:
    """One query, and the keys that it looks at most.

    Attributes:
        role: the role that it shows.
        query: the token that looks.
        keys: those that it looks at, most weight first; where the role is not "sink", the sink is left out.
    """

    role: str
    query: Spelled
    keys: tuple[Spelled, ...]

    def __str__(self) -> str:
        """The query in its text → the strongest key in its text and its weight; for "broad" all keys, bare."""
        query = self.query.quote(_BEFORE, _AFTER)
        if self.role == "broad":
            return f"{query} → " + ", ".join(f"{key.quote(0, 0)} {key.weight:.2f}" for key in self.keys)
        return f"{query} → " + "".join(f"{key.quote(_BESIDE, _BESIDE)} {key.weight:.2f}" for key in self.keys[:1])


@dataclass(frozen=True, eq=False, repr=False)
class RoleTable(Shown):
    """What each head does with the attention that it does not leave on the sink.

    Attributes:
        heads: the heads, in the order of the arrays.
        role: the verdict on each head, out of `ROLES` or "mixed".
        scores: by role, (head,); see `headscope.head_roles.finding.roles`; NaN where the role cannot be.
        low, high: by role, (head,) ends of the 95% interval over documents; NaN where there is none.
        chance: by role, (head,) the score of a head that spreads its attention evenly.
        examples: for each head the query that shows its role best; None for a mixed head, or where there is none.
        facts: what it was measured on and how; JSON values only.
    """

    heads: tuple[HeadId, ...]
    role: tuple[str, ...]
    scores: Mapping[str, Floats]
    low: Mapping[str, Floats]
    high: Mapping[str, Floats]
    chance: Mapping[str, Floats]
    examples: tuple[RoleExample | None, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    name: ClassVar[str] = "roles"

    def __getitem__(self, head: HeadLike) -> str:
        return self.role[find_head(self.heads, head)]

    @property
    def score(self) -> Floats:
        """(head,) the score of each head's own role; NaN for a mixed head."""
        return self._own(self.scores)

    def _own(self, numbers: Mapping[str, Floats]) -> Floats:
        return np.array([numbers[role][i] if role in numbers else np.nan for i, role in enumerate(self.role)], float)

    def to_frame(self) -> pd.DataFrame:
        """A row per head: layer, (block,) head, role, its score, low, high, an example; then every role's own numbers.

        Of a role R: R its score, R_low, R_high, R_chance.
        """
        columns: dict[str, Any] = {
            "layer": [head.layer for head in self.heads],
            **block_columns(self.facts, block=self.heads),
            "head": [head.head for head in self.heads],
            "role": list(self.role),
            "score": self.score,
            "low": self._own(self.low),
            "high": self._own(self.high),
            "example": ["" if example is None else str(example) for example in self.examples],
        }
        for role in self.scores:
            parts = {"": self.scores, "_low": self.low, "_high": self.high, "_chance": self.chance}
            columns |= {role + ending: numbers[role] for ending, numbers in parts.items()}
        n_tokens = token_counts(self.facts, [head.layer for head in self.heads])
        counts = {"n_documents": self.facts.get("documents"), "n_tokens": n_tokens}
        return pd.DataFrame(columns | counts)

    def _tables(self) -> dict[str, pd.DataFrame]:
        shown = ["layer", "head", "role", "score", "low", "high", *self.scores, "example"]
        return {"roles of heads, off the sink": self.to_frame()[shown]}

    def _missing(self) -> list[str]:
        return reasons(self.facts)

    def save(self, folder: str | Path) -> None:
        """Write roles.csv, roles.parquet (the rows) and roles.json (facts, examples) into an existing folder."""
        examples = [None if example is None else _example_data(example) for example in self.examples]
        about = {"name": self.name, "roles": list(self.scores), "facts": dict(self.facts), "examples": examples}
        write_table(Path(folder), self.name, self.to_frame(), about)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read back what `save` wrote; floats return bit-equal."""
        frame, about = read_table(Path(folder), cls.name, {"layer", "head", "role", "example"}, {"role", "example"})
        heads = tuple(HeadId(int(layer), int(head)) for layer, head in zip(frame["layer"], frame["head"], strict=True))
        scores, low, high, chance = (
            {role: frame[role + ending].to_numpy(np.float64) for role in about["roles"]}
            for ending in ("", "_low", "_high", "_chance")
        )
        examples = tuple(None if data is None else _example(data) for data in about["examples"])
        role = tuple(map(str, frame["role"]))
        return cls(heads, role, scores, low, high, chance, examples, about["facts"])


def _example_data(example: RoleExample) -> dict[str, Any]:
    data = asdict(example)
    del data["query"]["weight"]  # it has none, and JSON has no NaN
    return data


def _example(data: Mapping[str, Any]) -> RoleExample:
    keys = tuple(Spelled.from_json(key) for key in data["keys"])
    return RoleExample(data["role"], Spelled.from_json(data["query"]), keys)
