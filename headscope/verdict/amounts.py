"""Amounts: whether there was enough text to tell what is asked, and how much more would tell it."""

from math import ceil

from headscope._support.formatting import count, number
from headscope.statistics.moments import Moments
from headscope.verdict.gathering import Evidence

__all__ = ["ENOUGH_DOCUMENTS", "ENOUGH_TOKENS", "too_little"]

ENOUGH_DOCUMENTS = 10
"""Documents from which intervals were checked (docs, coverage); on each side of the split."""
ENOUGH_TOKENS = 20
"""Tokens for each dimension of a layer from which what heads give of each other was checked there."""


def too_little(
    evidence: Evidence, n_judged: int, there_are: tuple[int, int], held_out: float, text_unit: str
) -> tuple[str, ...]:
    """What cannot be told from so little text, and what would tell it; nothing where there is enough.

    Args:
        evidence: of the documents that heads are chosen on.
        n_judged: documents that were judged on.
        there_are: documents on either side of the split, of which a sample was measured on.
        held_out: share of the text that is kept for judging.
        text_unit: what a document is, in words.
    """
    said = []
    chosen, unit = evidence.effects.n_documents, text_unit.removesuffix("s")
    if min(chosen, n_judged) < ENOUGH_DOCUMENTS:
        needed = ceil(max(ENOUGH_DOCUMENTS / (1 - held_out), ENOUGH_DOCUMENTS / held_out))
        more = [f"about {needed} {text_unit} of like length in all"] if min(there_are) < ENOUGH_DOCUMENTS else []
        if chosen < min(there_are[0], ENOUGH_DOCUMENTS) or n_judged < min(there_are[1], ENOUGH_DOCUMENTS):
            more.append(f"more tokens for the ablation, to take in more of the {sum(there_are)} there are")
        takes = " and ".join(more)
        said.append(
            f"Too few {text_unit} to rely on the intervals: heads were chosen on {count(chosen, unit)} and judged on "
            f"{n_judged}, and fewer than {ENOUGH_DOCUMENTS} on either side were never checked; it takes {takes}."
        )
    ratio = min(_tokens_per_dimension(evidence), default=float("inf"))
    if ratio < ENOUGH_TOKENS:
        rows = text_unit == "rows"  # of batches of the user's own, which may be no text
        said.append(
            f"Too {'few rows' if rows else 'little text'} to tell what heads give of each other (replaceability, "
            f"needed, the quadrants): {number(ratio, 2)} {'positions' if rows else 'tokens'} for each dimension of a "
            f"layer, where {ENOUGH_TOKENS} are the least; take {number(ENOUGH_TOKENS / ratio, 2)} times as "
            f"{'many' if rows else 'much'} at least{'' if rows else ' (more windows, and text to fill them)'}."
        )
    return tuple(said)


def _tokens_per_dimension(evidence: Evidence) -> list[float]:
    totals = map(Moments.total, evidence.moments.values())
    return [float(total.n) / sum(total.dims) for total in totals]
