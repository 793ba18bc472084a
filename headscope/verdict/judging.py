"""Judging: what was found on some documents is measured again on others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from headscope.effects.metrics import Metric
from headscope.effects.sweep import group_effects
from headscope.heads import HeadId
from headscope.likeness.measures import MEASURES
from headscope.planning.quadrants import Lines
from headscope.sites import Anatomy
from headscope.statistics.moments import Moments
from headscope.statistics.prediction import restored_share
from headscope.tables import PairTable
from headscope.text.batches import Batch
from headscope.uncertainty.intervals import mean_spread
from headscope.verdict.gathering import Evidence, watch_moments
from headscope.verdict.verdicts import Finding, Verdict

__all__ = ["Bench", "judge"]


@dataclass(frozen=True, eq=False)
class Bench:
    """What a verdict is measured on: none of it was used to choose heads.

    Attributes:
        batches: held-out documents; every number is measured on these.
        metric: of effects.
        draws: how many random draws of heads the chosen ones are set against.
        seed: of the draws.
        max_loss_rise: what the chosen heads were allowed to cost together, in the metric's unit.
        text_unit: what a document is, in words.
    """

    batches: Sequence[Batch]
    metric: Metric
    draws: int
    seed: int
    max_loss_rise: float
    text_unit: str


def judge(
    model: nn.Module,
    name: str,
    anatomy: Anatomy,
    evidence: Evidence,
    chosen: Sequence[HeadId],
    lines: Lines,
    bench: Bench,
) -> Verdict:
    """Measure the heads that the evidence points out, on documents that it did not see."""
    top = _extreme(evidence, "ablation")
    groups = [list(chosen), [top], *_random_groups(anatomy, len(chosen), bench)]
    effects = group_effects(model, bench.batches, bench.metric, anatomy, groups)
    means = effects.values.mean(axis=1)
    low, high = mean_spread(effects.values[:1], effects.block).interval()
    moments = watch_moments(model, bench.batches, anatomy)
    return Verdict(
        model=name,
        n_heads=anatomy.n_heads,
        n_layers=len(anatomy.sites),
        chosen=tuple(sorted(chosen)),
        max_loss_rise=bench.max_loss_rise,
        joint=float(means[0]),
        joint_low=float(low[0]),
        joint_high=float(high[0]),
        random=tuple(float(mean) for mean in means[2:]),
        most_needed=Finding(top, float(means[1])),
        most_replaceable=_most_replaceable(anatomy, evidence, moments),
        twins=_twins(anatomy, evidence.pairs["cka"], moments),
        lines=lines,
        metric=bench.metric.name,
        unit=bench.metric.unit,
        intact=float(effects.intact.mean()),
        n_documents=effects.n_documents,
        n_tokens=effects.n_tokens,
        text_unit=bench.text_unit,
    )


def _extreme(evidence: Evidence, score: str) -> HeadId:
    table = evidence.scores[score]
    return table.heads[int(np.nanargmax(table.score))]


def _random_groups(anatomy: Anatomy, size: int, bench: Bench) -> list[list[HeadId]]:
    heads = [head for site in anatomy.sites if site.prunable for head in site.heads]
    generator = torch.Generator().manual_seed(bench.seed)
    drawn = [torch.randperm(len(heads), generator=generator)[:size].tolist() for _ in range(bench.draws)]
    return [[heads[index] for index in draw] for draw in drawn]


def _most_replaceable(anatomy: Anatomy, evidence: Evidence, moments: Mapping[int, Moments]) -> Finding | None:
    head = _extreme(evidence, "replaceability")
    site = anatomy.site(head.layer)
    shares = restored_share(
        Moments.total(evidence.moments[head.layer]), moments[head.layer], evidence.weights[head.layer]
    )
    helper = evidence.stand_ins.get(head)
    return Finding(head, float(shares[site.position(head)]), None if helper is None else helper[0])


def _twins(anatomy: Anatomy, cka: PairTable, moments: Mapping[int, Moments]) -> Finding | None:
    """The most alike two heads of one layer."""
    layers = np.array([head.layer for head in cka.heads])
    pairs = np.where((layers[:, None] == layers[None]) & ~np.eye(len(layers), dtype=bool), cka.matrix, np.nan)
    if np.isnan(pairs).all():
        return None
    a, b = np.unravel_index(int(np.nanargmax(pairs)), pairs.shape)
    first, second = cka.heads[int(a)], cka.heads[int(b)]
    site = anatomy.site(first.layer)
    again = MEASURES["cka"]().compare({"moments": moments[first.layer]})
    return Finding(first, float(again[site.position(first), site.position(second)]), second)
