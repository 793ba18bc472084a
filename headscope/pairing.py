"""Tables of pairs: a pure measure applied to what was summed, with intervals over blocks of documents."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from headscope.heads import Anatomy, HeadId
from headscope.intervals import jackknife, why_no_interval
from headscope.measures import MEASURES, Measure
from headscope.statistics import N_BLOCKS
from headscope.statistics.arrivals import OTHER
from headscope.statistics.moments import Moments
from headscope.tables import PairTable

__all__ = ["Computed", "heads_of", "pair_table"]

Computed = Mapping[tuple[int, ...], Sequence[Any]]  # by the layers of a group: a value a block of documents

_FEW_BLOCKS = "sums of all blocks of documents did not fit into memory; allow more memory"


def pair_table(
    measure: Measure,
    of: str,
    computed: Mapping[str, Computed],
    heads: tuple[tuple[HeadId, ...], tuple[HeadId, ...] | None],
    weights: Mapping[int, Sequence[Tensor]],
    facts: Mapping[str, Any],
) -> PairTable:
    """Compare heads by what was summed before, with intervals over the blocks of documents.

    Args:
        measure: which measure.
        of: what it compares.
        computed: for each of its needs, what the statistic computed.
        heads: those of the rows, and another model's for the columns, or None.
        weights: W_O of each head by layer, where the measure needs it.
        facts: for the table.
    """
    needs = sorted(measure.needs - {"output_weights"})
    layers_of = [[head.layer for head in heads[0]], [OTHER + head.layer for head in heads[1] or ()]]
    layer = np.array(layers_of[0] + layers_of[1], dtype=np.int64)
    value, low, high = (np.full((len(layer), len(layer)), np.nan) for _ in range(3))
    few_blocks = False
    for group, blocks in computed[needs[0]].items():
        own = np.flatnonzero(np.isin(layer, group))
        filled = [number for number, block in enumerate(blocks) if block.n]
        given = [weight for one in group for weight in weights.get(one, ())]

        def estimate(numbers: Sequence[int], group: Any = group, given: Any = given) -> Any:
            return measure.compare(_seen(needs, computed, group, numbers) | {"output_weights": given})

        cells = np.ix_(own, own)
        if len(blocks) < N_BLOCKS:
            value[cells], few_blocks = estimate(filled), True
            continue
        spread = jackknife(estimate, filled, [blocks[number].n for number in filled])
        value[cells] = spread.centre
        low[cells], high[cells] = spread.interval()
    least = 4 if "halves" in needs else 2  # without any one block, either half must hold another
    if why := why_no_interval(facts["documents"], least) or (_FEW_BLOCKS if few_blocks else None):
        facts = {**facts, "why_no_interval": why}
    n_rows = len(heads[0])
    columns = slice(0, n_rows) if heads[1] is None else slice(n_rows, None)
    value, low, high = (table[:n_rows, columns] for table in (value, low, high))
    return PairTable(MEASURES.name_of(measure), of, heads[0], value, low, high, facts, other=heads[1])


def heads_of(anatomy: Anatomy, of: str) -> tuple[HeadId, ...]:
    """The heads that a table of this tensor has: query heads, or key or value heads numbered as such."""
    if of in ("k", "v"):
        counts = {s.layer: s.n_kv_heads if of == "k" else s.n_value_heads for s in anatomy.sites}
        return tuple(HeadId(layer, head) for layer, count in counts.items() for head in range(count))
    return anatomy.heads


def _seen(
    needs: Sequence[str], computed: Mapping[str, Computed], group: tuple[int, ...], numbers: Sequence[int]
) -> dict[str, Any]:
    """What a measure is given, from some of the blocks."""
    seen: dict[str, Any] = {}
    for need in needs:
        blocks = computed[need][group]
        if need == "halves":
            seen[need] = tuple(_sum(blocks, [n for n in numbers if n % 2 == half]) for half in (0, 1))
        else:
            seen[need] = _sum(blocks, numbers)
    return seen


def _sum(blocks: Sequence[Any], numbers: Sequence[int]) -> Any:
    if not numbers:
        return Moments.empty(blocks[0].dims, blocks[0].pivot)
    summed = blocks[numbers[0]]
    for number in numbers[1:]:
        summed = summed + blocks[number]
    return summed
