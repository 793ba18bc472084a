"""Trends: what a sweep says of likeness and of quality as heads become more, in a sentence for each."""

import numpy as np
import pandas as pd

from headscope.studies.bilingual import NOTHING, Both, joined
from headscope.studies.headcount.shapes import errors_of
from headscope.studies.headcount.telling import ARMS
from headscope.uncertainty.intervals import mean_spread

__all__ = ["more_alike", "quality"]

_QUALITY = {
    "worse": Both("falls", "下がる"),
    "as good": Both("does not fall", "下がらない"),
    "undecided": Both("cannot be told", "判断できない"),
}
_WAYS = {"rises": "上がる", "falls": "下がる", "cannot be told": "どちらとも言えない"}


def more_alike(runs: pd.DataFrame) -> Both:
    """Whether heads get more alike as their number grows: CKA with the most heads against that with the fewest.

    Args:
        runs: see `headscope.studies.headcount.results.Sweep`; those with a `cka`.
    """
    told = []
    for arm, where in ARMS.items():
        found = {str(task): _trend(own) for task, own in runs[runs["arm"] == arm].groupby("task", sort=False)}
        each = {way: [task for task, trend in found.items() if trend == way] for way in _WAYS}
        parts = [
            Both(f"{way} ({', '.join(own)})", f"{_WAYS[way]}({'、'.join(own)})") for way, own in each.items() if own
        ]
        if parts:
            several = joined(parts, ", ", "、")
            told.append(Both(f"at {where.en} it {several.en}", f"{where.ja}:{several.ja}"))
    if not told:
        return NOTHING
    several = joined(told, "; ", "。")
    return Both(
        "**Do heads get more alike as they become more?** Mean CKA of two heads (1: alike up to rotation and scale), "
        f"from the fewest to the most: {several.en}. At fixed width heads get smaller as they become more, and CKA of "
        "smaller heads is lower for that alone: a fall does not show that they learn other things.",
        "**ヘッドを増やすと互いに似てくるか。** 2個のヘッドの平均CKA(最大1)は、ヘッド数を最少から最多にしたとき、"
        f"次のように変わりました。{several.ja}。幅固定ではヘッドを増やすと1個が小さくなり、"
        "それだけでもCKAは下がるので、別々のことを学習するようになったとまでは言えません。",
    )


def quality(shapes: pd.DataFrame) -> Both:
    """Whether quality fails to rise with more heads: the most heads against the best other number, in either arm.

    Args:
        shapes: see `headscope.studies.headcount.shapes.shapes`.
    """
    told = []
    for arm, where in ARMS.items():
        own = shapes[shapes["arm"] == arm]
        each = {way: own.loc[own["many_is"] == is_so, "task"].tolist() for is_so, way in _QUALITY.items()}
        parts = [
            Both(f"{way.en} ({', '.join(tasks)})", f"{way.ja}({'、'.join(tasks)})")
            for way, tasks in each.items()
            if tasks
        ]
        if parts:
            several = joined(parts, ", ", "、")
            told.append(Both(f"at {where.en} it {several.en}", f"{where.ja}:{several.ja}"))
    every = joined(told, "; ", "。")
    return Both(
        f"**Does quality fail to rise?** With the most heads in place of the best other number, {every.en}. Where it "
        "falls at fixed width, heads are too small (C7); that is not redundancy.",
        "**性能が上がらないことはあるか。** 最多のヘッド数にすると、"
        f"他のヘッド数のうち最良のものに比べて性能は次のとおりです。{every.ja}。"
        "幅固定で下がるのはヘッドが小さくなりすぎるためで(C7)、冗長性によるものではありません。",
    )


def _trend(runs: pd.DataFrame) -> str:
    """Of one task and arm: from the fewest heads that can be compared to the most, over seeds."""
    _, values = errors_of(runs[runs["cka"].notna()], "cka")
    if values.shape[1] < 2:
        return "cannot be told"
    low, high = mean_spread(values[:, -1] - values[:, 0], np.arange(len(values))).interval()
    return "rises" if low > 0 else "falls" if high < 0 else "cannot be told"
