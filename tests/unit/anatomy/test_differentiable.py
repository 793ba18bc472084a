"""Models that turn gradients off in their own forward are found, scored and cut like their plain twins."""

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from headscope.anatomy import discover
from headscope.anatomy.differentiable import differentiable
from headscope.scoring.rating import importance
from headscope.surgery import prune
from headscope.watching.observation import capture
from tests.models import NanoGPT

BATCH = {"input_ids": torch.randint(0, 60, (2, 7), generator=torch.Generator().manual_seed(0))}


class _Turned(nn.Module):
    """A tower that is kept as it is, and a head."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tower, self.head, self.how = NanoGPT(), nn.Linear(60, 3), how

    def forward(self, input_ids: Tensor) -> Tensor:
        contexts: dict[str, Any] = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
        context: AbstractContextManager[Any] = contexts.get(self.how, nullcontext)()
        if self.how == "set_grad_enabled":
            torch.set_grad_enabled(False)
        try:
            with context:
                features = self.tower(input_ids)
        finally:
            if self.how == "set_grad_enabled":
                torch.set_grad_enabled(True)
        out: Tensor = self.head(features.clone())
        return out


def _squares(output: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return output.square().mean((1, 2))


@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "set_grad_enabled"])
def test_numbers_are_those_of_the_plain_twin(how: str) -> None:
    model, twin = _Turned(how).eval(), _Turned("").eval()
    anatomies = [discover(one, BATCH) for one in (model, twin)]
    assert anatomies[0].sites == anatomies[1].sites
    assert anatomies[0].remarks == ()
    for score in ("ablation", "gradient", "norm"):
        own, want = (importance(one, [BATCH], score=score, metric=_squares).score for one in (model, twin))
        np.testing.assert_allclose(own, want, rtol=1e-5)
    with capture(model, anatomy=anatomies[0]) as seen:
        model(**BATCH)
    with capture(twin, anatomy=anatomies[1]) as wanted:
        twin(**BATCH)
    for layer in wanted:
        assert torch.equal(seen[layer].contribution, wanted[layer].contribution)
        assert torch.equal(seen[layer].pattern, wanted[layer].pattern)
    cuts = [prune(one, ["L0H1"], batches=[BATCH]) for one in (model, twin)]
    assert torch.equal(cuts[0](**BATCH), cuts[1](**BATCH))
    out = model(**BATCH)  # and it is as it was
    assert out.requires_grad
    assert model.tower(**BATCH).requires_grad
    (gradient,) = torch.autograd.grad(out.sum(), model.tower.lm_head.weight, allow_unused=True)
    assert gradient is None


def test_it_holds_on_its_own_thread_and_ends() -> None:
    weight, told = torch.ones(2, requires_grad=True), []

    def other() -> None:
        with torch.no_grad():
            told.append((2 * weight).requires_grad)
        with torch.inference_mode():
            told.append((2 * weight).is_inference())

    with differentiable():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        with torch.no_grad(), torch.inference_mode():
            told.append((2 * weight).requires_grad)
    other()
    assert told == [False, True, True, False, True]
