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

    uniform: the share of all heads, divided by the number of layers and rounded, goes from every layer.
    """

    def choose(self, scores: HeadTable) -> tuple[HeadId, ...]:
        ranked = sorted((score, head) for score, head in zip(scores.score, scores.heads, strict=True) if score == score)
        free = self._free(scores, [head for _, head in ranked])
        quota = self._uniform_quota(scores, free) if self.uniform else free
        total = sum(quota.values()) if self.uniform else _rounded(self.share * len(scores.heads))
        if total > sum(quota.values()):
            raise PlanError(self._out_of_reach(len(scores.heads), sum(quota.values())))
        chosen: list[HeadId] = []
        left = dict(quota)
        for _, head in ranked:
            if len(chosen) < total and left[head.layer] > 0:
                left[head.layer] -= 1
                chosen.append(head)
        return tuple(sorted(chosen))

    def _free(self, scores: HeadTable, scored: list[HeadId]) -> dict[int, int]:
        """For each layer: how many heads it can lose."""
        sizes = _count(scores.heads)
        rated = _count(tuple(scored))
        return {layer: min(rated.get(layer, 0), max(size - self.keep_per_layer, 0)) for layer, size in sizes.items()}

    def _uniform_quota(self, scores: HeadTable, free: Mapping[int, int]) -> dict[int, int]:
        n_heads, n_layers = len(scores.heads), max(len(free), 1)
        each = _rounded(self.share * n_heads / n_layers)
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


def _rounded(number: float) -> int:
    return math.floor(number + 0.5)


def _count(heads: tuple[HeadId, ...]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for head in heads:
        counts[head.layer] = counts.get(head.layer, 0) + 1
    return counts
