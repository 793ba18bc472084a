"""Timing: how long a forward pass takes before a cut and after it, side by side."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from headscope._support.formatting import count, duration, number
from headscope._support.running import device_of, evaluating, run_model
from headscope.text.batches import Batch, n_rows
from headscope.text.splits import first_rows

__all__ = ["Timing", "compare_sizes", "time_forwards", "time_pass", "told_of_cut"]

_ROUNDS, _SECONDS = 15, 2.0  # of a batch size, at most; three rounds at the least


@dataclass(frozen=True)
class Timing:
    """A forward pass of so many rows, before and after: medians of rounds that ran the two in turn.

    Attributes:
        rows: of the batch.
        before, after: seconds.
        ratio_low, ratio_high: lower and upper quartile of after / before, round by round.
        rounds: how many there were.
    """

    rows: int
    before: float
    after: float
    ratio_low: float
    ratio_high: float
    rounds: int

    def __str__(self) -> str:
        share = f"{self.after / self.before:.2f} of the time (quartiles {self.ratio_low:.2f} to {self.ratio_high:.2f})"
        return f"{count(self.rows, 'row')}: {_brief(self.before)} → {_brief(self.after)}, {share}"


def time_forwards(before: nn.Module, after: nn.Module, batch: Batch, sizes: Sequence[int] = (1, 8)) -> list[Timing]:
    """Time forward passes of two models on the first rows of a batch.

    Args:
        before, after: run in evaluation mode, left as they were.
        batch: one of theirs; where it has fewer rows than a size, all of it is taken.
        sizes: numbers of rows.
    """
    rows = sorted({min(size, n_rows(batch)) for size in sizes})
    return [_timed(before, after, first_rows(batch, size), size) for size in rows]


def time_pass(model: nn.Module, batch: Batch) -> float:
    """Seconds of one forward pass, the second of two: what is made once is made in the first.

    Args:
        model: run in evaluation mode, left as it was.
        batch: what it runs on.
    """
    with evaluating(model), torch.no_grad():
        _seconds(model, batch)
        return _seconds(model, batch)


def compare_sizes(before: nn.Module, after: nn.Module, batch: Batch | None) -> dict[str, Any]:
    """Parameters of two models and times of their forward passes, as JSON values.

    Args:
        before, after: the whole model and the cut one.
        batch: what is timed; None for no times.
    """
    large, small = (sum(own.numel() for own in one.parameters()) for one in (before, after))
    times = [] if batch is None else [vars(timing) for timing in time_forwards(before, after, batch)]
    return {"parameters_before": large, "parameters_after": small, "times": times}


def told_of_cut(cut: Mapping[str, Any]) -> list[str]:
    """What `compare_sizes` found, or why nothing could be cut, in words, a line each.

    Args:
        cut: of `compare_sizes`, or "refused" alone with the reason.
    """
    if "refused" in cut:
        return [f"cannot be cut: {cut['refused']}"]
    before, after = cut["parameters_before"], cut["parameters_after"]
    sizes = f"{count(before)} → {count(after)} parameters ({1 - after / before:.1%} fewer)"
    return [sizes, *(f"a forward pass of {Timing(**timing)}" for timing in cut["times"])]


def _brief(seconds: float) -> str:
    return duration(seconds) if seconds >= 0.1 else f"{number(1000 * seconds)} ms"


def _timed(before: nn.Module, after: nn.Module, batch: Batch, rows: int) -> Timing:
    pairs: list[tuple[float, float]] = []
    start = time.perf_counter()
    with evaluating(before), evaluating(after), torch.no_grad():
        _seconds(before, batch), _seconds(after, batch)  # what is made once is made now
        while len(pairs) < 3 or (len(pairs) < _ROUNDS and time.perf_counter() - start < _SECONDS):
            turn = (before, after) if len(pairs) % 2 else (after, before)
            own = {id(model): _seconds(model, batch) for model in turn}
            pairs.append((own[id(before)], own[id(after)]))
    low, _, high = statistics.quantiles([small / large for large, small in pairs], n=4)
    whole, cut = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Timing(rows, whole, cut, low, high, len(pairs))


def _seconds(model: nn.Module, batch: Batch) -> float:
    _wait(model)
    start = time.perf_counter()
    run_model(model, batch)
    _wait(model)
    return time.perf_counter() - start


def _wait(model: nn.Module) -> None:
    """Until an accelerator has done what it was given."""
    device = device_of(model)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
