"""Shapes: does error fall, rise or stay as heads become more? With intervals over seeds."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from headscope.errors import InputError
from headscope.uncertainty.intervals import LEVEL, Spread, mean_spread

__all__ = [
    "MARGIN",
    "against_best",
    "errors_of",
    "falls",
    "learnt",
    "learnt_curves",
    "level_of",
    "more_than_best",
    "most_against_one",
    "pooled",
    "shapes",
    "sized",
    "told_at",
]

MARGIN = 0.01  # of what is learnt over chance: less than that is no difference


def shapes(runs: pd.DataFrame) -> pd.DataFrame:
    """How error runs with the number of heads.

    Args:
        runs: see `headscope.studies.headcount.results.Sweep`.

    Returns:
        A row for each task and arm: task, arm, seeds; best, the number of heads with the smallest mean error, and
        best_error; good, all numbers within MARGIN of it; few and many: how much more the fewest and the most heads err
        than the best of the other numbers, as a share of what the best learns over chance, with few_low, few_high,
        many_low, many_high (intervals over seeds, 95% for all tasks of the arm together: Bonferroni's), and in words
        few_is and many_is: "worse" (the interval is above 0 and its middle above MARGIN), "as good" (the interval ends
        below MARGIN), else "undecided". NaN and "undecided" where nothing was learnt.
    """
    rows = []
    level = level_of(runs)
    for (task, arm), own in runs.groupby(["task", "arm"], sort=False):
        heads, errors = errors_of(own)
        means = errors.mean(0)
        best = int(means.argmin())
        span = learnt(own)
        good = [str(n) for n, mean in zip(heads, means, strict=True) if mean - means[best] <= MARGIN * span]
        row: dict[str, Any] = {
            "task": task, "arm": arm, "seeds": len(errors), "best": heads[best], "best_error": means[best],
            "unit": own["unit"].iloc[0], "good": " ".join(good),
        }  # fmt: skip
        for name, place in (("few", 0), ("many", -1)):
            row |= _row(name, against_best(errors, place), span, level)
        rows.append(row)
    return pd.DataFrame(rows)


def level_of(runs: pd.DataFrame, each: int = 1) -> float:
    """Of intervals that are to hold for all tasks together at 95%: Bonferroni's.

    Args:
        runs: see `shapes`.
        each: comparisons for each task.
    """
    return 1 - (1 - LEVEL) / max(runs["task"].nunique() * each, 1)


def most_against_one(runs: pd.DataFrame) -> dict[str, str]:
    """Whether the most heads err more than the fewest, by task: "worse", "as good" or "undecided".

    Args:
        runs: see `shapes`; one arm.
    """
    level, found = level_of(runs), {}
    for task, own in runs.groupby("task", sort=False):
        errors = errors_of(own)[1]
        found[str(task)] = told_at((errors[:, -1] - errors[:, 0]) / learnt(own), level)
    return found


def errors_of(runs: pd.DataFrame, value: str = "error") -> tuple[list[int], Float[np.ndarray, "seed count"]]:
    """Numbers of heads, and a value of the runs of one task and arm, a row a seed that has all of them."""
    table = runs.pivot(index="seed", columns="n_heads", values=value).dropna()
    return [int(n) for n in table.columns], table.to_numpy(np.float64)


def learnt(runs: pd.DataFrame) -> float:
    """How far below chance the best number of heads errs, in the task's unit: what differences are shares of.

    Args:
        runs: of one task and arm.

    Returns:
        NaN where it does no better than chance: a share of nothing says nothing.
    """
    span = float(runs["chance"].iloc[0] - errors_of(runs)[1].mean(0).min())
    return span if span > 0 else float("nan")


def against_best(errors: Float[np.ndarray, "seed count"], place: int) -> Spread:
    """How much more one number of heads errs than the best of the others, over seeds; negative where it is the best.

    Which is the best is chosen, for each seed, by the other seeds alone: chosen by its own errors it would look better
    than it is, and what it is held against worse.

    Args:
        errors: of each seed at each number of heads, at least 2 seeds.
        place: of the number of heads.

    >>> errors = np.array([[0.5, 0.1, 0.3], [0.4, 0.1, 0.4], [0.6, 0.2, 0.2]])
    >>> low, high = against_best(errors, 0).interval()
    >>> print(f"{low:.3f} {high:.3f}")
    0.223 0.510
    """
    return mean_spread(more_than_best(errors, place), np.arange(len(errors)))


def more_than_best(errors: Float[np.ndarray, "seed count"], place: int) -> Float[np.ndarray, " seed"]:
    """How much more one number of heads errs than the best of the others, seed by seed; see `against_best`."""
    others = errors.sum(0) - errors
    others[:, place] = np.inf
    return errors[:, place] - errors[np.arange(len(errors)), others.argmin(1)]


def pooled(runs: pd.DataFrame, arm: str, place: int) -> Spread:
    """`against_best` as a share of what is learnt over chance, the mean over kinds of task, over seeds.

    Kinds count equally, maps of several lengths as one kind.

    Args:
        runs: see `shapes`.
        arm: "width" or "head_dim".
        place: of the number of heads.

    Raises:
        InputError: on no task anything was learnt.
    """
    curves = learnt_curves(runs, arm, shared=True)
    return mean_spread(
        _over_kinds({label: more_than_best(errors, place) for label, errors in curves.items()}), _seeds(curves)
    )


def falls(runs: pd.DataFrame) -> pd.DataFrame:
    """At which size of a head error begins to rise because heads are small.

    It does at a number of heads above the best if, at fixed width, they err more than the best of the other numbers
    ("worse", see `shapes`), and more so than as many heads of fixed size: by the same rule, asked of the difference
    between the arms, seed by seed. Intervals are 95% for all tasks and numbers of heads together (Bonferroni's).

    Args:
        runs: see `shapes`; both arms.

    Returns:
        A row for each task: task, seeds; is, "falls" where it does at any number of heads, "as good" where at fixed
        width the most heads are as good as the best, or lose no more than as many of fixed size, else "undecided";
        heads and head_dim, the fewest heads at which it falls and their size; error and error_fixed, the mean errors of
        so many heads in either arm as shares of chance. NaN where it does not fall.
    """
    rows = []
    level = level_of(runs, runs["n_heads"].nunique())
    for task, own in runs.groupby("task", sort=False):
        shared, fixed = (own[own["arm"] == arm] for arm in ("width", "head_dim"))
        (heads, errors), (_, beside) = errors_of(shared), errors_of(fixed)
        words: list[set[str]] = []  # of each number of heads: the two comparisons'
        for place in range(len(heads)):
            more = more_than_best(errors, place) / learnt(shared)
            words.append(
                {told_at(values, level) for values in (more, more - more_than_best(beside, place) / learnt(fixed))}
            )
        best = heads[int(errors.mean(0).argmin())]
        fallen = [n for n, told in zip(heads, words, strict=True) if n > best and told == {"worse"}]
        found = dict.fromkeys(("heads", "head_dim", "error", "error_fixed"), np.nan)
        if fallen:
            place, chance = heads.index(fallen[0]), float(shared["chance"].iloc[0])
            size = float(shared.loc[shared["n_heads"] == fallen[0], "head_dim"].iloc[0])
            means = errors.mean(0)[place] / chance, beside.mean(0)[place] / chance
            found = dict(zip(found, (fallen[0], size, *means), strict=True))
        told = "falls" if fallen else "as good" if "as good" in words[-1] else "undecided"
        rows.append({"task": task, "seeds": len(errors), "is": told, **found})
    return pd.DataFrame(rows)


def learnt_curves(runs: pd.DataFrame, arm: str, *, shared: bool) -> dict[str, Float[np.ndarray, "seed count"]]:
    """Errors of each task of an arm as shares of what is learnt over chance, a row a seed; without tasks not learnt.

    Args:
        runs: see `shapes`.
        arm: "width" or "head_dim".
        shared: only as many seeds of each task as all of them have, as what is said of several tasks together takes.

    Raises:
        InputError: on no task anything was learnt.
    """
    found = {}
    for label, own in runs[runs["arm"] == arm].groupby("task", sort=False):
        span = learnt(own)
        if span > 0:
            found[str(label)] = errors_of(own)[1] / span
    if not found:
        raise InputError("on no task any number of heads did better than chance, so that there is nothing to compare")
    seeds = min(len(errors) for errors in found.values()) if shared else None
    return {label: errors[:seeds] for label, errors in found.items()}


def sized(low: float, middle: float, high: float, margin: float = MARGIN) -> str:
    """Whether a difference, higher = worse, is one: "worse", "as good" or "undecided"."""
    if low > 0 and middle > margin:
        return "worse"
    return "as good" if high < margin else "undecided"


def told_at(values: Float[np.ndarray, " seed"], level: float) -> str:
    """Whether a difference of each seed, higher = worse, is one: as `sized`, by an interval of that level."""
    spread = mean_spread(values, np.arange(len(values)))
    low, high = (float(end) for end in spread.interval(level))
    return sized(low, float(spread.centre), high)


def _row(name: str, spread: Spread, span: float, level: float) -> dict[str, Any]:
    low, high = (float(end) / span for end in spread.interval(level))
    middle = float(spread.centre) / span
    return {name: middle, f"{name}_low": low, f"{name}_high": high, f"{name}_is": sized(low, middle, high)}


def _over_kinds(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """The mean over tasks, maps of several lengths counting as one."""
    kinds: dict[str, list[np.ndarray]] = {}
    for label, own in values.items():
        kinds.setdefault(label.partition("-")[0], []).append(own)
    return np.asarray(np.mean([np.mean(own, axis=0) for own in kinds.values()], axis=0))


def _seeds(curves: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.arange(len(next(iter(curves.values()))))
