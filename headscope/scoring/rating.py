"""Importance of heads: gather what a score needs, run the engines once, call the pure part."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from headscope._support.formatting import brief_list
from headscope._support.progress import Progress, part_of
from headscope.anatomy import anatomy_of
from headscope.anatomy.untrained import UNTRAINED, check_null, drawn_by, untrained_copy
from headscope.anatomy.weights import output_weights
from headscope.effects.gradients import gate_gradients, tells_rows
from headscope.effects.metrics import Metric
from headscope.effects.resolving import resolve_metric
from headscope.effects.sweep import Effects, head_effects
from headscope.errors import InputError
from headscope.heads import HeadId
from headscope.scoring.scores import SCORES, Rating, Score
from headscope.sites import Anatomy
from headscope.statistics import STATISTICS, Statistic
from headscope.statistics.grouped import GroupedStatistic, by_layer
from headscope.tables import HeadTable
from headscope.text.batches import Batch
from headscope.text.feeding import Batches, feed
from headscope.text.sides import sides_of
from headscope.uncertainty.intervals import ONE_DOCUMENT, out_of_range, why_no_interval
from headscope.watching.observation import Observed, observe

__all__ = ["Rated", "by_metric", "head_table", "importance", "rate_heads"]

_BY_METRIC = {"effects", "gate_gradients"}


def importance(
    model: nn.Module,
    batches: Batches,
    score: str | Score = "ablation",
    metric: str | Metric | Callable[..., Tensor] = "auto",
    *,
    anatomy: Anatomy | None = None,
    skip_first: int = 0,
    seed: int = 0,
    null: str = "",
    progress: Progress | None = None,
) -> HeadTable:
    """What each head is worth; higher = more needed (for "replaceability": more replaceable).

    Args:
        model: run in evaluation mode, left as it was.
        batches: what it is measured on.
        score: a name out of `headscope.SCORES`, or an object with its settings, e.g.
            `Ablation(mode="mean")`.
        metric: for scores of effects and gradients: "auto", "loss", "mlm", "kl", "drift", a Metric, or a function
            `metric(output, batch)` / `metric(output, batch, intact)` giving one value a row, lower is better.
        anatomy: skips the probe.
        skip_first: positions at the start of each row that do not count in statistics.
        seed: of the weights of an untrained copy.
        null: "untrained", for scores that take no metric: the same of an untrained copy stands beside as a column, on
            the same text: what architecture and input alone give. A reference, not a test.
        progress: told of each step of the sweep, of gradients and of the pass over the text; see
            `headscope.Progress`.

    Returns:
        A HeadTable with a row for each head of the model; NaN for heads that cannot be scored.

    Raises:
        UnknownNameError: no such score, metric or null.
        InputError: no batch; skip_first or null for a score that is made with a metric.
        ModelError: the model has no untrained copy; the parameter that cannot be drawn is named.
    """
    check_null(null)
    if null and by_metric(score):
        name = SCORES.name_of(score) if isinstance(score, Score) else score
        raise InputError(
            f"{name} is judged by a metric, and an untrained copy does nothing well that it could be judged by; null "
            "stands beside scores that take no metric",
            python="take score='replaceability' or score='norm'",
            shell="take --score replaceability or --score norm, and the others in a call of their own",
        )
    kept, anatomy = _ready(model, batches, anatomy)
    copy = untrained_copy(model, seed, anatomy) if null else None
    settings: dict[str, Any] = {"anatomy": anatomy, "skip_first": skip_first}
    table = rate_heads(model, kept, score, metric, **settings, progress=progress).table
    if copy is None:
        return table
    own = rate_heads(copy, kept, score, metric, **settings, progress=part_of(progress, UNTRAINED)).table.score
    facts = {**table.facts, UNTRAINED: drawn_by(model), "seed": seed}
    return replace(table, columns={**table.columns, UNTRAINED: own}, facts=facts)


@dataclass(frozen=True, eq=False)
class Rated:
    """Heads with their score, and what the score was made of.

    Attributes:
        table: every head of the model.
        rating: of the heads that can be scored.
        heads: these heads, in the order of the rating.
        effects: of taking out each of them, where the score is made of these; None otherwise.
    """

    table: HeadTable
    rating: Rating
    heads: tuple[HeadId, ...]
    effects: Effects | None


def rate_heads(
    model: nn.Module,
    batches: Batches,
    score: str | Score,
    metric: str | Metric | Callable[..., Tensor] = "auto",
    *,
    anatomy: Anatomy | None = None,
    skip_first: int = 0,
    progress: Progress | None = None,
) -> Rated:
    """As `importance`, with what the table was made of."""
    chosen = SCORES[score]() if isinstance(score, str) else score
    batches, anatomy = _ready(model, batches, anatomy)
    needs = _needs(chosen)
    seen: dict[str, Any] = {}
    facts: dict[str, Any] = sides_of(batches)
    unit = chosen.unit
    if skip_first and needs & _BY_METRIC:
        others = [name for name in SCORES if not by_metric(name)]
        raise InputError(
            f"skip_first={skip_first} leaves positions out of statistics, and {SCORES.name_of(chosen)} is measured by "
            f"a metric, which counts every position; leave skip_first out, or ask for {' or '.join(others)}"
        )
    if needs & _BY_METRIC:
        judge = resolve_metric(metric, model, anatomy, batches[0])
        unit = judge.unit if unit == "metric" else unit
        facts |= {"metric": judge.name}
    if "effects" in needs:
        mode = getattr(chosen, "mode", "zero")
        effects = seen["effects"] = head_effects(model, batches, judge, anatomy, mode, progress=progress)
        facts |= {"mode": mode, "documents": effects.n_documents, "tokens": effects.n_tokens}
    if "gate_gradients" in needs:
        slopes = seen["gate_gradients"] = gate_gradients(model, batches, judge, anatomy, progress=progress)
        facts |= {"documents": slopes.n_documents, "tokens": slopes.n_tokens}
        if untold := [site.layer for site in anatomy.apart.sites if not tells_rows(site)]:
            layers = ", ".join(map(str, untold))
            facts["why_no_value"] = f"not for layers {layers}, whose rows cannot be told from each other"
    if streamed := {need: STATISTICS[need]() for need in sorted(needs & STATISTICS.keys())}:
        observed = observe(
            model, batches, list(streamed.values()), anatomy=anatomy.apart, skip_first=skip_first, progress=progress
        )
        seen |= {need: _computed(statistic) for need, statistic in streamed.items()}
        facts |= _facts(observed, skip_first=skip_first)
    if "output_weights" in needs:
        seen["output_weights"] = output_weights(model, anatomy.apart)
    table = head_table(chosen, unit, seen, anatomy, facts)
    return Rated(table, _rate(chosen, seen), anatomy.apart.heads, seen.get("effects"))


def _computed(statistic: Statistic) -> Any:
    made = statistic.compute()
    return by_layer(made) if isinstance(statistic, GroupedStatistic) else made


def head_table(score: Score, unit: str, seen: dict[str, Any], anatomy: Anatomy, facts: Mapping[str, Any]) -> HeadTable:
    """Score heads by what was gathered before; heads of sites that are not prunable are NaN.

    Args:
        score: which score.
        unit: of the numbers.
        seen: what the score needs. Ratings are kept in it, since scores may need each other.
        anatomy: the model's.
        facts: for the table.
    """
    rating = _rate(score, seen)
    place = {head: index for index, head in enumerate(anatomy.heads)}
    rows = [place[head] for head in anatomy.apart.heads]

    def spread_out(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        column = np.full(len(place), np.nan)
        column[rows] = values
        return column

    columns = [spread_out(values) for values in (rating.score, rating.low, rating.high)]
    further = {name: spread_out(values) for name, values in rating.every_column().items()}
    cautions = [own["caution"] for own in (facts, rating.facts) if "caution" in own]
    facts = {**facts, **rating.facts, **({"caution": "; ".join(cautions)} if cautions else {})}
    if rating.spread is not None and np.isfinite(rating.spread.freedom).any():
        facts["freedom"] = _brief(spread_out(np.broadcast_to(rating.spread.freedom, rating.score.shape)))
    if why := why_no_interval(facts.get("documents", 0), score.least_documents):
        facts["why_no_interval"] = why
    if beyond := out_of_range(columns[1], columns[2], score.bounds):
        facts["out_of_range"] = beyond
    if why := _why_no_value(rating, score, facts.get("documents", 0)):
        facts["why_no_value"] = why
    elif whys := _without_value(score, rating, anatomy, rows):
        facts["why_no_value"] = "; ".join(whys)
    name = SCORES.name_of(score)
    made_of = anatomy.facts
    return HeadTable(name, unit, anatomy.heads, columns[0], columns[1], columns[2], {**facts, **made_of}, further)


def _brief(freedom: npt.NDArray[np.float64]) -> float | list[float | None]:
    """Degrees of freedom of the heads' errors: one for all, or one for each; null where a head has none."""
    known = np.unique(freedom[np.isfinite(freedom)])
    return float(known[0]) if len(known) == 1 else [float(f) if np.isfinite(f) else None for f in freedom]


def _without_value(score: Score, rating: Rating, anatomy: Anatomy, rows: Sequence[int]) -> list[str]:
    """Which heads have no number, and why."""
    apart = [str(head) for index, head in enumerate(anatomy.heads) if index not in rows]
    still = [str(anatomy.heads[row]) for row, own in zip(rows, rating.score, strict=True) if np.isnan(own)]
    whys = [f"not for {brief_list(apart)}, which cannot be taken out one by one"] if apart else []
    if still and score.of_what_varies:
        whys.append(
            f"not for {brief_list(still)}, which {'writes' if len(still) == 1 else 'write'} the same everywhere"
        )
    return whys


def _why_no_value(rating: Rating, score: Score, n_documents: int) -> str | None:
    if n_documents > 1 or score.least_documents <= 2 or not np.isnan(rating.score).all():
        return None
    return ONE_DOCUMENT


def by_metric(score: str | Score) -> bool:
    """Whether a score takes a metric, as ablation does; the others are made of statistics of one pass."""
    return bool(_needs(SCORES[score]() if isinstance(score, str) else score) & _BY_METRIC)


def _needs(score: Score) -> frozenset[str]:
    """What a score needs, and what the scores need that it needs."""
    return score.needs.union(*(_needs(_needed(name, score)) for name in score.needs & SCORES.keys()))


def _needed(name: str, by: Score) -> Score:
    """A score that another one needs, with the settings that the two have in common."""
    kind: Any = SCORES[name]
    made: Score = kind(**{field.name: getattr(by, field.name) for field in fields(kind) if hasattr(by, field.name)})
    return made


def _rate(score: Score, seen: dict[str, Any]) -> Rating:
    made: dict[Score, Rating] = seen.setdefault("ratings", {})
    if score not in made:
        others = {name: _rate(_needed(name, score), seen) for name in score.needs & SCORES.keys()}
        made[score] = score.rate({**seen, **others})
    return made[score]


def _ready(model: nn.Module, batches: Batches, anatomy: Anatomy | None) -> tuple[Sequence[Batch], Anatomy]:
    kept = feed(model, batches)
    if len(kept) == 0:
        raise InputError("there is no batch to measure on")
    return kept, anatomy_of(model, kept[0], anatomy)


def _facts(observed: Observed, **more: Any) -> dict[str, Any]:
    return {**observed.facts("gated_z"), **more}
