"""Evidence: what one pass of statistics and one sweep over some documents say about every head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from headscope._support.progress import Progress
from headscope.anatomy.weights import output_weights
from headscope.effects.gradients import gate_gradients
from headscope.effects.metrics import Metric
from headscope.effects.sweep import head_effects
from headscope.errors import MetricError
from headscope.heads import HeadId
from headscope.likeness.measures import MEASURES
from headscope.likeness.pairing import Computed, heads_of, pair_table
from headscope.likeness.passes import looks_across
from headscope.scoring.rating import head_table
from headscope.scoring.scores import SCORES
from headscope.sites import Anatomy
from headscope.statistics.grouped import by_layer
from headscope.statistics.moments import Moments
from headscope.statistics.prediction import best_stand_in
from headscope.statistics.summed_moments import SummedMoments
from headscope.tables import HeadTable, PairTable
from headscope.text.batches import Batch
from headscope.watching.observation import Observed, observe

__all__ = ["Evidence", "gather"]

_PAIRS = ("cka", "cosine")
_SCORES = ("ablation", "gradient", "norm", "replaceability", "needed")


@dataclass(frozen=True, eq=False)
class Evidence:
    """Tables of one set of documents, and the moments behind them.

    Attributes:
        scores, pairs: tables by name.
        stand_ins: for a head, the one of its layer that restores most of it alone, and the share that it restores.
        moments: per layer, of each block of documents.
        weights: W_O of every head.
        intact: the metric of the intact model on the sample (0 for a distance).
        observed: what the statistics saw.
        left_out: scores that cannot be had, by name, each with the reason.
    """

    scores: Mapping[str, HeadTable]
    pairs: Mapping[str, PairTable]
    stand_ins: Mapping[HeadId, tuple[HeadId, float]]
    moments: Mapping[int, Sequence[Moments]]
    weights: Mapping[int, Sequence[Tensor]]
    intact: float
    observed: Observed
    left_out: Mapping[str, str] = field(default_factory=dict)


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
    cut = anatomy.cuttable
    within, observed, across = _observe(model, batches, cut, progress)
    layered = by_layer(within)
    weights = output_weights(model, cut)
    effects = head_effects(model, sample, metric, cut, progress=progress)
    seen = {"moments": layered, "output_weights": weights, "effects": effects}
    left_out = {}
    try:
        seen["gate_gradients"] = gate_gradients(model, sample, metric, cut, seed=seed, progress=progress)
    except MetricError as error:  # a metric that moves in steps has no gradient, and everything else
        left_out["gradient"] = str(error)
    swept = {"metric": metric.name, "mode": "zero", "documents": effects.n_documents, "tokens": effects.n_tokens}
    watched = observed.facts("gated_z")
    scores = {}
    for name in (name for name in _SCORES if name not in left_out):
        score = SCORES[name]()
        facts = (swept if score.needs & {"effects", "gate_gradients"} else watched) | {"seed": seed}
        unit = metric.unit if score.unit == "metric" else score.unit
        scores[name] = head_table(score, unit, seen, anatomy, facts)
    pairs = {}
    for name in _PAIRS:
        of = MEASURES[name].sources[0]
        seen_by = {"moments": across or within}
        scope = {"scope": "model" if across else "layer"}
        pairs[name] = pair_table(MEASURES[name](), of, seen_by, (heads_of(cut, of), None), weights, watched | scope)
    intact = float(effects.intact.mean())
    return Evidence(scores, pairs, _stand_ins(layered, weights, cut), layered, weights, intact, observed, left_out)


def watch_moments(model: nn.Module, batches: Sequence[Batch], anatomy: Anatomy) -> dict[int, Moments]:
    """The moments of every layer over some batches."""
    statistic = SummedMoments()
    observe(model, batches, [statistic], anatomy=anatomy.cuttable)
    return {layer: Moments.total(blocks) for layer, blocks in by_layer(statistic.compute()).items()}


def _observe(
    model: nn.Module, batches: Sequence[Batch], anatomy: Anatomy, progress: Progress | None
) -> tuple[Computed, Observed, Computed | None]:
    layered = SummedMoments()
    across = [SummedMoments(scope="model")] if looks_across(anatomy) else []
    observed = observe(model, batches, [layered, *across], anatomy=anatomy, progress=progress)
    crossed: Computed | None = across[0].compute() if across else None
    return layered.compute(), observed, crossed


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
