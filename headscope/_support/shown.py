"""How results show themselves: as tables in a notebook, as text in a terminal."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Shown", "reasons"]

_ROWS, _LINES = 40, 16  # rows of a table that are shown: in a notebook, in a terminal


class Shown(ABC):
    """A result that says what it is, shows its rows, and says why something is missing in them."""

    @abstractmethod
    def _tables(self) -> "Mapping[str, pd.DataFrame]":
        """What is shown, by its title."""

    def _missing(self) -> list[str]:
        """Why something is missing, a line each."""
        return []

    def _grid(self) -> str:
        """What a notebook shows in place of the rows, as HTML; "" for the rows."""
        return ""

    def _repr_html_(self) -> str:
        parts, grid = [], self._grid()
        for title, frame in self._tables().items():
            head = "<br>".join(map(escape, [title, *self._missing()]))
            rows = grid or (frame.to_html(index=False, max_rows=_ROWS) if len(frame) else "")
            parts.append(f"<p>{head}</p>{rows}")
        return "".join(parts)

    def __repr__(self) -> str:
        parts = []
        for title, frame in self._tables().items():
            rows = (
                [frame.to_string(index=False, max_rows=_LINES, max_colwidth=60, float_format="{:.4g}".format)]
                if len(frame)
                else []
            )
            parts.append("\n".join([title, *self._missing(), *rows]))
        return "\n\n".join(parts)


def reasons(facts: Mapping[str, Any]) -> list[str]:
    """Why something is missing in a table, or not to be taken at its word; a line each."""
    missing = {
        "values": "why_no_value",
        "intervals": "why_no_interval",
        "tests": "why_no_test",
        "random tokens": "why_no_null",
        "induction": "why_no_induction",
    }
    told = [f"no {what}: {facts[fact]}" for what, fact in missing.items() if fact in facts]
    return [*told, *(str(facts[name]) for name in ("out_of_range", "caution") if name in facts)]
