"""Trends: what a sweep says of likeness and of quality as heads become more, in a sentence for each."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from headscope.studies.bilingual import NOTHING, Both, joined
from headscope.studies.headcount.shapes import errors_of
from headscope.uncertainty.intervals import mean_spread

__all__ = ["more_alike", "quality"]

_WAYS = {"rises": "上がる", "falls": "下がる", "cannot be told": "どちらとも言えない"}


def more_alike(runs: pd.DataFrame) -> Both:
    """Whether heads get more alike as their number grows: CKA with the most heads against that with the fewest.

    Args:
        runs: see `headscope.studies.headcount.results.Sweep`; those with a `cka`.
    """
    told = []
    arms = {"width": Both("at fixed width", "幅を固定"), "head_dim": Both("at fixed head_dim", "head_dimを固定")}
    for arm, where in arms.items():
        found = {str(task): _trend(own) for task, own in runs[runs["arm"] == arm].groupby("task", sort=False)}
        each = {way: [task for task, trend in found.items() if trend == way] for way in _WAYS}
        parts = [
            Both(f"{way} ({', '.join(own)})", f"{_WAYS[way]}({'、'.join(own)})") for way, own in each.items() if own
        ]
        if parts:
            several = joined(parts, ", ", "、")
            told.append(Both(f"{where.en} it {several.en}", f"{where.ja}すると{several.ja}"))
    if not told:
        return NOTHING
    several = joined(told, "; ", "、")
    return Both(
        f"**Do heads get more alike as they become more?** Mean CKA of two heads, from the fewest to the most: "
        f"{several.en}.",
        "**ヘッドを増やすと互いに似てくるか。** 2ヘッド間の平均CKAは、ヘッド数を最少から最多にしたとき、"
        f"{several.ja}。",
    )


def quality(shapes: pd.DataFrame) -> Both:
    """Whether quality fails to rise with more heads: the most heads against the best other number, at fixed width.

    Args:
        shapes: see `headscope.studies.headcount.shapes.shapes`.
    """
    own = shapes[shapes["arm"] == "width"]
    words = {"worse": Both("falls", "下がる"), "as good": Both("stays", "変わらない"),
             "undecided": Both("cannot be told", "判断できない")}  # fmt: skip
    parts = []
    for is_so, way in words.items():
        tasks: Sequence[str] = own.loc[own["many_is"] == is_so, "task"].tolist()
        if tasks:
            parts.append(Both(f"{way.en} ({', '.join(tasks)})", f"{way.ja}({'、'.join(tasks)})"))
    several = joined(parts, ", ", "、")
    return Both(
        "**Does quality fail to rise?** With the most heads in place of the best other number, at fixed width, "
        "quality "
        f"{several.en}.",
        "**性能が上がらないことはあるか。** 幅を固定して最多のヘッド数にすると、"
        f"他の最良のヘッド数に比べて性能は{several.ja}。",
    )


def _trend(runs: pd.DataFrame) -> str:
    """Of one task and arm: from the fewest heads that can be compared to the most, over seeds."""
    _, values = errors_of(runs[runs["cka"].notna()], "cka")
    if values.shape[1] < 2:
        return "cannot be told"
    low, high = mean_spread(values[:, -1] - values[:, 0], np.arange(len(values))).interval()
    return "rises" if low > 0 else "falls" if high < 0 else "cannot be told"
