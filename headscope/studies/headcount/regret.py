"""Regret: what one number of heads for every task costs the tasks that another one suits better."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float

from headscope.studies.headcount.shapes import errors_of, learnt, learnt_curves, level_of, more_than_best, told_at
from headscope.uncertainty.intervals import Spread, mean_spread

__all__ = ["least_worst", "regrets", "suited"]

Curves = Mapping[str, Float[np.ndarray, "seed count"]]


def regrets(runs: pd.DataFrame) -> pd.DataFrame:
    """What each number of heads costs each task at fixed width, beside the number that suits the task best.

    Args:
        runs: see `headscope.studies.headcount.shapes.shapes`.

    Returns:
        A row for each number of heads, from low to high, its index; a column for each task on which anything is learnt:
        how much more that number errs than the task's best, a share of what is learnt over chance, the mean over all
        seeds of the task. Which number is the best is chosen, for each seed, by the other seeds; chosen by its own
        errors it would look better than it is, and every number would cost something.

    Raises:
        InputError: on no task anything was learnt.
    """
    curves = learnt_curves(runs, "width", shared=False)
    heads = sorted(runs.loc[runs["arm"] == "width", "n_heads"].unique())
    costs = {task: (errors - _own_best(errors)[:, None]).mean(0) for task, errors in curves.items()}
    return pd.DataFrame(costs, index=pd.Index([int(n) for n in heads], name="n_heads"))


def least_worst(runs: pd.DataFrame) -> tuple[int, str, Spread]:
    """The number of heads that costs least on the task that it suits worst, that task, and what it costs there.

    For each seed, the number, the task and the task's own best number are chosen by the other seeds alone: where one
    number is the best for all tasks, nothing is lost on average.

    Args:
        runs: see `regrets`.

    Returns:
        The number and the task, by all seeds; and the cost, a share of what is learnt over chance, over the seeds that
        all tasks have.

    Raises:
        InputError: on no task anything was learnt.
    """
    found = regrets(runs)
    best = int(found.max(axis=1).idxmin())
    curves = learnt_curves(runs, "width", shared=True)
    seeds = len(next(iter(curves.values())))
    lost = np.array([_lost(curves, seed) for seed in range(seeds)])
    return best, str(found.loc[best].idxmax()), mean_spread(lost, np.arange(seeds))


def suited(runs: pd.DataFrame, n_heads: int) -> dict[str, str]:
    """Whether a number of heads errs more than the best of the others at fixed width, by task.

    Args:
        runs: see `regrets`.
        n_heads: the number.

    Returns:
        "worse", "as good" or "undecided", see `headscope.studies.headcount.shapes.shapes`; intervals are 95% for all
        tasks together.
    """
    own = runs[runs["arm"] == "width"]
    found = {}
    for task, part in own.groupby("task", sort=False):
        heads, errors = errors_of(part)
        found[str(task)] = told_at(more_than_best(errors, heads.index(n_heads)) / learnt(part), level_of(own))
    return found


def _lost(curves: Curves, seed: int) -> float:
    """What one seed loses on the task, and with the number, that the others choose."""
    others = {task: np.delete(errors, seed, axis=0).mean(0) for task, errors in curves.items()}
    costs = np.array([means - means.min() for means in others.values()])
    chosen = int(costs.max(0).argmin())
    task = list(others)[int(costs[:, chosen].argmax())]
    own = curves[task][seed]
    return float(own[chosen] - own[int(others[task].argmin())])


def _own_best(errors: Float[np.ndarray, "seed count"]) -> Float[np.ndarray, " seed"]:
    """Each seed's error with the number of heads that is best by the other seeds."""
    return np.asarray(errors[np.arange(len(errors)), (errors.sum(0) - errors).argmin(1)])
