"""How results show themselves: as tables in a notebook, as text in a terminal."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from html import escape
from textwrap import wrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Shown", "reasons"]

_ROWS, _LINES = 40, 16  # rows of a table that are shown: in a notebook, in a terminal
_WIDTH = 100  # characters of a line in a terminal, past which words go on in the next


class Shown(ABC):
    """A result that says what it is, shows its rows, and says why something is missing in them."""

    @abstractmethod
    def _tables(self) -> "Mapping[str, pd.DataFrame]":
        """What is shown, by its title."""

    def _said(self) -> list[str]:
        """What is said before them, a paragraph each."""
        return []

    def _missing(self) -> list[str]:
        """Why something is missing, a line each."""
        return []

    def _picture(self) -> str:
        """What a notebook shows above the rows, as HTML; "" for nothing."""
        return ""

    def _grid(self) -> str:
        """What a notebook shows in place of the rows, as HTML; "" for the rows."""
        return ""

    def _narrow(self) -> "Mapping[str, pd.DataFrame]":
        """What is shown where lines are short, as in a terminal."""
        return self._tables()

    def _more(self) -> list[str]:
        """Where the rest is, a line each."""
        return []

    def _repr_html_(self) -> str:
        parts, grid = [f"<p>{escape(said)}</p>" for said in self._said()], self._grid()
        parts.append(self._picture())
        for title, frame in self._tables().items():
            head = "<br>".join(map(escape, [title, *self._missing()]))
            rows = grid or (frame.to_html(index=False, max_rows=_ROWS) if len(frame) else "")
            parts.append(f"<p>{head}</p>{rows}")
        if more := "<br>".join(map(escape, self._more())):
            parts.append(f"<p><small>{more}</small></p>")
        return "".join(parts)

    def __repr__(self) -> str:
        parts = [_wrapped(said) for said in self._said()]
        for title, frame in self._narrow().items():
            rows = (
                [frame.to_string(index=False, max_rows=_LINES, max_colwidth=60, float_format="{:.4g}".format)]
                if len(frame)
                else []
            )
            parts.append("\n".join([*map(_wrapped, [title, *self._missing()]), *rows]))
        if more := self._more():
            parts.append("\n".join(more))
        return "\n\n".join(parts)


def _wrapped(said: str) -> str:
    """Words in lines, none of them cut."""
    return "\n".join(wrap(said, _WIDTH, break_long_words=False, break_on_hyphens=False)) or said


def reasons(facts: Mapping[str, Any]) -> list[str]:
    """Why something is missing in a table, or not to be taken at its word; a line each."""
    missing = {
        "values": "why_no_value",
        "intervals": "why_no_interval",
        "tests": "why_no_test",
        "random tokens": "why_no_null",
        "chance": "why_no_chance",
        "induction": "why_no_induction",
    }
    told = [f"no {what}: {facts[fact]}" for what, fact in missing.items() if fact in facts]
    return [*told, *(str(facts[name]) for name in ("out_of_range", "caution", "sides") if name in facts)]
