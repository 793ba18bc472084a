"""Steady: runs that differ by nothing but what is done to the heads, also of models that draw at random."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from headscope._support.drawing import nothing_drawn
from headscope._support.running import run_model
from headscope.anatomy.check import output_gap, rounding_of
from headscope.errors import MetricError

__all__ = ["Steady"]

_SEED = 0


class Steady:
    """Runs a model. If two runs on the first input differ, each run begins with the same seed from then on.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._seeded: bool | None = None

    def __call__(self, inputs: Mapping[str, Any]) -> Any:
        """The model's output.

        Raises:
            MetricError: two intact runs differ whatever the seed, so that effects would be noise.
        """
        if self._seeded is None:
            self._seeded = self._draws(inputs)
        return self._run(inputs, self._seeded)

    def _run(self, inputs: Mapping[str, Any], seeded: bool) -> Any:
        if not seeded:
            return run_model(self._model, inputs)
        with self._aside():
            torch.manual_seed(_SEED)
            return run_model(self._model, inputs)

    def _aside(self) -> AbstractContextManager[None]:
        """While open, nothing is drawn from the user's own generators."""
        return nothing_drawn(self._model)

    def _draws(self, inputs: Mapping[str, Any]) -> bool:
        with torch.no_grad(), self._aside():
            first = self._run(inputs, seeded=False)
            if output_gap(first, self._run(inputs, seeded=False)) <= rounding_of(first):
                return False
            first = self._run(inputs, seeded=True)
            gap = output_gap(first, self._run(inputs, seeded=True))
        if gap > rounding_of(first):
            raise MetricError(
                f"two runs of the intact {type(self._model).__name__} on one batch differ by {gap:.1e} of their size, "
                "whatever the seed: effects of heads would be noise; make its forward draw nothing, or by torch's seed"
            )
        return True
