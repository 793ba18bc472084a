"""What is measured of one training run, beside how well it did: with headscope's own public calls."""

import time
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headscope.anatomy import discover
from headscope.effects.ablation import ablate
from headscope.heads import HeadId
from headscope.likeness.comparing import similarity
from headscope.scoring.rating import importance
from headscope.sites import Anatomy
from headscope.studies.costs import count_flops, peak_bytes
from headscope.studies.headcount.settings import Case
from headscope.studies.tasks import Task, inputs
from headscope.studies.training import fresh, judge, train
from headscope.surplus.effective import effective_rank
from headscope.surplus.layers import redundancy
from headscope.text.batches import Batch

__all__ = ["ALLOWED", "MEASURED", "is_whole", "measure", "run_case"]

ALLOWED = 0.01  # of what was learnt over chance, that heads removed may cost
MEASURED = {
    "score_rank": "rank of the scores q·k of a row, mean over rows, heads and layers",
    "score_rank_effective": "their effective rank: exp of the entropy of their singular values",
    "effective_heads": "effective number of heads of a layer, mean over layers",
    "effective_heads_untrained": "the same of that learner before its training",
    "cka": "CKA of two heads of a layer, mean over pairs and layers",
    "cka_untrained": "the same of that learner before its training",
    "removable": "share of heads that can be removed together at ≤ 1% of what was learnt over chance",
    "parameters": "numbers in the learner",
    "flops": "operations of one training step",
    "memory": "most bytes of tensors alive at once in one training step, weights and Adam's state with them",
    "seconds": "processor time of one training step, one thread, the least of a few",
}
_LIKENESS = ("effective_heads", "cka")  # that untrained learners are asked for too
_CUTS = 16  # sizes of removal that are tried at the most
_TIMED = 5  # steps; the least counts
_ORDER_BATCHES = 2  # that the order of removal is measured on


def run_case(task: Task, case: Case, found: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Train one learner and measure it.

    Args:
        task: the case's.
        case: what to train.
        found: what an earlier version found of the same run; what it lacks is added, which takes no training.

    Returns:
        loss and error; unless it is there for tuning, all of MEASURED and removal: [share removed, error] for
        each size of removal. JSON values; None where there is nothing to measure.
    """
    if found is not None:
        return {**found, **_before(task, case)}
    steps = max(2, round(case.share * task.steps))
    trained = train(task, case.n_heads, case.head_dim, case.learning_rate, case.seed, steps, tuning=case.tuning)
    told: dict[str, Any] = {"loss": trained.loss, "error": trained.error}
    if case.tuning:
        return told
    return told | measure(task, case, trained.learner, trained.error) | _before(task, case)


def is_whole(case: Case, found: Mapping[str, Any]) -> bool:
    """Whether everything was found of a run that today's version looks for.

    Args:
        case: the run.
        found: see `run_case`.
    """
    return case.tuning or {*MEASURED} <= {*found}


def measure(task: Task, case: Case, learner: nn.Module, error: float) -> dict[str, Any]:
    """All of MEASURED that a trained learner tells, and the removal of heads.

    Args:
        task, case: what was trained.
        learner: the result.
        error: what it reached.
    """
    with torch.random.fork_rng(devices=[]):
        found: dict[str, Any] = {**_ranks(task.scores(learner)), **_costs(task, case)}
    found["parameters"] = sum(parameter.numel() for parameter in learner.parameters())
    if not task.whole:
        return found | dict.fromkeys((*_LIKENESS, "removable", "removal"))
    held_out = [inputs(batch) for batch in task.held_out()]
    anatomy = discover(learner, held_out[0])
    curve = _remove(task, learner, anatomy, error)
    most = error + ALLOWED * (task.chance - error)
    fitting = next((n for n, (_, after) in enumerate(curve) if after > most), len(curve))
    return found | {
        **_likeness(learner, held_out, anatomy),
        "removable": curve[fitting - 1][0] if fitting else 0.0,
        "removal": curve,
    }


def _before(task: Task, case: Case) -> dict[str, float | None]:
    """What is to be told of the learner that training began with."""
    names = {name: f"{name}_untrained" for name in _LIKENESS}
    if not task.whole:
        return dict.fromkeys(names.values())
    held_out = [inputs(batch) for batch in task.held_out()]
    learner = fresh(task, case.n_heads, case.head_dim, case.seed).eval()
    found = _likeness(learner, held_out, discover(learner, held_out[0]))
    return {names[name]: value for name, value in found.items()}


def _likeness(learner: nn.Module, held_out: Sequence[Batch], anatomy: Anatomy) -> dict[str, float | None]:
    """How alike the heads of a layer are; None where no layer has two."""
    values = similarity(learner, held_out, "cka", anatomy=anatomy).matrix
    apart = values[np.triu(np.ones(values.shape, dtype=bool), 1)]
    return {
        "effective_heads": _number(redundancy(learner, held_out, anatomy=anatomy).effective, "effective"),
        "cka": float(np.nanmean(apart)) if np.isfinite(apart).any() else None,
    }


def _ranks(scores: Sequence[Tensor]) -> dict[str, float]:
    every = torch.cat([layer.flatten(0, 1) for layer in scores]).double()
    ranks = torch.linalg.matrix_rank(every, rtol=1e-5).double()  # of float32 products
    effective = [effective_rank(row) for row in torch.linalg.svdvals(every).numpy()]
    return {"score_rank": float(ranks.mean()), "score_rank_effective": float(np.mean(effective))}


def _costs(task: Task, case: Case) -> dict[str, float]:
    batch = next(iter(islice(task.batches(case.seed), 1)))

    def steps(number: int) -> list[float]:
        learner = task.learner(case.n_heads, case.head_dim)
        optimiser = torch.optim.AdamW(learner.parameters())
        taken = []
        for _ in range(number):
            start = time.process_time()  # unlike the clock's, the same whatever else the machine does
            optimiser.zero_grad()
            task.loss(learner(**inputs(batch)), batch).mean().backward()
            optimiser.step()
            taken.append(time.process_time() - start)
        return taken

    # two steps: Adam's state is there from the second on
    return {
        "flops": count_flops(lambda: steps(2)) // 2,
        "memory": peak_bytes(lambda: steps(2)),
        "seconds": min(steps(_TIMED)),
    }


def _remove(task: Task, learner: nn.Module, anatomy: Anatomy, error: float) -> list[tuple[float, float]]:
    """(share of heads removed, error), the least important first, chosen on other rows than the error is of."""

    def worth(output: Any, batch: Batch) -> Tensor:
        return task.loss(output, batch)

    some = [inputs(batch) for batch in task.held_out(tuning=True)[:_ORDER_BATCHES]]
    table = importance(learner, some, "ablation", worth, anatomy=anatomy)
    order: list[HeadId] = [table.heads[place] for place in np.argsort(table.score, kind="stable")]
    sizes = sorted({round(part * len(order) / _CUTS) for part in range(1, _CUTS + 1)} - {0})
    curve = []
    for size in sizes:
        with ablate(learner, order[:size], anatomy=anatomy):
            curve.append((size / len(order), judge(task, learner, task.held_out())[1]))
    return curve


def _number(frame: Any, column: str) -> float | None:
    own = frame.loc[frame["layer"] != "all", column].to_numpy(np.float64)
    return float(np.nanmean(own)) if np.isfinite(own).any() else None
