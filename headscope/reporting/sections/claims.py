"""The paper's claims, asked of the model that was analysed."""

from collections.abc import Iterator
from typing import ClassVar

from headscope._support.formatting import MISSING, interval, number
from headscope.reporting.blocks import Block, Column, Table, Text
from headscope.reporting.reportable import Reportable
from headscope.reporting.sections import SECTIONS, Section

__all__ = ["Claims"]

_ABOUT = (
    "What the paper says of heads, put to this model. The paper is a Japanese text that explains multi-head attention; "
    "headscope began with it, and quotes it in its documentation. It is not Vaswani et al. 2017 (arXiv:1706.03762), "
    "who introduced multi-head attention. Each verdict follows from numbers by a rule that was set before any model "
    "was asked. C5 (cost and length) and C15 (weights, and what cutting does) "
    "take minutes and are left out; C7, C8, C10 and C11 are asked of many models that are trained for it. The command "
    "claims of headscope asks them all, with a page and a figure for each."
)


@SECTIONS.register("claims")
class Claims(Section):
    """A row a claim: what the paper says, the verdict, and the numbers that it follows from."""

    title: ClassVar[str] = "The paper's claims, asked of this model"
    order: ClassVar[int] = 35

    def blocks(self, analysis: Reportable) -> Iterator[Block]:
        if analysis.claims.empty:
            return
        yield Text(_ABOUT)
        columns = (
            Column("Claim", lambda row: row.claim, strong=True),
            Column("The paper says", lambda row: row.says, long=True),
            Column("Verdict", lambda row: row.verdict),
            Column("Number", lambda row: number(row.effect), numeric=True),
            Column("Interval", lambda row: interval(row.low, row.high) or MISSING, numeric=True),
            Column("What was found", lambda row: row.sentence, long=True),
        )
        yield Table("claims", "What holds here", analysis.claims, columns)
