"""A glance at an analysis: what a notebook and a terminal show of its page."""

import base64
import io
from html import escape

import pandas as pd

from headscope.reporting import figures
from headscope.reporting.blocks import Block, Figure, Table
from headscope.reporting.reportable import Reportable
from headscope.reporting.sections import SECTIONS

__all__ = ["foremost", "main_figure"]

_DPI = 150


def main_figure(analysis: Reportable) -> str:
    """What removing more and more heads costs, as an HTML image that needs nothing from outside.

    Args:
        analysis: whatever has a page.
    """
    ax = figures.joint_cost(analysis.removal, random=analysis.verdict.random)
    stream = io.BytesIO()
    with figures.styling():
        # with its own ground, and as dots: it is legible on dark pages, and where vector images are taken out
        figures.figure_of(ax).savefig(stream, format="png", dpi=_DPI)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    alt = next(
        block.alt for block in _blocks(analysis, "verdict") if isinstance(block, Figure) and block.name == "removal"
    )
    return f'<img style="width:30em;max-width:100%" alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def foremost(analysis: Reportable, *, sentences: bool = True) -> dict[str, pd.DataFrame]:
    """The best candidates for removal as the page shows them, by a title: text in every cell.

    Args:
        analysis: whatever has a page.
        sentences: with the columns that hold sentences.
    """
    blocks = _blocks(analysis, "importance")
    table = next(block for block in blocks if isinstance(block, Table) and block.name == "candidates")
    some = table.frame.head(table.shown)
    shown = pd.DataFrame(table.cells(some), columns=[column.title for column in table.columns])
    kept = [column.title for column in table.columns if sentences or not column.long]
    few = f", the first {len(some)} of {len(table.frame)}" if len(some) < len(table.frame) else ""
    return {f"{table.title}{few}": shown[kept]}


def _blocks(analysis: Reportable, section: str) -> list[Block]:
    return list(SECTIONS[section]().blocks(analysis))
