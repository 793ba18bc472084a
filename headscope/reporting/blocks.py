"""What a section returns: headings, texts, tables and figures as plain values. None of them knows of HTML."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from matplotlib.figure import Figure as Drawing

__all__ = ["Block", "Column", "Figure", "Heading", "Table", "Text"]


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str


@dataclass(frozen=True)
class Text:
    """One paragraph.

    Attributes:
        text: the words; markup in them stays text.
        role: "lead" is the one sentence to remember, "note" is small print.
    """

    text: str
    role: Literal["body", "lead", "note"] = "body"


@dataclass(frozen=True)
class Column:
    """One column as it is shown.

    Attributes:
        title: its heading.
        text: makes the cell from a row of the table's frame (a named tuple).
        numeric: set to the right, digits of equal width.
        strong: names the row; one column of a table should.
        long: holds a sentence rather than a word.
    """

    title: str
    text: Callable[[Any], str]
    numeric: bool = False
    strong: bool = False
    long: bool = False


@dataclass(frozen=True, eq=False)
class Table:
    """A table: its first rows are shown, or those that tell most; all of them go into a CSV file.

    Attributes:
        name: name of the file, without ".csv".
        title: what it holds.
        frame: every row and column, unrounded.
        columns: what is shown of it.
        shown: how many rows are shown; None for all.
        telling: places of the rows that are shown in place of the first; all of them are folded beneath. None for no
            such choice.
        caption: how to read it.
    """

    name: str
    title: str
    frame: pd.DataFrame
    columns: tuple[Column, ...]
    shown: int | None = None
    caption: str = ""
    telling: Sequence[int] | None = None

    def cells(self, frame: pd.DataFrame) -> list[list[str]]:
        """The cells of some of its rows, as text."""
        return [[column.text(row) for column in self.columns] for row in frame.itertuples(index=False)]


@dataclass(frozen=True, eq=False)
class Figure:
    """A figure that can be drawn at any width.

    Attributes:
        name: name of the file, without ".png".
        title: what it shows.
        alt: the same for those who do not see it: what stands out, with numbers.
        caption: how to read it.
        draw: makes the drawing, given its width in inches and whether it is for a narrow page, such as a phone's.
        share: part of the page's width that it asks for; neighbours that fit stand side by side on a wide screen.
    """

    name: str
    title: str
    alt: str
    caption: str
    draw: Callable[[float, bool], Drawing]
    share: float = 1.0


Block = Heading | Text | Table | Figure
