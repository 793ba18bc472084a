"""Tables of pairs: a pure measure applied to what was summed, with intervals over blocks of documents."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from headscope.heads import HeadId
from headscope.likeness.measures import MEASURES, Measure
from headscope.sites import Anatomy
from headscope.statistics.arrivals import OTHER
from headscope.statistics.swapped_moments import Swapped, why_no_chance
from headscope.tables import PairTable
from headscope.uncertainty.blocks import N_BLOCKS
from headscope.uncertainty.intervals import jackknife, out_of_range, why_no_interval

__all__ = ["Computed", "beside_chance", "heads_of", "of_moments", "pair_table"]

Floats = npt.NDArray[np.float64]
Computed = Mapping[tuple[int, ...], Sequence[Any]]  # by the layers of a group: a value a block of documents

_THIN = "without one block of documents or another too little is left to make the number from; give more text"
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
    layers_of = [[head.layer for head in heads[0]], [OTHER + head.layer for head in heads[1] or ()]]
    layer = np.array(layers_of[0] + layers_of[1], dtype=np.int64)
    value, low, high = (np.full((len(layer), len(layer)), np.nan) for _ in range(3))
    counted, documents, few_blocks = dict(facts.get("layer_tokens", {})), 0, False
    for group, blocks in computed[min(measure.needs - {"output_weights"})].items():
        own = np.flatnonzero(np.isin(layer, group))
        filled = [number for number, block in enumerate(blocks) if block.n]
        counted |= {str(one): sum(block.n for block in blocks) for one in group if one < OTHER}
        given = [weight for one in group for weight in weights.get(one, ())]
        estimate = partial(_estimate, measure, {n: c[group] for n, c in computed.items()}, given, len(own), filled)
        cells = np.ix_(own, own)
        if len(blocks) < N_BLOCKS:
            value[cells], documents, few_blocks = estimate(filled), facts["documents"], True
            continue
        documents = max(documents, min(facts["documents"], len(filled)))
        spread = jackknife(estimate, filled, [blocks[number].n for number in filled])
        value[cells] = spread.centre
        low[cells], high[cells] = spread.interval()
    least = 4 if _halved(measure) else 2  # without any one block, either half must hold another
    why = why_no_interval(documents, least) or (_FEW_BLOCKS if few_blocks else None)
    if why or (np.isfinite(value) & np.isnan(low)).any():
        facts = {**facts, "why_no_interval": why or _THIN}
    n_rows = len(heads[0])
    columns = slice(0, n_rows) if heads[1] is None else slice(n_rows, None)
    value, low, high = (table[:n_rows, columns] for table in (value, low, high))
    name, facts = MEASURES.name_of(measure), {**facts, "layer_tokens": counted}
    once = np.triu_indices(n_rows, k=1) if measure.symmetric and heads[1] is None else (slice(None), slice(None))
    if beyond := out_of_range(low[once], high[once], measure.bounds):
        facts["out_of_range"] = beyond
    symmetric = measure.symmetric
    return PairTable(name, of, heads[0], value, low, high, facts, other=heads[1], symmetric=symmetric)


def beside_chance(
    table: PairTable,
    measure: Measure,
    swapped: Mapping[int, Sequence[Swapped]],
    weights: Mapping[int, Sequence[Tensor]],
) -> PairTable:
    """A table with, for two heads of one layer, the same measure of the one beside the other of another document.

    Args:
        table: of one model.
        measure: made of moments.
        swapped: by layer, both halves; a layer that made no pair of documents has no chance.
        weights: as for `pair_table`.
    """
    layer = np.array([head.layer for head in table.heads], dtype=np.int64)
    chance = np.full((len(layer), len(layer)), np.nan)
    for number, halves in swapped.items():
        strangers = tuple(half.of_strangers for half in halves)
        if (own := np.flatnonzero(layer == number)).size and (min(half.n for half in halves) or not _halved(measure)):
            seen = {"moments": reduce(add, strangers), "halves": strangers, "output_weights": weights.get(number, ())}
            chance[np.ix_(own, own)] = measure.compare(seen)
    without = why_no_chance([*dict.fromkeys(layer.tolist())], swapped)
    facts = {**table.facts, **({"why_no_chance": without} if without else {})}
    return replace(table, nulls={**table.nulls, "chance": chance}, facts=facts)


def of_moments(measure: Measure) -> bool:
    """Whether a measure is made of moments alone, so that it can stand beside chance."""
    return measure.needs <= {"moments", "halves", "output_weights"}


def _halved(measure: Measure) -> bool:
    return "halves" in measure.needs


def heads_of(anatomy: Anatomy, of: str) -> tuple[HeadId, ...]:
    """The heads that a table of this tensor has: query heads, or key or value heads numbered as such."""
    if of in ("k", "v"):
        counts = {s.layer: s.n_kv_heads if of == "k" else s.n_value_heads for s in anatomy.sites}
        return tuple(HeadId(layer, head) for layer, count in counts.items() for head in range(count))
    return anatomy.heads


def _estimate(
    measure: Measure,
    sums: Mapping[str, Sequence[Any]],
    weights: Sequence[Tensor],
    n_heads: int,
    filled: Sequence[int],
    chosen: Sequence[int],
) -> Floats:
    """(head, head) the measure of the chosen blocks out of those that hold anything; NaN where a half is empty."""
    halves = filled[::2], filled[1::2]
    seen: dict[str, Any] = {"output_weights": weights}
    for need in measure.needs - {"output_weights"}:
        parts = [[n for n in half if n in chosen] for half in halves] if need == "halves" else [chosen]
        if not all(parts):
            return np.full((n_heads, n_heads), np.nan)
        summed = [reduce(add, [sums[need][n] for n in part]) for part in parts]
        seen[need] = tuple(summed) if need == "halves" else summed[0]
    return measure.compare(seen)
