"""Similarity of heads: gather what the measures need in as few passes as memory allows, and call the pure parts."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from headscope._support.progress import Progress, part_of
from headscope._support.running import check_takes, unwrapped
from headscope.anatomy import anatomy_of, discover
from headscope.anatomy.untrained import UNTRAINED, drawn_by, untrained_copy
from headscope.errors import InputError, ModelError, UnknownNameError
from headscope.likeness.asking import Ask, How, Pair
from headscope.likeness.gaps import why_no_value
from headscope.likeness.measures import MEASURES, Measure
from headscope.likeness.nulls import random_tokens, unmoved_layers, with_null, without_null
from headscope.likeness.reading import compare_weights, read_tables
from headscope.sites import Anatomy
from headscope.tables import PairTable
from headscope.text.batches import Batch
from headscope.text.feeding import Batches, feed
from headscope.text.sides import sides_of

__all__ = ["compare_heads", "similarity"]


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
    null: str = "",
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
        seed: of the random tokens that maps are compared on beside, and of the weights of an untrained copy.
        null: "untrained": the same of an untrained copy stands beside, on the same text: what architecture and input
            alone give. A reference, not a test: a trained model below it has grown apart.
        progress: told of each batch of each pass; see `headscope.Progress`.

    Returns:
        A PairTable; 1 = interchangeable up to the measure's invariance, NaN for a constant head and for heads that see
        different positions, as an encoder's and a decoder's in one model. In `nulls` stands what the value is compared
        with, NaN or left out where there is none, and the facts say why: "random_tokens" for measures of maps;
        "chance" for those of vectors, of two heads of a layer: the one beside the other as it is in another document;
        "untrained" where it is asked for.

    Raises:
        UnknownNameError: no such measure, scope or null, or a tensor that the measure does not compare.
        InputError: no batch; two models of which no heads see the same positions; two models and an untrained copy.
        ModelError: the model has no untrained copy, see `null`; the parameter is named.
    """
    how = How(scope=scope, memory=memory, intervals=intervals, skip_first=skip_first, seed=seed, null=null)
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
    if how.null and other is not None:
        raise InputError("two models are compared, and an untrained copy is of one; leave null out, or other")
    chosen = [(MEASURES[m]() if isinstance(m, str) else m, of) for m, of in asked]
    asks = [Ask(measure, _source_of(measure, of)) for measure, of in chosen]
    kept = _kept(model, batches, asks)
    anatomy = anatomy_of(model, _example(model, kept, asks), anatomy)
    other = None if other is None else unwrapped(other)
    if other is not None and not all(ask.textless for ask in asks):
        check_takes(other, kept[0])
    pair = Pair(model, anatomy, other, None if other is None else discover(other, _example(other, kept, asks)))
    copy = untrained_copy(model, how.seed, anatomy) if how.null else None
    tables = [compare_weights(ask, pair, how.scope) if ask.textless else None for ask in asks]
    places = [place for place, ask in enumerate(asks) if not ask.textless]
    if places:
        reading = [asks[place] for place in places]
        made = [
            replace(t, facts={**t.facts, **sides_of(kept)}) for t in read_tables(pair, kept, reading, how, progress)
        ]
        if any(ask.of == "pattern" for ask in reading):
            made = _beside_nulls(pair, kept, reading, made, how, part_of(progress, "random tokens"))
        for place, table in zip(places, made, strict=True):
            tables[place] = table
    found = [_explained(table) for table in tables if table is not None]
    return found if copy is None else _beside_untrained(pair, copy, kept, asked, found, how, progress)


def _beside_untrained(
    pair: Pair,
    copy: nn.Module,
    kept: Sequence[Batch],
    asked: Sequence[tuple[str | Measure, str | None]],
    found: Sequence[PairTable],
    how: How,
    progress: Progress | None,
) -> list[PairTable]:
    """Tables with the same of an untrained copy beside them."""
    progress = part_of(progress, UNTRAINED)
    plain = compare_heads(copy, kept, asked, replace(how, null=""), anatomy=pair.anatomy, progress=progress)
    drawn = {UNTRAINED: drawn_by(pair.model)}
    return [
        replace(table, nulls={**table.nulls, UNTRAINED: own.matrix}, facts={**table.facts, **drawn})
        for table, own in zip(found, plain, strict=True)
    ]


def _beside_nulls(
    pair: Pair,
    kept: Sequence[Batch],
    reading: Sequence[Ask],
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
        nulls = read_tables(pair, randoms, maps, how, progress)
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


def _source_of(measure: Measure, of: str | None) -> str:
    name = MEASURES.name_of(measure)
    if of is None:
        return measure.sources[0]
    if of not in measure.sources:
        raise UnknownNameError(f"{name} does not compare {of!r}; it compares: {', '.join(measure.sources)}")
    return of


def _kept(model: nn.Module, batches: Batches | None, asks: Sequence[Ask]) -> Sequence[Batch]:
    kept: Sequence[Batch] = [] if batches is None else feed(model, batches)
    if len(kept) == 0 and not all(ask.textless for ask in asks):
        raise InputError("there is no batch to measure on; pass batches")
    return kept


def _example(model: nn.Module, batches: Sequence[Batch], asks: Sequence[Ask]) -> Batch | None:
    """What a model is probed with: for weights alone, what it says itself that it takes, where it does."""
    says = getattr(model, "main_input_name", None) is not None
    return None if len(batches) == 0 or (says and all(ask.textless for ask in asks)) else batches[0]
