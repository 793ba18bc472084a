"""Training of one learner on one task: the same numbers for the same seed."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from headscope._support.running import evaluating
from headscope.errors import NumericalError
from headscope.studies.tasks import Task, inputs
from headscope.text.batches import Batch

__all__ = ["Trained", "fresh", "judge", "one_thread", "train"]

_WARM_UP, _DECAY, _CLIP = 0.1, 0.01, 1.0  # share of the steps, AdamW's weight decay, the most a gradient may be long


@dataclass(frozen=True, eq=False)
class Trained:
    """A learner after its training.

    Attributes:
        learner: in evaluation mode.
        loss, error: on what was held out; see the task for units.
    """

    learner: nn.Module
    loss: float
    error: float


def train(
    task: Task,
    n_heads: int,
    head_dim: int,
    learning_rate: float,
    seed: int,
    steps: int | None = None,
    *,
    tuning: bool = False,
) -> Trained:
    """Train a fresh learner, and judge it on what was held out.

    AdamW, the rate rising over the first tenth of the steps and falling to next to nothing by the last, gradients cut
    to length 1. The seed settles the learner's weights and the order of the text; torch's own state is left as it was.

    Args:
        task: what is learnt.
        n_heads, head_dim: of every block.
        learning_rate: the highest.
        seed: of weights and batches.
        steps: in place of the task's.
        tuning: judge it on what settings are chosen on.

    Raises:
        NumericalError: the loss became NaN or infinite.
    """
    steps = task.steps if steps is None else steps
    learner = fresh(task, n_heads, head_dim, seed)
    optimiser = torch.optim.AdamW(learner.parameters(), lr=learning_rate, weight_decay=_DECAY)
    warm_up = max(_WARM_UP, 1.5 / steps)  # torch divides by one less than the steps that it takes
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, steps, pct_start=warm_up)
    learner.train()
    for batch in islice(task.batches(seed), steps):
        loss = task.loss(learner(**inputs(batch)), batch).mean()
        if not bool(loss.isfinite()):
            raise NumericalError(
                f"the loss became {float(loss.detach())} with {n_heads} heads and a learning rate of {learning_rate}"
            )
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), _CLIP)
        optimiser.step()
        schedule.step()
    learner.eval()
    loss_held_out, error = judge(task, learner, task.held_out(tuning))
    return Trained(learner, loss_held_out, error)


def fresh(task: Task, n_heads: int, head_dim: int, seed: int) -> nn.Module:
    """The learner that training begins with.

    Args:
        task: what it is to learn.
        n_heads, head_dim: of every block.
        seed: of its weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return task.learner(n_heads, head_dim)


def judge(task: Task, learner: nn.Module, batches: Iterable[Batch]) -> tuple[float, float]:
    """Mean loss and mean error over the rows of some batches, rows counting equally."""
    losses: list[Tensor] = []
    errors: list[Tensor] = []
    with evaluating(learner), torch.no_grad():
        for batch in batches:
            output = learner(**inputs(batch))
            losses.append(task.loss(output, batch))
            errors.append(task.error(output, batch))
    return float(torch.cat(losses).double().mean()), float(torch.cat(errors).double().mean())


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, so that numbers do not depend on how many processors there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
