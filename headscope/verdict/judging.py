"""Judging: what was found on some documents is measured again on others."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from headscope._support.progress import Progress, called
from headscope.effects.metrics import Metric
from headscope.effects.sweep import Effects, group_effects
from headscope.heads import HeadId
from headscope.likeness.measures import MEASURES
from headscope.planning.choosing import random_sets, stability
from headscope.planning.quadrants import draw_lines
from headscope.planning.removal import Removal
from headscope.sites import Anatomy
from headscope.statistics.moments import Moments
from headscope.statistics.prediction import fit_stand_ins, judge_stand_ins
from headscope.text.batches import Batch
from headscope.uncertainty.intervals import Spread, jackknife, mean_spread
from headscope.verdict.gathering import Evidence, watch_moments
from headscope.verdict.verdicts import Finding, Verdict

__all__ = ["Bench", "judge"]


@dataclass(frozen=True, eq=False)
class Bench:
    """What a verdict is measured on: none of it was used to choose heads.

    Attributes:
        batches: held-out documents; every number is measured on these.
        metric: of effects.
        random_sets: how many random sets of heads the chosen ones are set against, where there are so many.
        seed: of their draw.
        text_unit: what a document is, in words.
    """

    batches: Sequence[Batch]
    metric: Metric
    random_sets: int
    seed: int
    text_unit: str


def judge(
    model: nn.Module,
    name: str,
    anatomy: Anatomy,
    evidence: Evidence,
    removal: Removal,
    bench: Bench,
    progress: Progress | None = None,
) -> tuple[Verdict, Removal]:
    """Measure the heads that the evidence points out, on documents that it did not see.

    Returns:
        The verdict, and the removal with what each number of heads costs here.
    """
    chosen = removal.chosen
    top, sizes = _extreme(evidence, "ablation"), removal.sizes
    drawn = random_sets(anatomy, chosen, bench.random_sets, bench.seed)
    groups = [*map(removal.first, sizes), (top,), *drawn]
    effects = group_effects(model, bench.batches, bench.metric, anatomy, groups, progress=called("verdict", progress))
    removal = removal.judged(effects.only(range(len(sizes))))
    joint = removal.cost(len(chosen))
    moments = watch_moments(model, bench.batches, anatomy) if evidence.moments else {}
    replaced, constant = _most_replaceable(anatomy, evidence, moments)
    verdict = Verdict(
        model=name,
        n_heads=anatomy.n_heads,
        n_layers=len(anatomy.sites),
        chosen=tuple(sorted(chosen)),
        max_loss_rise=removal.budget or 0.0,
        joint=joint.value,
        joint_low=joint.low,
        joint_high=joint.high,
        random=tuple(cost for cost in effects.values[len(sizes) + 1 :].mean(axis=1).tolist() if math.isfinite(cost)),
        stability=stability(evidence.effects, len(chosen)),
        cheapest=_effect(effects, sizes.index(1), removal.order[0]),
        most_needed=_effect(effects, len(sizes), top),
        most_replaceable=replaced,
        its_constant=constant,
        twins=_twins(anatomy, evidence, moments),
        lines=draw_lines(evidence.scores["ablation"].score),
        metric=bench.metric.name,
        unit=bench.metric.unit,
        intact=float(effects.intact.mean()),
        n_documents=effects.n_documents,
        n_tokens=effects.n_tokens,
        text_unit=bench.text_unit,
    )
    return verdict, removal


def _effect(effects: Effects, place: int, head: HeadId) -> Finding:
    return _finding(mean_spread(effects.values[place : place + 1], effects.block), 0, head)


def _finding(spread: Spread, place: int, head: HeadId, other: HeadId | None = None) -> Finding:
    low, high = spread.interval()
    return Finding(head, float(spread.centre[place]), float(low[place]), float(high[place]), other)


def _extreme(evidence: Evidence, score: str) -> HeadId:
    table = evidence.scores[score]
    return table.heads[int(np.nanargmax(table.score))]


def _again(blocks: Sequence[Moments], estimate: Callable[[Moments], float]) -> Spread:
    """A number of one layer, over blocks of documents that chose nothing."""
    tokens = [int(block.n) for block in blocks]
    return jackknife(lambda left: np.array([estimate(Moments.total(left))]), blocks, tokens)


def _most_replaceable(
    anatomy: Anatomy, evidence: Evidence, moments: Mapping[int, Sequence[Moments]]
) -> tuple[Finding | None, float]:
    """The head that the others give most of, and the share of it that a constant gives."""
    table = evidence.scores.get("replaceability")
    if table is None or np.isnan(table.score).all():
        return None, math.nan
    head = _extreme(evidence, "replaceability")
    place, weights = anatomy.site(head.layer).position(head), evidence.weights[head.layer]
    stand_ins = fit_stand_ins(Moments.total(evidence.moments[head.layer]))

    def shares(seen: Moments) -> tuple[float, float]:
        given, constant, _ = judge_stand_ins(stand_ins, seen, weights).shares()[:, place]
        return given, constant

    spread = _again(moments[head.layer], lambda seen: shares(seen)[0])
    helper = evidence.stand_ins.get(head)
    found = _finding(spread, 0, head, None if helper is None else helper[0])
    return found, shares(Moments.total(moments[head.layer]))[1]


def _twins(anatomy: Anatomy, evidence: Evidence, moments: Mapping[int, Sequence[Moments]]) -> Finding | None:
    """The most alike two heads of one layer."""
    cka = evidence.pairs.get("cka")
    if cka is None:
        return None
    layers = np.array([head.layer for head in cka.heads])
    pairs = np.where((layers[:, None] == layers[None]) & ~np.eye(len(layers), dtype=bool), cka.matrix, np.nan)
    if np.isnan(pairs).all():
        return None
    a, b = np.unravel_index(int(np.nanargmax(pairs)), pairs.shape)
    first, second = cka.heads[int(a)], cka.heads[int(b)]
    site = anatomy.site(first.layer)
    place, other = site.position(first), site.position(second)

    def alike(seen: Moments) -> float:
        return float(MEASURES["cka"]().compare({"moments": seen})[place, other])

    return _finding(_again(moments[first.layer], alike), 0, first, second)
