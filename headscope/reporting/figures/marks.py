"""Marks on heads: which ones a figure picks out, and the words for them."""

from collections.abc import Collection, Sequence

from headscope.heads import HeadId

__all__ = ["to_mark"]


def to_mark(heads: Sequence[HeadId], chosen: Collection[HeadId], mark: str) -> tuple[list[HeadId], str]:
    """The heads to mark: the chosen ones, or those that stay where these are fewer: marks on nearly all tell nothing.

    Args:
        heads: all that are drawn, in the order in which they are to be named.
        chosen: those that go.
        mark: what is done to a marked head, e.g. "Framed".

    Returns:
        The heads, and words that say so, without a full stop; "" where none is chosen.

    >>> heads = [HeadId(0, head) for head in range(3)]
    >>> to_mark(heads, heads[:1], "Framed")[1], to_mark(heads, heads[:2], "Framed")[1]
    ('Framed: the head chosen for removal', 'Framed: the head that stays; all others are chosen for removal')
    >>> to_mark(heads, heads, "Framed")
    ([], 'Every head is chosen for removal')
    """
    go, stay = ([head for head in heads if (head in chosen) is goes] for goes in (True, False))
    if not go:
        return [], ""
    if not stay:
        return [], "Every head is chosen for removal"
    if len(stay) < len(go):
        which = "the head that stays" if len(stay) == 1 else f"the {len(stay):,} heads that stay"
        return stay, f"{mark}: {which}; all others are chosen for removal"
    which = "the head" if len(go) == 1 else f"the {len(go):,} heads"
    return go, f"{mark}: {which} chosen for removal"
