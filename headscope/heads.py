"""Names of heads: HeadId, and every spelling of many of them. Plain values, no torch."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

from headscope.errors import UnknownNameError

__all__ = ["HeadId", "HeadLike", "Heads", "spell_out"]

_HEAD = re.compile(r"L(\d+)H(\d+)")


@dataclass(frozen=True, order=True, slots=True)
class HeadId:
    """One query head.

    Attributes:
        layer: number of its site, from 0.
        head: its own number there, from 0; query heads are counted.

    >>> str(HeadId(3, 7)), HeadId.parse("L3H7") == HeadId(3, 7), HeadId.parse((3, 7)) == HeadId(3, 7)
    ('L3H7', True, True)
    """

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    @classmethod
    def parse(cls, head: "HeadLike") -> Self:
        """A HeadId from itself, from "L3H7" or from (3, 7).

        Raises:
            UnknownNameError: it is none of these.
        """
        if isinstance(head, cls):
            return head
        if isinstance(head, str):
            match = _HEAD.fullmatch(head.strip())
            if match:
                return cls(int(match[1]), int(match[2]))
        elif isinstance(head, Iterable):
            pair = tuple(head)
            if len(pair) == 2 and all(_is_count(part) for part in pair):
                return cls(int(pair[0]), int(pair[1]))
        raise UnknownNameError(
            f"{head!r} is not a head; write it as 'L3H7' or (3, 7): layer 3, head 7, both from 0 (in "
            "{layer: [heads]} layers may be counted from the end, heads may not)"
        )


HeadLike = HeadId | str | tuple[int, int]
Heads = Iterable[HeadLike] | Mapping[int, Iterable[int]]
"""Heads one by one; or {layer: its heads}; or a mask (layer, head), array or tensor: 1 = stays, 0 is meant."""


Layers = Mapping[int, Sequence[int]]
"""The heads that each layer has, by its number, in order."""

_UNKNOWN: Layers = MappingProxyType({})


def spell_out(heads: Heads | HeadLike, layers: Layers = _UNKNOWN) -> tuple[HeadId, ...]:
    """HeadIds from any of the spellings that heads have elsewhere.

    Args:
        heads: HeadIds, "L3H7", (3, 7); {3: [7, 8]}, as transformers' `prune_heads` took them; or a mask of 0 and 1, as
            its `head_mask` was: a row for each layer, 0 for the heads that are meant.
        layers: of the model that is meant: rows of a mask are these, and layer -1 is the last of them. Without any,
            rows are layers 0, 1 …, and nothing is counted from the end.

    Returns:
        The heads, in the order given.

    Raises:
        UnknownNameError: it is none of these.

    >>> [str(head) for head in spell_out({0: [1], 5: [0, 2]})], [str(head) for head in spell_out(["L0H1", (5, 0)])]
    (['L0H1', 'L5H0', 'L5H2'], ['L0H1', 'L5H0'])
    """
    if isinstance(heads, HeadId | str):
        return (HeadId.parse(heads),)
    if isinstance(heads, Mapping):
        pairs: Iterable[Any] = [(layer, head) for layer, own in heads.items() for head in _listed(layer, own)]
    elif len(getattr(heads, "shape", ())) == 2 and _is_mask(heads):
        pairs = _masked(heads, layers)
    elif isinstance(heads, Iterable):
        pairs = heads
    else:
        raise UnknownNameError(f"{heads!r:.60} names no heads; write them as ['L3H7', (4, 0)], or pass a plan")
    return tuple(_counted(pair, layers) for pair in pairs)


def _listed(layer: Any, heads: Any) -> Iterable[Any]:
    if isinstance(heads, str) or not isinstance(heads, Iterable):
        raise UnknownNameError(f"{{{layer!r}: {heads!r}}} names no heads; write {{layer: [heads]}}, as {{3: [7, 8]}}")
    return heads


def _is_mask(array: Any) -> bool:
    """Whether a two-dimensional array is a mask over layers and heads, and not a list of pairs."""
    values = {value for row in array.tolist() for value in row}
    odd = [value for value in values if value not in (0, 1)]
    if all(type(value) is int for value in values):
        if not odd and array.shape[1] == 2:
            raise UnknownNameError(
                f"an array of shape {tuple(array.shape)} that holds 0 and 1 may be pairs (layer, head) or a mask; pass "
                "pairs as a list of tuples, a mask as booleans (True = stays)"
            )
        return not odd
    if odd:
        raise UnknownNameError(f"a mask of heads holds 1 for those that stay and 0 for the others, and here {odd[0]}")
    return True


def _masked(mask: Any, known: Layers) -> list[tuple[int, int]]:
    """Layer and head of each 0 in a mask."""
    rows: list[list[Any]] = mask.tolist()
    layers = list(known) or list(range(len(rows)))
    widest = max((max(own, default=-1) for own in known.values()), default=-1) + 1
    if len(rows) != len(layers) or mask.shape[1] < widest:
        raise UnknownNameError(
            f"a mask has a row for each layer and a column for each head; this one is {tuple(mask.shape)}, and the "
            f"model has {len(layers)} layers of up to {widest} heads"
        )
    return [(n, head) for n, row in zip(layers, rows, strict=True) for head, stays in enumerate(row) if not stays]


def _counted(head: Any, layers: Layers) -> HeadId:
    """A head, whose layer may be counted from the end."""
    if layers and isinstance(head, Iterable) and not isinstance(head, str):
        layer, *rest = head
        if len(rest) == 1 and any(layer == -back for back in range(1, len(layers) + 1)):
            return HeadId.parse((list(layers)[int(layer)], rest[0]))
    return HeadId.parse(head)


def _is_count(part: Any) -> bool:
    try:
        return not isinstance(part, bool) and int(part) == part >= 0
    except (TypeError, ValueError, OverflowError):
        return False
