"""Choosing: all heads in the order of what each costs by itself, and as many of them as cost no more together."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import torch
from torch import nn

from headscope._support.progress import Progress, called
from headscope.effects.metrics import Metric
from headscope.effects.sweep import Effects, group_effects
from headscope.heads import HeadId
from headscope.planning.removal import Removal, ladder
from headscope.planning.rises import Rise
from headscope.sites import Anatomy
from headscope.text.batches import Batch

__all__ = ["measure_removal", "random_sets", "stability"]


def measure_removal(
    model: nn.Module,
    batches: Sequence[Batch],
    metric: Metric,
    anatomy: Anatomy,
    effects: Effects,
    rise: Rise,
    progress: Progress | None = None,
) -> Removal:
    """Remove the first heads of the order of single effects together, at a ladder of numbers and where a budget ends.

    The number that a budget allows is read off what was measured so far, measured itself, with the next one, and read
    off again, until it is a number that was measured.

    Args:
        model: run in evaluation mode, left as it was.
        batches: what costs are measured on: those of the single effects.
        metric: of the costs.
        anatomy: the model's.
        effects: of single heads, which make the order.
        rise: the budget.
        progress: told of each forward pass of the ladder, as "removal".
    """
    removal, progress = Removal.ordered_by(effects), called("removal", progress)
    removal = replace(removal, budget=removal.allowed(rise))
    wanted = set(ladder(len(removal.order)))
    while wanted := wanted - {0, *removal.sizes}:
        groups = [removal.first(size) for size in sorted(wanted)]
        removal = removal.with_costs(group_effects(model, batches, metric, anatomy, groups, progress=progress))
        progress = None  # how many more there are is not known
        found = len(removal.chosen)
        wanted = {found, min(found + 1, len(removal.order))}
    return removal


def stability(effects: Effects, size: int) -> float:
    """How many of the cheapest heads stay among them when a tenth of the documents is left out.

    Args:
        effects: of single heads, by row; nothing is measured again.
        size: how many heads are chosen.

    Returns:
        The mean share over the tenths (blocks of documents), in [0, 1]; 1: the same heads whichever is left out; NaN
        with fewer than two blocks, or where none is chosen.

    >>> rows = np.array([[0.0, 1.0], [1.0, 0.0], [5.0, 5.0]])   # three heads, two blocks of one document
    >>> made = Effects([(HeadId(0, h),) for h in range(3)], rows, np.zeros(2), np.arange(2), np.arange(2),
    ...                "loss", "nats", False, "zero", 2)
    >>> stability(made, 1), stability(made, 2)
    (0.5, 1.0)
    """
    blocks = np.unique(effects.block)
    if len(blocks) < 2 or not size:
        return math.nan
    chosen = set(Removal.ordered_by(effects).first(size))
    shares = []
    for block in blocks:
        means = effects.values[:, effects.block != block].mean(axis=1)
        ranked = sorted((mean, head) for mean, head in zip(means.tolist(), effects.heads, strict=True) if mean == mean)
        shares.append(len(chosen & {head for _, head in ranked[:size]}) / size)
    return float(np.mean(shares))


def random_sets(anatomy: Anatomy, chosen: Sequence[HeadId], most: int, seed: int = 0) -> list[tuple[HeadId, ...]]:
    """Other sets with as many heads of each layer as the chosen ones: distinct, drawn by seed.

    Args:
        anatomy: the model's.
        chosen: heads of it.
        most: how many sets; all of them where there are no more than so many.
        seed: of the draw.
    """
    if not chosen:
        return []
    own: dict[int, list[HeadId]] = {}
    for head in chosen:
        own.setdefault(head.layer, []).append(head)
    pools = [(anatomy.site(layer).heads, len(heads)) for layer, heads in sorted(own.items())]
    taken = tuple(sorted(chosen))
    if math.prod(math.comb(len(heads), size) for heads, size in pools) - 1 <= most:
        every = product(*(combinations(heads, size) for heads, size in pools))
        return [group for parts in every if (group := tuple(head for part in parts for head in part)) != taken]
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[tuple[HeadId, ...], None] = {}
    while len(drawn) < most:
        parts = [sorted(torch.randperm(len(heads), generator=generator)[:size].tolist()) for heads, size in pools]
        group = tuple(heads[place] for (heads, _), part in zip(pools, parts, strict=True) for place in part)
        if group != taken:
            drawn[group] = None
    return list(drawn)
