"""Choosing: of the redundant heads, those whose stand-ins stay."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from headscope.heads import HeadId
from headscope.scores.replaceability import replaceability
from headscope.statistics.moments import Moments, total
from headscope.tables import HeadTable
from headscope.verdicts import Lines, quadrants

__all__ = ["choose_redundant"]


def choose_redundant(
    scores: Mapping[str, HeadTable],
    moments: Mapping[int, Sequence[Moments]],
    weights: Mapping[int, Sequence[Tensor]],
    lines: Lines,
) -> tuple[HeadId, ...]:
    """The heads of the redundant quadrant that can go together.

    Two heads that stand in for each other are both replaceable, but not both at once. So heads are taken from the
    least needed on, and one is passed over if, with it gone too, any head taken from its layer would fall below the
    line of replaceability with what stays.

    Args:
        scores: "ablation", "replaceability" and "needed" of every head.
        moments: of each layer's heads ("gated_z"), a block of documents each.
        weights: W_O of each head of each layer, in the order of the moments.
        lines: of the quadrants.

    Returns:
        The chosen heads, the least needed first.
    """
    ablation = scores["ablation"]
    names = quadrants(ablation.score, scores["replaceability"].score, lines)
    place = {
        head: sum(other.layer == head.layer for other in ablation.heads[:i]) for i, head in enumerate(ablation.heads)
    }
    chosen: dict[int, list[HeadId]] = {}
    taken: list[HeadId] = []
    for index in np.lexsort((ablation.score, scores["needed"].score)):
        head = ablation.heads[index]
        if names[index] != "redundant":
            continue
        gone = [*chosen.get(head.layer, []), head]
        shares = _restored(moments[head.layer], weights[head.layer], [place[one] for one in gone])
        if min(shares) >= lines.replaceability:
            chosen[head.layer] = gone
            taken.append(head)
    return tuple(taken)


def _restored(blocks: Sequence[Moments], weights: Sequence[Tensor], gone: Sequence[int]) -> list[float]:
    """How much of each head gone the heads that stay restore, held out, both ways."""
    halves = total(blocks[::2]), total(blocks[1::2])
    stay = [head for head in range(len(weights)) if head not in gone]
    shares = []
    for head in gone:
        heads = [*stay, head]
        one, other = (half.select(heads) for half in halves)
        own = [weights[index] for index in heads]
        shares.append(float(np.mean([replaceability(a, b, own)[-1] for a, b in ((one, other), (other, one))])))
    return shares
