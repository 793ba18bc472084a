"""The report: one page that holds everything, with its tables and figures beside it as files."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from headscope._support.folders import new_folder
from headscope._support.formatting import MISSING, count
from headscope.reporting.blocks import Block, Figure, Table
from headscope.reporting.pictures import Picture, take
from headscope.reporting.reportable import Reportable
from headscope.reporting.sections import SECTIONS

__all__ = ["render"]


@dataclass(frozen=True)
class _Part:
    """One piece of a section as the page's template takes it: which kind, and its content."""

    kind: str
    content: Any


@dataclass(frozen=True)
class _Rows:
    """A table as text, cell by cell.

    Attributes:
        table: the block it comes from.
        rows: the cells of the rows that are shown.
        folded: those of all rows, where some were picked out to be shown; else none.
        left_out: whether there are more.
        stacked: on a phone each row becomes a paragraph: it has a sentence, and too many cells to stand beside it.
    """

    table: Table
    rows: list[list[str]]
    folded: list[list[str]]
    left_out: bool
    stacked: bool


def render(analysis: Reportable, folder: str | Path, *, force: bool = False) -> Path:
    """Write the report of an analysis.

    Args:
        analysis: what to report; see `Reportable`.
        folder: where to; it gets index.html (self-contained), tables/*.csv and figures/*.png.
        force: replace a folder that has content already.

    Returns:
        The path of index.html.

    Raises:
        StorageError: the folder exists with content and `force` is not set, or it cannot be written.
    """
    with new_folder(folder, force=force) as fresh:
        (fresh / "tables").mkdir()
        (fresh / "figures").mkdir()
        sections = []
        for name, section in sorted(SECTIONS.items(), key=lambda item: (item[1].order, item[0])):
            parts = list(_parts(section().blocks(analysis), fresh))
            if parts:
                sections.append({"id": name, "title": section.title, "parts": parts})
        page = _template().render(sections=sections, missing=MISSING, **_heading(analysis))
        (fresh / "index.html").write_text(page, encoding="utf-8")
    return Path(folder).expanduser() / "index.html"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("headscope.reporting", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


def _heading(analysis: Reportable) -> dict[str, str]:
    facts, anatomy = analysis.facts, analysis.anatomy
    shape = f"{count(anatomy.n_heads, 'head')} in {count(len(anatomy.sites), 'attention layer')}"
    seen = f"{count(facts['tokens'])} tokens of {facts['text']}" if {"tokens", "text"} <= set(facts) else ""
    return {
        "model": str(facts.get("model") or anatomy.model_class),
        "tagline": " · ".join(filter(None, (shape, seen, str(facts.get("date") or "")[:10]))),
        "version": str(facts.get("versions", {}).get("headscope", "")),
    }


def _parts(blocks: Iterable[Block], folder: Path) -> Iterator[_Part]:
    """A section's blocks for the template, neighbouring figures that fit side by side as one; writes their files."""
    row: list[Picture] = []
    for block in blocks:
        if isinstance(block, Figure):
            if row and sum(picture.figure.share for picture in row) + block.share > 1.001:
                yield _Part("figures", row)
                row = []
            picture = take(block)
            (folder / "figures" / f"{block.name}.png").write_bytes(picture.png)
            row.append(picture)
            continue
        if row:
            yield _Part("figures", row)
            row = []
        yield _Part(type(block).__name__.lower(), _written(block, folder) if isinstance(block, Table) else block)
    if row:
        yield _Part("figures", row)


def _written(table: Table, folder: Path) -> _Rows:
    table.frame.to_csv(folder / "tables" / f"{table.name}.csv", index=False)
    stacked = len(table.columns) > 3 and any(column.long for column in table.columns)
    if table.telling is not None:
        every = table.cells(table.frame)
        return _Rows(table, [every[place] for place in table.telling], every, False, stacked)
    rows = table.cells(table.frame if table.shown is None else table.frame.head(table.shown))
    return _Rows(table, rows, [], len(rows) < len(table.frame), stacked)
