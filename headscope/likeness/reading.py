"""Tables of pairs: from as few passes over the text as memory allows, or from weights alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from headscope._support.progress import Progress, part_of
from headscope.anatomy.weights import output_weights, ov_factors, qk_factors
from headscope.errors import AnatomyError, InputError, UnknownNameError
from headscope.likeness.asking import Ask, How, Pair
from headscope.likeness.measures import MEASURES
from headscope.likeness.pairing import beside_chance, heads_of, of_moments, pair_table
from headscope.likeness.passes import parse_memory, plan_passes
from headscope.sites import Anatomy
from headscope.statistics import STATISTICS
from headscope.statistics.arrivals import OTHER, own_layer
from headscope.statistics.grouped import GroupedStatistic
from headscope.statistics.summed_moments import SummedMoments
from headscope.statistics.swapped_moments import SwappedMoments
from headscope.tables import PairTable, settle_tokens
from headscope.text.batches import Batch
from headscope.uncertainty.blocks import N_BLOCKS
from headscope.watching.observation import check_any, observe

__all__ = ["compare_weights", "read_tables"]

_FOR_BLOCKS = N_BLOCKS / (N_BLOCKS + 4)  # of the room; the rest takes two halves of pairs, each as large as two blocks
_NO_ROOM = "sums of pairs of documents did not fit into memory beside the others; allow more memory"
_FACTORS = {"qk_factors": qk_factors, "ov_factors": ov_factors}


def read_tables(
    pair: Pair, batches: Sequence[Batch], asks: Sequence[Ask], how: How, progress: Progress | None
) -> list[PairTable]:
    """Tables of measures that need text, in as many passes as fit into memory."""
    if any(ask.of == "contribution" for ask in asks):
        pair = pair.apart
    pair = pair.having(*(ask.streamed for ask in asks))
    for anatomy in (pair.anatomy, pair.other_anatomy):
        if anatomy is not None:
            check_any(anatomy)
    plan = _plan(pair, asks, how)
    tables: list[PairTable] = []
    met = False
    for layers in plan.parts:
        made, they_met = _pass(pair, layers, batches, asks, how, plan, part_of(progress, parts=len(plan.parts)))
        tables = [_fill(a, b) for a, b in zip(tables, made, strict=True)] if tables else made
        met |= they_met
    if pair.other is not None and not met:
        raise InputError(
            f"no heads of {type(pair.model).__name__} and of the other model, {type(pair.other).__name__}, see the "
            "same positions of these batches, so none can be compared; both must give each token a position, and both "
            "be causal or neither"
        )
    return [replace(table, facts=settle_tokens(table.facts)) for table in tables]


class _Passes(NamedTuple):
    """Blocks of documents, the layers of each pass, and whether there is room for sums of pairs of documents."""

    blocks: int
    parts: list[list[int]]
    chance: bool


def _plan(pair: Pair, asks: Sequence[Ask], how: How) -> _Passes:
    """Moments alone take much memory."""
    sums = {key for ask in asks for key in ask.statistics if key[0] == "moments"}
    if not sums:
        return _Passes(N_BLOCKS, [pair.layers], chance=False)
    least = 2 if any("halves" in ask.measure.needs for ask in asks) else 1
    room = parse_memory(how.memory) / len(sums)

    def planned(room: float) -> tuple[int, list[list[int]]]:
        anatomies = pair.anatomy, pair.other_anatomy
        return plan_passes(anatomies, how.scope, room, least=least, intervals=how.intervals)

    if pair.other is not None:
        return _Passes(*planned(room), chance=False)
    if how.scope == "layer":
        try:
            return _Passes(*planned(_FOR_BLOCKS * room), chance=True)
        except InputError:  # where one layer alone fills the memory, it is watched without chance beside it
            return _Passes(*planned(room), chance=False)
    wanted = planned(room)  # across layers chance is not worth a pass: it is there where it fits beside the rest
    return _Passes(*wanted, chance=wanted[0] == N_BLOCKS and _fits(planned, room, wanted))


def _fits(
    planned: Callable[[float], tuple[int, list[list[int]]]], room: float, wanted: tuple[int, list[list[int]]]
) -> bool:
    try:
        return planned(_FOR_BLOCKS * room) == wanted
    except InputError:
        return False


def _pass(
    pair: Pair,
    layers: Sequence[int],
    batches: Sequence[Batch],
    asks: Sequence[Ask],
    how: How,
    plan: _Passes,
    progress: Progress | None,
) -> tuple[list[PairTable], bool]:
    """The tables of some layers, and whether heads of two models saw the same positions."""
    statistics = {key: _statistic(*key, how.scope, plan.blocks) for ask in asks for key in ask.statistics}
    part = replace(pair.anatomy, sites=tuple(site for site in pair.anatomy.sites if site.layer in layers))
    other = None
    if pair.other is not None and pair.other_anatomy is not None:
        theirs = tuple(site for site in pair.other_anatomy.sites if OTHER + site.layer in layers)
        other = (pair.other, replace(pair.other_anatomy, sites=theirs))
    beside = [ask for ask in asks if of_moments(ask.measure)]
    chances = {ask.streamed: SwappedMoments(ask.streamed) for ask in beside if plan.chance}
    observed = observe(
        pair.model, batches, [*statistics.values(), *chances.values()], anatomy=part, other=other,
        skip_first=how.skip_first, progress=progress,
    )  # fmt: skip
    computed = {key: statistic.compute() for key, statistic in statistics.items()}
    swapped = {of: statistic.compute() for of, statistic in chances.items()}
    settings = {"scope": how.scope, "skip_first": how.skip_first, "seed": how.seed, **pair.facts}
    made = []
    for ask in asks:
        needs = {need: computed[ask.key(need)] for need in ask.measure.needs if need != "output_weights"}
        facts = {**observed.raw_facts(ask.streamed), **settings}
        weights = _coordinates(pair, ask)
        table = pair_table(ask.measure, ask.of, needs, pair.heads(ask.of), weights, facts)
        if ask in beside and plan.chance:
            table = beside_chance(table, ask.measure, swapped[ask.streamed], weights)
        elif ask in beside and other is None:
            table = replace(table, facts={**table.facts, "why_no_chance": _NO_ROOM})
        made.append(table)
    they_met = all(any(min(group) < OTHER <= max(group) for group in by_group) for by_group in computed.values())
    return made, they_met


def _coordinates(pair: Pair, ask: Ask) -> dict[int, Sequence[Tensor]]:
    """By layer, what takes each head's vectors to where they can be set against others': W_O, or nothing."""
    if "output_weights" not in ask.measure.needs:
        return {}
    if ask.of == "contribution":
        return pair.by_layer(output_weights)

    def plain(_: nn.Module, anatomy: Anatomy) -> dict[int, list[Tensor]]:
        heads = heads_of(anatomy, ask.of)
        sizes = {site.layer: site.head_dim if ask.of in ("q", "k") else site.value_dim for site in anatomy.sites}
        return {
            layer: [torch.eye(size, dtype=torch.float64) for head in heads if head.layer == layer]
            for layer, size in sizes.items()
        }

    return pair.by_layer(plain)


def _statistic(need: str, of: str, scope: str, blocks: int) -> GroupedStatistic:
    kind: Any = STATISTICS[need]
    if not issubclass(kind, GroupedStatistic):
        raise UnknownNameError(
            f"a measure cannot need {need!r}: that statistic does not sum over heads which see the same positions; see "
            "headscope.statistics.grouped.GroupedStatistic"
        )
    if need == "moments":
        return SummedMoments(of, scope, blocks)
    made: GroupedStatistic = kind(scope=scope) if of == "pattern" else kind(of=of, scope=scope)
    return made


def _fill(one: PairTable, other: PairTable) -> PairTable:
    """The numbers of one pass, and of another where it has none."""
    take = np.isnan(one.matrix)
    value, low, high = (np.where(take, getattr(other, name), getattr(one, name)) for name in ("matrix", "low", "high"))
    nulls = {name: np.where(np.isnan(own), other.nulls[name], own) for name, own in one.nulls.items()}
    facts = {**one.facts, "layer_tokens": one.facts["layer_tokens"] | other.facts["layer_tokens"]}
    if not (one.facts.get("why_no_chance") and other.facts.get("why_no_chance")):
        facts.pop("why_no_chance", None)
    return replace(one, matrix=value, low=low, high=high, nulls=nulls, facts=facts)


def compare_weights(ask: Ask, pair: Pair, scope: str) -> PairTable:
    """The table of a measure that looks at weights alone."""
    (need,) = ask.measure.needs
    factors = pair.by_layer(_FACTORS[need])
    if not factors:
        raise AnatomyError(
            f"{MEASURES.name_of(ask.measure)} needs q, k or v as one linear map of the residual stream, and no layer "
            f"of {pair.anatomy.model_class} has that"
        )
    rows, columns = pair.heads(ask.of)
    layer = np.array([head.layer for head in rows] + [OTHER + head.layer for head in columns or ()], dtype=np.int64)
    own = np.flatnonzero(np.isin(layer, list(factors)))
    matrix = np.full((len(layer), len(layer)), np.nan)
    ordered = [factor for one in dict.fromkeys(layer[own].tolist()) for factor in factors[one]]
    matrix[np.ix_(own, own)] = ask.measure.compare({need: ordered})
    if scope == "layer":
        matrix[own_layer(layer)[:, None] != own_layer(layer)] = np.nan
    kinds = pair.by_layer(lambda _, anatomy: {site.layer: site.kind for site in anatomy.sites})
    if "cross" in kinds.values():  # encoder and decoder have a residual stream each, and cross layers join the two
        kind = np.array([kinds[number] for number in layer.tolist()])
        matrix[kind[:, None] != kind] = np.nan
    shown = slice(0, len(rows)) if columns is None else slice(len(rows), None)
    matrix = matrix[: len(rows), shown]
    none = np.full_like(matrix, np.nan)
    why = "weights are known exactly: there is no text to vary"
    facts = {"scope": scope, **pair.facts, "why_no_interval": why}
    name, symmetric = MEASURES.name_of(ask.measure), ask.measure.symmetric
    return PairTable(name, ask.of, rows, matrix, none, none, facts, other=columns, symmetric=symmetric)
