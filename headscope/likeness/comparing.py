"""Similarity of heads: gather what the measures need in as few passes as memory allows, and call the pure parts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from headscope._support.progress import Progress, part_of
from headscope._support.running import check_takes, unwrapped
from headscope.anatomy import discover
from headscope.anatomy.weights import output_weights, ov_factors, qk_factors
from headscope.errors import AnatomyError, InputError, ModelError, UnknownNameError
from headscope.heads import HeadId
from headscope.likeness.gaps import why_no_value
from headscope.likeness.measures import MEASURES, Measure
from headscope.likeness.nulls import random_tokens, unmoved_layers, with_null, without_null
from headscope.likeness.pairing import heads_of, pair_table
from headscope.likeness.passes import parse_memory, plan_passes
from headscope.sites import Anatomy
from headscope.statistics import STATISTICS
from headscope.statistics.arrivals import OTHER, SCOPES, own_layer
from headscope.statistics.grouped import GroupedStatistic
from headscope.statistics.summed_moments import SummedMoments
from headscope.tables import PairTable, settle_tokens
from headscope.text.batches import Batch
from headscope.text.feeding import Batches, feed
from headscope.text.sides import sides_of
from headscope.uncertainty.blocks import N_BLOCKS
from headscope.watching.observation import observe

__all__ = ["How", "compare_heads", "needs_text", "similarity"]

_FACTORS = {"qk_factors": qk_factors, "ov_factors": ov_factors}
_TEXTLESS = {*_FACTORS}


def needs_text(measure: Measure) -> bool:
    """Whether a measure looks at what a model makes of text; those of weights do not."""
    return not measure.needs <= _TEXTLESS


@dataclass(frozen=True, kw_only=True)
class How:
    """Settings of a comparison.

    Attributes:
        scope: "layer": within each layer (of two models: a layer with the same layer), NaN elsewhere; "model": every
            head with every other.
        memory: bytes that sums may take, or as text: "2GB". What does not fit is done in several passes.
        intervals: across the model, make them whatever the number of passes that takes; else only where all blocks of
            documents fit into one.
        skip_first: positions at the start of each row that do not count.
        seed: of random tokens.
    """

    scope: str = "layer"
    memory: float | str = "2GB"
    intervals: bool = False
    skip_first: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise UnknownNameError(f"there is no scope {self.scope!r}; there are: {', '.join(SCOPES)}")
        parse_memory(self.memory)


def similarity(
    model: nn.Module,
    batches: Batches | None = None,
    measure: str | Measure = "cka",
    of: str | None = None,
    scope: str = "layer",
    *,
    other: nn.Module | None = None,
    memory: float | str = "2GB",
    intervals: bool = False,
    anatomy: Anatomy | None = None,
    skip_first: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> PairTable:
    """How alike heads are, over the positions of some text, with intervals over its documents.

    Args:
        model: run in evaluation mode, left as it was.
        batches: dicts of tensors as the model takes them, with an optional "document" (batch,); measures of weights
            take none.
        measure: a name out of `headscope.MEASURES`, or an object with its settings.
        of: what is compared, one of `headscope.MEASURES[measure].sources`, as "z" or "pattern"; the first without it.
        scope: "layer": within each layer, NaN elsewhere; "model": every head with every other.
        other: a second model, run on the same batches: rows are heads of `model`, columns heads of `other`.
        memory: bytes that the sums may take, or as text ("2GB"); what does not fit is done in several passes.
        intervals: across the model, make them whatever the number of passes that takes; without it only where all
            blocks of documents fit into one. Within layers they are always made.
        anatomy: of `model`; skips the probe.
        skip_first: positions at the start of each row that do not count.
        seed: of the random tokens that maps are compared on beside.
        progress: told of each batch of each pass; see `headscope.Progress`.

    Returns:
        A PairTable; 1 = interchangeable up to the measure's invariance, NaN for a constant head and for heads that see
        different positions, as an encoder's and a decoder's in one model. Measures of maps carry their value on random
        tokens as `null`: NaN for layers whose maps these cannot change, None where there are none; the facts say why.

    Raises:
        UnknownNameError: no such measure or scope, or a tensor that the measure does not compare.
        InputError: no batch; two models of which no heads see the same positions.
    """
    how = How(scope=scope, memory=memory, intervals=intervals, skip_first=skip_first, seed=seed)
    (table,) = compare_heads(model, batches, [(measure, of)], how, anatomy=anatomy, other=other, progress=progress)
    return table


def compare_heads(
    model: nn.Module,
    batches: Batches | None,
    asked: Sequence[tuple[str | Measure, str | None]],
    how: How,
    *,
    anatomy: Anatomy | None = None,
    other: nn.Module | None = None,
    progress: Progress | None = None,
) -> list[PairTable]:
    """Several measures from one pass over the text (and one more over random tokens where maps are compared).

    Args:
        model, batches, anatomy, other, progress: see `similarity`.
        asked: measures, each with what it compares; None for its own choice.
        how: settings.

    Returns:
        A table for each measure asked, in that order.
    """
    chosen = [(MEASURES[m]() if isinstance(m, str) else m, of) for m, of in asked]
    asks = [_Ask(measure, _source_of(measure, of)) for measure, of in chosen]
    kept = _kept(model, batches, asks)
    anatomy = discover(model, _example(model, kept, asks)) if anatomy is None else anatomy
    other = None if other is None else unwrapped(other)
    if other is not None and not all(ask.textless for ask in asks):
        check_takes(other, kept[0])
    pair = _Pair(model, anatomy, other, None if other is None else discover(other, _example(other, kept, asks)))
    tables = [_of_weights(ask, pair, how.scope) if ask.textless else None for ask in asks]
    places = [place for place, ask in enumerate(asks) if not ask.textless]
    if places:
        reading = [asks[place] for place in places]
        made = [replace(t, facts={**t.facts, **sides_of(kept)}) for t in _read(pair, kept, reading, how, progress)]
        if any(ask.of == "pattern" for ask in reading):
            made = _beside_nulls(pair, kept, reading, made, how, part_of(progress, "random tokens"))
        for place, table in zip(places, made, strict=True):
            tables[place] = table
    return [_explained(table) for table in tables if table is not None]


def _beside_nulls(
    pair: "_Pair",
    kept: Sequence[Batch],
    reading: "Sequence[_Ask]",
    made: Sequence[PairTable],
    how: How,
    progress: Progress | None,
) -> list[PairTable]:
    """Tables of maps with the same on random tokens beside them; with the reason, where there are none."""
    maps = [ask for ask in reading if ask.of == "pattern"]
    try:
        randoms = random_tokens(pair.model, pair.anatomy, kept, how.seed)
    except InputError as error:
        return [without_null(table, str(error)) for table in made]
    try:
        unmoved = [
            unmoved_layers(model, anatomy.having("pattern"), kept, randoms)
            for model, anatomy in ((pair.model, pair.anatomy), (pair.other, pair.other_anatomy))
            if model is not None and anatomy is not None
        ]
        nulls = _read(pair, randoms, maps, how, progress)
    except ModelError as error:
        return [without_null(table, f"the model does not take random tokens: {error}") for table in made]
    by_ask = dict(zip(maps, nulls, strict=True))
    return [
        with_null(table, by_ask[ask], unmoved[0], unmoved[-1]) if ask in by_ask else table
        for ask, table in zip(reading, made, strict=True)
    ]


def _explained(table: PairTable) -> PairTable:
    why = why_no_value(table, held_out="halves" in MEASURES[table.name].needs)
    return table if why is None else replace(table, facts={**table.facts, "why_no_value": why})


@dataclass(frozen=True)
class _Ask:
    """One measure, and what it compares."""

    measure: Measure
    of: str

    @property
    def textless(self) -> bool:
        return not needs_text(self.measure)

    @property
    def streamed(self) -> str:
        """The tensor that is summed for it."""
        if "output_weights" in self.measure.needs:
            return "gated_z"  # contributions are compared through z as the projection reads it
        return "written" if self.of == "contribution" else self.of

    def key(self, need: str) -> tuple[str, str]:
        """Which statistic a need is met by; measures that want the same share it."""
        return ("moments" if need == "halves" else need, self.streamed)

    @property
    def statistics(self) -> set[tuple[str, str]]:
        return {self.key(need) for need in self.measure.needs if need != "output_weights"}


@dataclass(frozen=True, eq=False)
class _Pair:
    """One model, or two that are compared with each other."""

    model: nn.Module
    anatomy: Anatomy
    other: nn.Module | None
    other_anatomy: Anatomy | None

    def heads(self, of: str) -> tuple[tuple[HeadId, ...], tuple[HeadId, ...] | None]:
        theirs = None if self.other_anatomy is None else heads_of(self.other_anatomy, of)
        return heads_of(self.anatomy, of), theirs

    def by_layer(self, make: Callable[[nn.Module, Anatomy], Mapping[int, Any]]) -> dict[int, Any]:
        """Something of each layer, the other model's from OTHER on."""
        made = dict(make(self.model, self.anatomy))
        if self.other is not None and self.other_anatomy is not None:
            made |= {OTHER + layer: value for layer, value in make(self.other, self.other_anatomy).items()}
        return made

    @property
    def layers(self) -> list[int]:
        """The layers' numbers, the other model's from OTHER on."""
        theirs = () if self.other_anatomy is None else self.other_anatomy.sites
        return [*(site.layer for site in self.anatomy.sites), *(OTHER + site.layer for site in theirs)]

    @property
    def facts(self) -> dict[str, str]:
        """Which models they are."""
        known = self.anatomy.facts
        other = self.other_anatomy
        theirs = {} if other is None else {"other_class": other.model_class, "other_fingerprint": other.fingerprint}
        return known | theirs

    def having(self, *names: str) -> "_Pair":
        theirs = None if self.other_anatomy is None else self.other_anatomy.having(*names)
        return replace(self, anatomy=self.anatomy.having(*names), other_anatomy=theirs)

    @property
    def apart(self) -> "_Pair":
        theirs = None if self.other_anatomy is None else self.other_anatomy.apart
        return replace(self, anatomy=self.anatomy.apart, other_anatomy=theirs)


def _read(
    pair: _Pair, batches: Sequence[Batch], asks: Sequence[_Ask], how: How, progress: Progress | None
) -> list[PairTable]:
    """Tables of measures that need text, in as many passes as fit into memory."""
    if any(ask.of == "contribution" for ask in asks):
        pair = pair.apart
    pair = pair.having(*(ask.streamed for ask in asks))
    blocks, parts = _plan(pair, asks, how)
    tables: list[PairTable] = []
    met = False
    for layers in parts:
        made, they_met = _pass(pair, layers, batches, asks, how, blocks, part_of(progress, parts=len(parts)))
        tables = [_fill(a, b) for a, b in zip(tables, made, strict=True)] if tables else made
        met |= they_met
    if pair.other is not None and not met:
        raise InputError(
            f"no heads of {type(pair.model).__name__} and of the other model, {type(pair.other).__name__}, see the "
            "same positions of these batches, so none can be compared; both must give each token a position, and both "
            "be causal or neither"
        )
    return [replace(table, facts=settle_tokens(table.facts)) for table in tables]


def _plan(pair: _Pair, asks: Sequence[_Ask], how: How) -> tuple[int, list[list[int]]]:
    """Blocks of documents, and the layers of each pass; moments alone take much memory."""
    sums = {key for ask in asks for key in ask.statistics if key[0] == "moments"}
    if not sums:
        return N_BLOCKS, [pair.layers]
    least = 2 if any("halves" in ask.measure.needs for ask in asks) else 1
    room = parse_memory(how.memory) / len(sums)
    anatomies = pair.anatomy, pair.other_anatomy
    return plan_passes(anatomies, how.scope, room, least=least, intervals=how.intervals)


def _pass(
    pair: _Pair,
    layers: Sequence[int],
    batches: Sequence[Batch],
    asks: Sequence[_Ask],
    how: How,
    blocks: int,
    progress: Progress | None,
) -> tuple[list[PairTable], bool]:
    """The tables of some layers, and whether heads of two models saw the same positions."""
    statistics = {key: _statistic(*key, how.scope, blocks) for ask in asks for key in ask.statistics}
    part = replace(pair.anatomy, sites=tuple(site for site in pair.anatomy.sites if site.layer in layers))
    other = None
    if pair.other is not None and pair.other_anatomy is not None:
        theirs = tuple(site for site in pair.other_anatomy.sites if OTHER + site.layer in layers)
        other = (pair.other, replace(pair.other_anatomy, sites=theirs))
    observed = observe(
        pair.model, batches, list(statistics.values()), anatomy=part, other=other, skip_first=how.skip_first,
        progress=progress,
    )  # fmt: skip
    computed = {key: statistic.compute() for key, statistic in statistics.items()}
    wants_weights = any("output_weights" in ask.measure.needs for ask in asks)
    weights = pair.by_layer(output_weights) if wants_weights else {}
    settings = {"scope": how.scope, "skip_first": how.skip_first, "seed": how.seed, **pair.facts}
    made = []
    for ask in asks:
        needs = {need: computed[ask.key(need)] for need in ask.measure.needs if need != "output_weights"}
        facts = {**observed.raw_facts(ask.streamed), **settings}
        made.append(pair_table(ask.measure, ask.of, needs, pair.heads(ask.of), weights, facts))
    they_met = all(any(min(group) < OTHER <= max(group) for group in by_group) for by_group in computed.values())
    return made, they_met


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
    tokens = one.facts["layer_tokens"] | other.facts["layer_tokens"]
    return replace(one, matrix=value, low=low, high=high, facts={**one.facts, "layer_tokens": tokens})


def _of_weights(ask: _Ask, pair: _Pair, scope: str) -> PairTable:
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


def _source_of(measure: Measure, of: str | None) -> str:
    name = MEASURES.name_of(measure)
    if of is None:
        return measure.sources[0]
    if of not in measure.sources:
        raise UnknownNameError(f"{name} does not compare {of!r}; it compares: {', '.join(measure.sources)}")
    return of


def _kept(model: nn.Module, batches: Batches | None, asks: Sequence[_Ask]) -> Sequence[Batch]:
    kept: Sequence[Batch] = [] if batches is None else feed(model, batches)
    if len(kept) == 0 and not all(ask.textless for ask in asks):
        raise InputError("there is no batch to measure on; pass batches")
    return kept


def _example(model: nn.Module, batches: Sequence[Batch], asks: Sequence[_Ask]) -> Batch | None:
    """What a model is probed with: for weights alone, what it says itself that it takes, where it does."""
    says = getattr(model, "main_input_name", None) is not None
    return None if len(batches) == 0 or (says and all(ask.textless for ask in asks)) else batches[0]
