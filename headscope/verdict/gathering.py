"""Evidence: what one pass of statistics and one sweep over some documents say about every head."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from headscope._support.progress import Progress
from headscope.anatomy.untrained import UNTRAINED, drawn_by, untrained_copy
from headscope.anatomy.weights import output_weights
from headscope.effects.gradients import gate_gradients
from headscope.effects.metrics import Metric
from headscope.effects.sweep import Effects, head_effects
from headscope.errors import AnatomyError, MetricError, NumericalError
from headscope.heads import HeadId
from headscope.likeness.measures import MEASURES
from headscope.likeness.pairing import Computed, beside_chance, heads_of, pair_table
from headscope.likeness.passes import looks_across
from headscope.scoring.rating import head_table
from headscope.scoring.scores import SCORES
from headscope.sites import Anatomy
from headscope.statistics.grouped import by_layer
from headscope.statistics.moments import Moments
from headscope.statistics.prediction import best_stand_in
from headscope.statistics.summed_moments import SummedMoments
from headscope.statistics.swapped_moments import Swapped, SwappedMoments
from headscope.tables import HeadTable, PairTable
from headscope.text.batches import Batch
from headscope.watching.observation import Observed, observe

__all__ = ["Evidence", "gather", "watch_untrained"]

_PAIRS = ("cka", "cosine")
_SCORES = ("ablation", "gradient", "norm", "replaceability", "needed")


@dataclass(frozen=True, eq=False)
class Evidence:
    """Tables of one set of documents, and the moments behind them.

    Attributes:
        scores, pairs: tables by name.
        stand_ins: for a head, the one of its layer that alone gives most of what varies in it, and that share.
        moments: per layer, of each block of documents.
        swapped: per layer, of heads beside those of other documents, in two halves.
        weights: W_O of every head.
        effects: of every head by itself, row by row of the sample.
        observed: what the statistics saw; None where heads could not be watched.
        left_out: scores, and "similarity", that cannot be had, each with the reason.
    """

    scores: Mapping[str, HeadTable]
    pairs: Mapping[str, PairTable]
    stand_ins: Mapping[HeadId, tuple[HeadId, float]]
    moments: Mapping[int, Sequence[Moments]]
    swapped: Mapping[int, Sequence[Swapped]]
    weights: Mapping[int, Sequence[Tensor]]
    effects: Effects
    observed: Observed | None
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def intact(self) -> float:
        """The metric of the intact model on the sample (0 for a distance)."""
        return float(self.effects.intact.mean())


def gather(
    model: nn.Module,
    batches: Sequence[Batch],
    sample: Sequence[Batch],
    metric: Metric,
    anatomy: Anatomy,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evidence:
    """Watch a model over `batches` once, sweep its heads over `sample`, and fill every table from that.

    Args:
        model: run in evaluation mode, left as it was.
        batches: what the statistics are taken over.
        sample: what effects and gradients are measured on.
        metric: of effects and gradients.
        anatomy: the model's.
        seed: of random directions.
        progress: told of each batch and each head; see `headscope.Progress`.
    """
    cut = anatomy.apart
    left_out: dict[str, str] = {}
    effects = head_effects(model, sample, metric, cut, progress=progress)
    if np.isnan(effects.values.mean(axis=1)).all():
        raise NumericalError(
            f"the metric {metric.name!r} is NaN as soon as any one head is off, so no head can be set against another; "
            "judge by another metric"
        )
    seen: dict[str, Any] = {"effects": effects}
    watched = _watched(model, batches, cut, progress, left_out)
    if watched is not None:
        seen |= {
            "moments": watched.moments, "swapped_moments": watched.swapped, "output_weights": watched.weights
        }  # fmt: skip
    try:
        seen["gate_gradients"] = gate_gradients(model, sample, metric, cut, seed=seed, progress=progress)
    except MetricError as error:  # a metric that moves in steps has no gradient, and everything else
        left_out["gradient"] = str(error)
    swept = {"metric": metric.name, "mode": "zero", "documents": effects.n_documents, "tokens": effects.n_tokens}
    scores = {}
    for name in (name for name in _SCORES if name not in left_out):
        score = SCORES[name]()
        by_metric = bool(score.needs & {"effects", "gate_gradients"})
        facts = (swept if by_metric or watched is None else watched.facts) | {"seed": seed}
        unit = metric.unit if score.unit == "metric" else score.unit
        scores[name] = head_table(score, unit, seen, anatomy, facts)
    pairs = {} if watched is None else _pairs(watched, cut)
    if watched is None:
        watched = _Watched({}, {}, {}, None, {}, None)
    stand_ins = _stand_ins(watched.moments, watched.weights, cut) if watched.moments else {}
    sums = watched.moments, watched.swapped, watched.weights
    return Evidence(scores, pairs, stand_ins, *sums, effects, watched.observed, left_out)


def watch_untrained(
    model: nn.Module, batches: Sequence[Batch], anatomy: Anatomy, seed: int = 0, progress: Progress | None = None
) -> Callable[[Evidence], Evidence]:
    """Watch an untrained copy of a model over the same batches; what is returned puts its numbers beside the model's.

    Args:
        model: left as it was.
        batches, anatomy, progress: as for `gather`.
        seed: of the copy's weights.

    Raises:
        ModelError: the model has no untrained copy; the parameter that cannot be drawn is named.
    """
    cut = anatomy.apart
    watched, drawn = (
        _watched(untrained_copy(model, seed, cut), batches, cut, progress, {}),
        {UNTRAINED: drawn_by(model)},
    )

    def beside(evidence: Evidence) -> Evidence:
        if watched is None or evidence.observed is None:
            return evidence
        seen = {
            "moments": watched.moments, "swapped_moments": watched.swapped, "output_weights": watched.weights
        }  # fmt: skip
        own = head_table(SCORES["replaceability"](), "", seen, anatomy, watched.facts).score
        table = evidence.scores["replaceability"]
        table = replace(table, columns={**table.columns, UNTRAINED: own}, facts={**table.facts, **drawn})
        pairs = {}
        for name, plain in _pairs(watched, cut).items():
            had = evidence.pairs[name]
            pairs[name] = replace(had, nulls={**had.nulls, UNTRAINED: plain.matrix}, facts={**had.facts, **drawn})
        return replace(evidence, scores={**evidence.scores, table.name: table}, pairs=pairs)

    return beside


@dataclass(frozen=True, eq=False)
class _Watched:
    """What one pass of statistics saw: by layer, and across layers where the model is small."""

    moments: Mapping[int, Sequence[Moments]]
    swapped: Mapping[int, Sequence[Swapped]]
    weights: Mapping[int, Sequence[Tensor]]
    observed: Observed | None
    within: Computed
    across: Computed | None

    @property
    def facts(self) -> dict[str, Any]:
        assert self.observed is not None
        return self.observed.facts("gated_z")


def _watched(
    model: nn.Module, batches: Sequence[Batch], cut: Anatomy, progress: Progress | None, left_out: dict[str, str]
) -> _Watched | None:
    """The pass of statistics; None, with the reason, where heads can be switched off and not be watched."""
    try:
        layered, swapped = SummedMoments(), SwappedMoments()
        across = [SummedMoments(scope="model")] if looks_across(cut) else []
        observed = observe(model, batches, [layered, swapped, *across], anatomy=cut, progress=progress)
        within, crossed = layered.compute(), across[0].compute() if across else None
        return _Watched(by_layer(within), swapped.compute(), output_weights(model, cut), observed, within, crossed)
    except AnatomyError as error:
        left_out |= dict.fromkeys(("norm", "replaceability", "needed", "similarity"), str(error))
        return None


def _pairs(watched: _Watched, cut: Anatomy) -> dict[str, PairTable]:
    facts = watched.facts | {"scope": "model" if watched.across else "layer"}
    seen = {"moments": watched.across or watched.within}
    tables = {}
    for name in _PAIRS:
        measure, of = MEASURES[name](), MEASURES[name].sources[0]
        table = pair_table(measure, of, seen, (heads_of(cut, of), None), watched.weights, facts)
        tables[name] = beside_chance(table, measure, watched.swapped, watched.weights)
    return tables


def watch_moments(model: nn.Module, batches: Sequence[Batch], anatomy: Anatomy) -> Mapping[int, Sequence[Moments]]:
    """The moments of every layer over some batches, a block of documents each."""
    statistic = SummedMoments()
    observe(model, batches, [statistic], anatomy=anatomy.apart)
    return by_layer(statistic.compute())


def _stand_ins(
    layered: Mapping[int, Sequence[Moments]], weights: Mapping[int, Sequence[Tensor]], anatomy: Anatomy
) -> dict[HeadId, tuple[HeadId, float]]:
    found: dict[HeadId, tuple[HeadId, float]] = {}
    for site in anatomy.sites:
        index, share = best_stand_in(layered[site.layer], weights[site.layer])
        for position, head in enumerate(site.heads):
            if index[position] >= 0:
                found[head] = (site.heads[int(index[position])], float(share[position]))
    return found
