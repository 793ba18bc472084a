"""Planner: the heads with the lowest scores, up to a share of all heads."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from headscope.errors import PlanError
from headscope.heads import HeadId
from headscope.planning.planner import PLANNERS, Planner
from headscope.tables import HeadTable

__all__ = ["Share"]


@PLANNERS.register("share")
@dataclass(frozen=True, kw_only=True)
class Share(Planner):
    """Lowest scores first; equal scores in the order of head ids; a head without a score (NaN) is never removed.

    uniform: the share of all heads, divided by the number of layers and rounded, goes from every layer; where query
    heads share key heads, as many of those of each key head, so that the layer stays even.
    """

    def choose(self, scores: HeadTable) -> tuple[HeadId, ...]:
        ranked = sorted((score, head) for score, head in zip(scores.score, scores.heads, strict=True) if score == score)
        free = self._free(scores, [head for _, head in ranked])
        quota = self._uniform_quota(scores, free) if self.uniform else free
        total = sum(quota.values()) if self.uniform else _rounded(self.share * len(scores.heads))
        if total > sum(quota.values()):
            raise PlanError(self._out_of_reach(len(scores.heads), sum(quota.values())))
        key_head = _key_heads(scores) if self.uniform else {}
        many = {layer: len({key_head.get(head, 0) for head in heads}) for layer, heads in _by_layer(scores).items()}
        left: dict[tuple[int, int], int] = {}
        chosen: list[HeadId] = []
        for _, head in ranked:
            place = head.layer, key_head.get(head, 0)
            if len(chosen) < total and left.setdefault(place, quota[head.layer] // many[head.layer]) > 0:
                left[place] -= 1
                chosen.append(head)
        if self.uniform and len(chosen) < total:
            raise PlanError("uniform: some key head is read by fewer heads with a score than were to go from each")
        return tuple(sorted(chosen))

    def _free(self, scores: HeadTable, scored: list[HeadId]) -> dict[int, int]:
        """For each layer: how many heads it can lose."""
        sizes = _count(scores.heads)
        rated = _count(tuple(scored))
        return {layer: min(rated.get(layer, 0), max(size - self.keep_per_layer, 0)) for layer, size in sizes.items()}

    def _uniform_quota(self, scores: HeadTable, free: Mapping[int, int]) -> dict[int, int]:
        n_heads, n_layers, key_head = len(scores.heads), max(len(free), 1), _key_heads(scores)
        many = math.lcm(*(len({key_head.get(head, 0) for head in heads}) for heads in _by_layer(scores).values()))
        each = many * _rounded(self.share * n_heads / n_layers / many)
        if many > 1 and self.share and not each:
            raise PlanError(
                f"share={self.share} is less than one query head of each key head; uniform takes as many of each, so "
                f"give at least {math.ceil(n_layers * many / n_heads * 5_000) / 10_000:g}"
            )
        tight = min(free, key=lambda layer: free[layer], default=None)
        if tight is not None and each > free[tight]:
            raise PlanError(
                self._out_of_reach(n_heads, free[tight] * n_layers)
                + f" (uniform: {each} heads from each layer, and layer {tight} can lose {free[tight]})"
            )
        return dict.fromkeys(free, each)

    def _out_of_reach(self, n_heads: int, most: int) -> str:
        largest = math.floor(most / max(n_heads, 1) * 10_000) / 10_000
        return (
            f"share={self.share} cannot be reached: with {self.keep_per_layer} heads kept in each layer, and heads "
            f"without a score kept, {most} of {n_heads} heads can go; the largest share possible is {largest:g}"
        )


def _by_layer(scores: HeadTable) -> dict[int, list[HeadId]]:
    heads: dict[int, list[HeadId]] = {}
    for head in scores.heads:
        heads.setdefault(head.layer, []).append(head)
    return heads


def _key_heads(scores: HeadTable) -> dict[HeadId, int]:
    """The key head of each query head, in layers in which several share one."""
    shared = scores.facts.get("key_heads", {})
    layers = ((heads, shared.get(str(layer), [])) for layer, heads in _by_layer(scores).items())
    return {
        head: own for heads, read in layers if len(read) == len(heads) for head, own in zip(heads, read, strict=True)
    }


def _rounded(number: float) -> int:
    return math.floor(number + 0.5)


def _count(heads: tuple[HeadId, ...]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for head in heads:
        counts[head.layer] = counts.get(head.layer, 0) + 1
    return counts
