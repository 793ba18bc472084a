"""Gaps in a table of pairs: why heads, or all pairs of different heads, have no number."""

import numpy as np
import numpy.typing as npt

from headscope._support.formatting import brief_list
from headscope.tables import PairTable
from headscope.uncertainty.intervals import ONE_DOCUMENT

__all__ = ["why_no_value"]

Bools = npt.NDArray[np.bool_]

_HEADS = {"k": "key heads", "v": "value heads"}
_LACK = {"contribution": "no output projection of their own", "weights": "no linear map of their own"}
_FEW = 4  # positions below which unbiased measures are not defined


def why_no_value(table: PairTable, *, held_out: bool) -> str | None:
    """Why numbers are missing, in words; None where none is.

    Args:
        table: of one model or of two; its facts hold the scope.
        held_out: whether the measure is fitted on some documents and judged on others.
    """
    has: Bools = ~np.isnan(table.matrix)
    if not has.any():
        return _why_none_at_all(table, held_out)
    whys = []
    if without := _without(table, has):
        more = f", or have {_LACK[table.of]}" if table.of in _LACK else ""
        whys.append(f"not for {brief_list(without)}, which do not vary{more}")
    if table.other is None and table.facts["scope"] == "layer" and has.sum() == has.diagonal().sum():
        whys.append(
            f"no layer has two {_HEADS.get(table.of, 'heads')} that vary, so there are no pairs within layers; "
            "those of different layers are compared in the scope 'model'"
        )
    if table.facts["scope"] == "model" and not has[np.ix_(has.any(1), has.any(0))].all():
        apart = "that read different streams, as" if table.of == "weights" else "that see different positions, as"
        if table.name == "cosine" and table.of != "contribution":
            apart = f"whose {table.of} have unlike sizes (contributions can be compared), or {apart}"
        whys.append(f"not between heads {apart} an encoder's and a decoder's")
    return "; ".join(whys) or None


def _why_none_at_all(table: PairTable, held_out: bool) -> str:
    documents, tokens = table.facts.get("documents"), table.facts.get("tokens")
    if held_out and documents is not None and documents < 2:
        return ONE_DOCUMENT
    if tokens is not None and tokens < _FEW:
        return f"only {tokens} positions count; give more text"
    return (
        f"{table.name} of {table.of} is defined for no two of these heads; they must vary and see the same positions, "
        "and contributions and weights are compared in one residual stream: two models must have one width"
    )


def _without(table: PairTable, has: Bools) -> list[str]:
    """Heads that have no number, though heads of their layer are there to be compared with."""
    if table.other is None:
        return [str(head) for head, own in zip(table.heads, has.diagonal(), strict=True) if not own]
    named = []
    for heads, others, cells, side in (
        (table.heads, table.other, has, "first"),
        (table.other, table.heads, has.T, "second"),
    ):
        there = {head.layer for head in others}
        missing = [heads[place] for place in np.flatnonzero(~cells.any(1))]
        if table.facts["scope"] == "layer":
            missing = [head for head in missing if head.layer in there]
        named += [f"{head} of the {side}" for head in missing]
    return named
