"""Trends: what a sweep says of likeness and of quality as heads become more, in a sentence for each."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Float

from headscope.studies.bilingual import NOTHING, Both, joined
from headscope.studies.headcount.shapes import errors_of
from headscope.studies.headcount.telling import ARMS, mean_table
from headscope.uncertainty.intervals import mean_spread

__all__ = ["more_alike", "quality"]

_OPEN = Both("cannot be told", "判断できない")
_QUALITY = {"worse": Both("falls", "下がる"), "as good": Both("does not fall", "下がらない"), "undecided": _OPEN}
_WAYS = (Both("rises", "上がる"), Both("falls", "下がる"), _OPEN)
_LEFT = (Both("more alike", "より似ている"), Both("less alike", "より似ていない"), _OPEN)


def more_alike(runs: pd.DataFrame) -> Both:
    """Whether heads get more alike as their number grows: CKA with the most heads against that with the fewest.

    Args:
        runs: see `headscope.studies.headcount.results.Sweep`; those with a `cka`.
    """
    runs = runs[runs["cka"].notna()]
    told = _by_arm(runs, lambda own: _way(_across(own, "cka"), _WAYS), "it ")
    if not told:
        return NOTHING
    answer = Both(
        "**Do heads get more alike as they become more?** Mean CKA of two heads (1: alike up to rotation and scale), "
        f"from the fewest to the most: {told.en}.",
        "**ヘッドを増やすと互いに似てくるか。** 2個のヘッドの平均CKA(最大1)は、ヘッド数を最少から最多にしたとき、"
        f"次のように変わりました。{told.ja}。",
    )
    smaller = Both(
        "At fixed width heads get smaller as they become more, and CKA of smaller heads is lower for that alone: a "
        "fall does not show that they learn other things.",
        "幅固定ではヘッドを増やすと1個が小さくなり、それだけでもCKAは下がるので、"
        "別々のことを学習するようになったとまでは言えません。",
    )
    if "cka_untrained" not in runs or runs["cka_untrained"].isna().all():
        return joined([answer, smaller])
    sentences = joined([answer, *_before_training(runs), smaller])
    table = mean_table(runs, "cka", lambda mean: f"{mean:.2f}", beside="cka_untrained")
    heading = Both(
        "Mean CKA of two heads, over seeds, by the number of heads; before training in brackets:",
        "2個のヘッドのCKAの平均(列はヘッド数。学習シードの平均で、括弧内は学習前の値。CKAは出力の似ている度合いで、"
        "回転と拡大を除いて同じなら1):",
    )
    return joined([sentences, heading, table], "\n\n", "\n\n")


def _before_training(runs: pd.DataFrame) -> list[Both]:
    """How likeness runs in the same learners before training, and where training leaves it."""
    runs = runs[runs["cka_untrained"].notna()]
    before = _by_arm(runs, lambda own: _way(_across(own, "cka_untrained"), _WAYS), "it ")
    left = _by_arm(runs, lambda own: _way(_at_the_most(own, "cka") - _at_the_most(own, "cka_untrained"), _LEFT))
    return [
        Both(
            f"In the same learners before training: {before.en}.",
            f"同じモデルの学習前の値は、次のように変わります。{before.ja}。",
        ),
        Both(
            f"With the most heads, training leaves heads, beside what they were before it: {left.en}.",
            f"最多のヘッド数で学習前と比べると、学習後のヘッドは次のとおりです。{left.ja}。",
        ),
    ]


def quality(shapes: pd.DataFrame) -> Both:
    """Whether quality fails to rise with more heads: the most heads against the best other number, in either arm.

    Args:
        shapes: see `headscope.studies.headcount.shapes.shapes`.
    """
    every = _by_arm(shapes, lambda own: _QUALITY[str(own["many_is"].iloc[0])], "it ")
    return Both(
        "**Does quality fall with the most heads?** With the most heads in place of the best other number, "
        f"{every.en}. Where it "
        "falls at fixed width, heads are too small (C7); that is not redundancy.",
        "**ヘッド数を最多にすると性能は下がるか。** 最多のヘッド数にすると、"
        f"他のヘッド数のうち最良のものに比べて性能は次のとおりです。{every.ja}。"
        "幅固定で下がるのはヘッドが小さくなりすぎるためで(C7)、冗長性によるものではありません。",
    )


def _by_arm(rows: pd.DataFrame, tell: Callable[[pd.DataFrame], Both], subject: str = "") -> Both:
    """Of either arm, what is told of its tasks: the words, each with the tasks that they are true of.

    English wants a subject before the first.
    """
    told = []
    for arm, where in ARMS.items():
        each: dict[Both, list[str]] = {}
        for task, own in rows[rows["arm"] == arm].groupby("task", sort=False):
            each.setdefault(tell(own), []).append(str(task))
        order = sorted(each, key=lambda words: words == _OPEN)  # what cannot be told comes last
        parts = [
            Both(f"{words.en} ({', '.join(each[words])})", f"{words.ja}({'、'.join(each[words])})") for words in order
        ]
        if parts:
            several = joined(parts, ", ", "、")
            told.append(Both(f"at {where.en} {subject}{several.en}", f"{where.ja}:{several.ja}"))
    return joined(told, "; ", "。")


def _way(change: Float[np.ndarray, " seed"], ways: tuple[Both, Both, Both]) -> Both:
    """Whether a change is above 0 over seeds, below it, or neither is clear."""
    up, down, neither = ways
    if len(change) < 2:
        return neither
    low, high = mean_spread(change, np.arange(len(change))).interval()
    return up if low > 0 else down if high < 0 else neither


def _across(runs: pd.DataFrame, value: str) -> Float[np.ndarray, " seed"]:
    """Of one task and arm: what the most heads have more than the fewest."""
    counts, values = errors_of(runs, value)
    return values[:, -1] - values[:, 0] if len(counts) > 1 else np.empty(0)


def _at_the_most(runs: pd.DataFrame, value: str) -> Float[np.ndarray, " seed"]:
    """Of one task and arm: what the most heads have, by seed."""
    return runs[runs["n_heads"] == runs["n_heads"].max()].sort_values("seed")[value].to_numpy(np.float64)
