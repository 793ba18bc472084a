"""Choosing: of the redundant heads, those whose stand-ins stay, and of them as many as may go."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor, nn

from headscope.effects.metrics import Metric
from headscope.effects.sweep import group_effects
from headscope.heads import HeadId
from headscope.planning.quadrants import Lines, quadrants
from headscope.sites import Anatomy
from headscope.statistics.moments import Moments
from headscope.statistics.prediction import restored_share
from headscope.tables import HeadTable
from headscope.text.batches import Batch

__all__ = ["choose_redundant", "within_budget"]


def choose_redundant(
    scores: Mapping[str, HeadTable],
    moments: Mapping[int, Sequence[Moments]],
    weights: Mapping[int, Sequence[Tensor]],
    lines: Lines,
) -> tuple[HeadId, ...]:
    """The heads of the redundant quadrant that can go together.

    Two heads that stand in for each other are both replaceable, but not both at once. So heads are taken from the
    least important on, and one is passed over if, with it gone too, any head taken from its layer would fall below the
    line of replaceability with what stays.

    Args:
        scores: "ablation" and "replaceability" of every head.
        moments: of each layer's heads ("gated_z"), a block of documents each.
        weights: W_O of each head of each layer, in the order of the moments.
        lines: of the quadrants.

    Returns:
        These heads, the least important first.
    """
    ablation = scores["ablation"]
    names = quadrants(ablation.score, scores["replaceability"].score, lines)
    place = {
        head: sum(other.layer == head.layer for other in ablation.heads[:i]) for i, head in enumerate(ablation.heads)
    }
    chosen: dict[int, list[HeadId]] = {}
    taken: list[HeadId] = []
    for index in np.argsort(ablation.score):
        head = ablation.heads[index]
        if names[index] != "redundant":
            continue
        gone = [*chosen.get(head.layer, []), head]
        shares = _restored(moments[head.layer], weights[head.layer], [place[one] for one in gone])
        if min(shares) >= lines.replaceability:
            chosen[head.layer] = gone
            taken.append(head)
    return tuple(taken)


def within_budget(
    model: nn.Module,
    batches: Sequence[Batch],
    metric: Metric,
    anatomy: Anatomy,
    ranked: Sequence[HeadId],
    most: float,
) -> tuple[HeadId, ...]:
    """As many of the ranked heads, from the first on, as cost no more than `most` when all of them are removed.

    Args:
        model: run in evaluation mode, left as it was.
        batches: what the cost is measured on.
        metric: what it is measured by.
        anatomy: the model's.
        ranked: heads in the order in which they may go.
        most: allowed effect, in the metric's unit.
    """
    for size in range(1, len(ranked) + 1):
        effects = group_effects(model, batches, metric, anatomy, [ranked[:size]])
        if effects.values.mean() > most:
            return tuple(ranked[: size - 1])
    return tuple(ranked)


def _restored(blocks: Sequence[Moments], weights: Sequence[Tensor], gone: Sequence[int]) -> list[float]:
    """How much of each head gone the heads that stay restore, held out, both ways."""
    halves = Moments.total(blocks[::2]), Moments.total(blocks[1::2])
    stay = [head for head in range(len(weights)) if head not in gone]
    shares = []
    for head in gone:
        heads = [*stay, head]
        one, other = (half.select(heads) for half in halves)
        own = [weights[index] for index in heads]
        shares.append(float(np.mean([restored_share(a, b, own)[-1] for a, b in ((one, other), (other, one))])))
    return shares
