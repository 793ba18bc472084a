"""What is held off in the whole process: by the first who needs it, until the last has left."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.utils import checkpoint

from headscope._support.holding import Held, uncheckpointed


def test_the_first_enters_and_the_last_leaves() -> None:
    told: list[str] = []

    @contextmanager
    def context() -> Iterator[None]:
        told.append("in")
        yield
        told.append("out")

    held = Held(context)
    with held:
        with held:
            assert told == ["in"]
        other = threading.Thread(target=held.__enter__)
        other.start()
        other.join()
    assert told == ["in"]
    held.__exit__()
    assert told == ["in", "out"]


def test_it_is_made_as_soon_as_there_is_something_to_hold() -> None:
    there: list[int] = []

    @contextmanager
    def context() -> Iterator[None]:
        there.append(2)
        yield
        there.append(3)

    held = Held(lambda: context() if there else None)
    with held:
        assert there == []
        there.append(1)
        with held:
            assert there == [1, 2]
        assert there == [1, 2]
    assert there == [1, 2, 3]


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_runs_what_it_is_given_once(reentrant: bool) -> None:
    runs: list[int] = []

    def double(x: torch.Tensor) -> torch.Tensor:
        runs.append(torch.is_grad_enabled())
        return (2 * x).sin()

    def gradient() -> float:
        x = torch.ones((), requires_grad=True)
        checkpoint.checkpoint(double, x, use_reentrant=reentrant).backward()
        assert x.grad is not None
        return float(x.grad)

    own = vars(checkpoint).copy()
    with uncheckpointed():
        held = gradient()
    assert runs == [True]
    assert vars(checkpoint) == own
    assert gradient() == held
    assert len(runs) == 3  # once more for gradients, as the model has it
    with uncheckpointed(), pytest.raises(ZeroDivisionError):
        checkpoint.checkpoint(lambda x: x / 0, 1, use_reentrant=reentrant)
    assert vars(checkpoint) == own
