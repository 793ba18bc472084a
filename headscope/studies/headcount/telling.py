"""Telling what a sweep found: tables in Markdown, and differences in words."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from headscope._support.formatting import MISSING, percent
from headscope.reporting.figures.style import ARM_NAMES
from headscope.studies.bilingual import Both, tables

__all__ = ["ARMS", "BONFERRONI", "amount", "difference", "mean_table"]

ARMS = {name: Both(en, ja) for (name, en), ja in zip(ARM_NAMES.items(), ("幅固定", "head_dim固定"), strict=True)}

BONFERRONI = Both(
    "Intervals in the table hold for all tasks together (95%, Bonferroni), those of the sentence above for its one "
    "number, over the seeds that all tasks have.",
    "表の区間は全タスクについて同時に成り立つ95%区間(ボンフェローニ)です。上の文の区間は、"
    "全タスクに共通するシードによる1つの数値についてのものです。",
)


def difference(row: Mapping[str, Any], end: str) -> str:
    """How much more one end of the numbers of heads errs than the best other: middle, interval and verdict.

    Args:
        row: of `headscope.studies.headcount.shapes.shapes`.
        end: "few" or "many".

    >>> difference({"few": 0.5, "few_low": 0.4, "few_high": 0.6, "few_is": "worse"}, "few")
    '50.0% (40.0% to 60.0%): worse'
    """
    return f"{amount(row, end)}: {row[f'{end}_is']}"


def amount(row: Mapping[str, Any], end: str) -> str:
    """How much more one end of the numbers of heads errs than the best other: middle and interval.

    Args:
        row, end: see `difference`.
    """
    middle, low, high = (percent(row[name]) for name in (end, f"{end}_low", f"{end}_high"))
    return f"{middle} ({low} to {high})"


def mean_table(runs: pd.DataFrame, value: str, words: Callable[[float], str], *, beside: str | None = None) -> Both:
    """Means over seeds in Markdown: a row for each task and arm, a column for each number of heads.

    Args:
        runs: see `headscope.studies.headcount.results.Sweep`.
        value: the column; runs that lack it are left out.
        words: how a mean is written.
        beside: a further column, whose means stand in brackets; nothing does where no run has it.

    >>> runs = pd.DataFrame({"task": "a", "arm": "width", "n_heads": [1, 1, 2], "x": [0.2, 0.4, 0.5]})
    >>> print(mean_table(runs, "x", lambda mean: f"{mean:.1f}").en)
    | task | arm | 1 | 2 |
    | --- | --- | --- | --- |
    | a | fixed width | 0.3 | 0.5 |
    """
    own = runs[runs[value].notna()]
    heads = sorted(own["n_heads"].unique())
    rows: list[list[Both | str]] = []
    for (task, arm), part in own.groupby(["task", "arm"], sort=False):
        means = part.groupby("n_heads")[value].mean().map(words)
        if beside is not None and beside in part and part[beside].notna().any():
            means += part.groupby("n_heads")[beside].mean().map(lambda own: f" ({words(own)})" if own == own else "")
        cells = (means.get(n, MISSING) for n in heads)
        rows.append([str(task), ARMS[str(arm)], *cells])
    return tables([Both("task", "タスク"), Both("arm", "条件"), *(Both(str(n), str(n)) for n in heads)], rows)
