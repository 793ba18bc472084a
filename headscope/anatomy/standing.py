"""Standing: whether a mask speaks of the positions at which a site's queries and keys stand; told by what moves there.

Positions of a picture, or learned latents, may be as many as the tokens of a text, and are no tokens all the same.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Bool
from torch import Tensor

from headscope.anatomy.check import tolerance

__all__ = ["ELSEWHERE", "NONE", "Heard", "Standing", "merged", "moves_beside", "stand"]

NONE = "none"  # no mask speaks of these positions: they are none of a text
ELSEWHERE = "elsewhere"  # one does, and they stand in another order than its own


Lengths = Mapping[int, Bool[Tensor, " position"]]


Names = tuple[str, ...]


class Standing(NamedTuple):
    """Which masks speak of the positions of a site's queries, and of its keys: names, a word above, or nothing."""

    queries: Names = ()
    keys: Names = ()


@dataclass(frozen=True, eq=False)
class Heard:
    """A call of a site, as a trial heard it.

    Attributes:
        place: tells sites apart.
        q, z: (row, head, position, dim).
        k: (row, key head, key, dim).
    """

    place: Hashable
    q: Tensor
    k: Tensor
    z: Tensor


def _moves(before: Tensor, after: Tensor) -> Bool[Tensor, "row position"] | None:
    """Which positions move beyond rounding; None where there are others."""
    if before.shape != after.shape or before.ndim != 4:
        return None
    gap = (before - after).float().abs().nan_to_num(0)
    size = max(float(before[:1].float().abs().nan_to_num(0, 0, 0).max()) if before.numel() else 0.0, 1e-12)
    return (gap.amax((1, 3)) > tolerance(before.dtype) * size).cpu()


def _where(before: Tensor, after: Tensor, lengths: Lengths, rows: int) -> str | None:
    """Of a tensor's positions, which moved: "there" (marked ones), "still", "elsewhere" (as few others), "spread".

    Where they are neither as many as those of the batch, nor parts of its rows side by side, the last one filled up:
    "spread" if more move than are marked, else None.
    """
    moved = _moves(before, after)
    if moved is None or not rows or moved.shape[0] % rows:
        return None
    each, length = moved.shape[0] // rows, moved.shape[1]
    marked = lengths.get(length) if each == 1 else None
    if marked is None:
        marked = next((one for one in lengths.values() if 0 <= each * length - len(one) < length), None)
    most = max(int(one.sum()) for one in lengths.values())
    if marked is None:
        return "spread" if each == 1 and int(moved.sum()) > most else None
    if each == 1 and length > len(marked) and bool(moved[:, len(marked) :].any()):
        return "spread" if int(moved.sum()) > most else None  # a prompt before the text, say
    moved = moved.reshape(rows, -1)[:, : len(marked)]
    if not bool(moved.any()):
        row = before[:each].transpose(0, 1).flatten(1, 2)[:, : len(marked)]
        own = row[:, marked.to(row.device)]  # a model may put nothing there
        return "there" if int(marked.sum()) > 1 and bool((own == own[:, :1]).all()) else "still"
    beside = moved.clone()
    beside[0] &= ~marked
    if not bool(beside.any()):
        return "there"
    if int(moved.sum()) > int(marked.sum()):
        return "spread"
    return ELSEWHERE if each > 1 or length == len(marked) else None


def moves_beside(before: Sequence[Heard], after: Sequence[Heard], lengths: Lengths, rows: int, *, spread: bool) -> bool:
    """Whether z moves anywhere but at the marked positions.

    Args:
        before, after: what was heard with some numbers at the marked positions of the first row, and with others.
        lengths: the marked positions, for a site of so many.
        rows: of the batch.
        spread: whether only more positions than are marked say so; as few may be the same ones in another order.
    """
    words = ("spread",) if spread else ("spread", ELSEWHERE)
    pairs = ((one.z, other.z) for one, other in zip(before, after, strict=True))
    return any(_where(one, other, lengths, rows) in words for one, other in pairs)


def stand(
    name: str,
    before: Sequence[Heard],
    after: Sequence[Heard],
    lengths: Lengths,
    rows: int,
    unmarked: tuple[Sequence[Heard], Sequence[Heard]] | None,
) -> dict[Hashable, Standing]:
    """How each site stands to a mask that keeps marked positions out.

    Args:
        name: the mask's.
        before, after, lengths, rows: as in `moves_beside`.
        unmarked: the same two where nothing is marked: what moves then and not before reads the text, though it may
            stand elsewhere; None where that was not tried.
    """
    found: dict[Hashable, Standing] = {}
    for index, (one, other) in enumerate(zip(before, after, strict=True)):
        words = []
        for part in ("q", "k"):
            own, changed = getattr(one, part), getattr(other, part)
            where = _where(own, changed, lengths, rows)
            if where == "still" and unmarked is not None:
                free = (getattr(side[index], part) for side in unmarked)
                moved = _moves(*free)
                where = NONE if moved is not None and not bool(moved.any()) else None
            words.append({"there": (name,), NONE: (NONE,), ELSEWHERE: (ELSEWHERE,)}.get(where or "", ()))
        found[one.place] = Standing(*words)
    return found


def merged(one: Standing, other: Standing) -> Standing:
    """What two masks say of one site: both speak of it, or the one that does; one that may wins over one that does not.

    Args:
        one, other: of one mask each, or of several.
    """

    def both(a: Names, b: Names) -> Names:
        names = tuple(dict.fromkeys(name for name in (*a, *b) if name not in (NONE, ELSEWHERE)))
        if names:
            return names
        return (ELSEWHERE,) if ELSEWHERE in (*a, *b) else () if () in (a, b) else (NONE,)

    return Standing(both(one.queries, other.queries), both(one.keys, other.keys))
