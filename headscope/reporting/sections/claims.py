"""The paper's claims, asked of the model that was analysed."""

from collections.abc import Iterator
from typing import Any, ClassVar

from headscope._support.formatting import MISSING, interval, number
from headscope.reporting.blocks import Block, Column, Table, Text
from headscope.reporting.reportable import Reportable
from headscope.reporting.sections import SECTIONS, Section

__all__ = ["Claims"]

_ABOUT = (
    "What the paper says of heads, put to this model. The paper is a Japanese text that explains multi-head "
    "attention; headscope began with it, and quotes it in its documentation. It is not Vaswani et al. 2017 "
    "(arXiv:1706.03762), who introduced multi-head attention. Each verdict follows from numbers by a rule. A "
    "definition is true by construction, and shown on numbers; an architecture claim is a fact of this model; an "
    "experiment is decided by measuring. C5 (cost and length) and C15 (weights, and what cutting does) take minutes "
    "and are left out; C7, C8, C10 and C11 are asked of many models that are trained for it. C9 is held against "
    "untrained copies, where they were asked for, and C12 against noise, which is left out: it takes four times as "
    "long as the ablation. The command claims of headscope asks them all, with a page and a figure for each."
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
            Column("Kind", lambda row: row.kind),
            Column("Verdict", _verdict),
            Column("Number", lambda row: number(row.effect), numeric=True),
            Column("Interval", lambda row: interval(row.low, row.high) or MISSING, numeric=True),
            Column("The number is", lambda row: row.unit, long=True),
            Column("What was found", _found, long=True),
        )
        yield Table("claims", "What holds here", analysis.claims, columns)


def _verdict(row: Any) -> str:
    """With where it holds, or what deciding it would take."""
    return f"{row.verdict} ({row.where})" if row.where else str(row.verdict)


def _found(row: Any) -> str:
    """What was found, and what of that which readers infer."""
    return f"{row.sentence} What follows: {row.follows}" if row.follows else str(row.sentence)
