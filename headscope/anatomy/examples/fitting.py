"""Trying drafts on the model until one runs: the draft that came furthest is mended first, by what the model says."""

import heapq
import itertools
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from headscope._support.running import arguments, evaluating, in_python, run_model
from headscope.anatomy.examples.complaints import Complaint, complaint_of
from headscope.anatomy.examples.drafts import Draft, Maker
from headscope.anatomy.examples.facts import Facts
from headscope.anatomy.examples.repairs import repaired
from headscope.anatomy.operations import floats_in
from headscope.errors import ModelError

__all__ = ["Fitted", "fit"]

_MOST_TRIES = 30


@dataclass(frozen=True)
class Fitted:
    """What came of trying.

    Attributes:
        example: the model runs on it; None if it runs on nothing that was tried.
        tries: forward passes.
        tried: the arguments that were tried together.
        complaint: what the model said to the first of them where it came furthest, on one line.
        others: the same for those that were tried after them.
    """

    example: dict[str, Any] | None
    tries: int
    tried: tuple[tuple[str, ...], ...] = ()
    complaint: str = ""
    others: tuple[str, ...] = ()


def fit(model: nn.Module, selections: Iterable[tuple[str, ...]], maker: Maker, facts: Facts) -> Fitted:
    """The first example that a model runs on.

    Args:
        model: it is left as it was.
        selections: arguments to try together, the best first; each has half of the tries that are left.
        maker: makes examples of drafts.
        facts: of the model's configs.
    """
    todo, tried, tries, said = list(selections), [], 0, []
    for number, names in enumerate(todo):
        left = _MOST_TRIES - tries
        most = min(max(2, left // 2), left - (len(todo) - 1 - number))  # at least one for each of those to come
        if number == len(todo) - 1:
            most = left
        if most < 1:
            continue
        found = _fit_one(model, Draft(names), maker, facts, most)
        tries += found.tries
        tried.append(names)
        if found.example is not None:
            return Fitted(found.example, tries, tuple(tried))
        said.append(found.complaint)
    return Fitted(None, tries, tuple(tried), next(iter(said), ""), tuple(dict.fromkeys(said[1:])))


def _fit_one(model: nn.Module, draft: Draft, maker: Maker, facts: Facts, most: int) -> Fitted:
    """One selection of arguments, mended as long as tries are left."""
    takes, order = arguments(model), itertools.count()
    waiting, seen, tries = [(0, 0, next(order), 0, draft)], {draft.key()}, 0
    said, furthest = "", (-1, 0)
    while waiting and tries < most:
        _, _, _, mended, draft = heapq.heappop(waiting)
        tries += 1
        example = maker.make(draft)
        complaint = _try(model, example)
        if complaint is None:
            return Fitted(example, tries)
        if (complaint.finished, mended) > furthest:
            said, furthest = complaint.line, (complaint.finished, mended)
        for rank, further in repaired(draft, complaint, maker, takes, facts):
            if further.key() not in seen:
                seen.add(further.key())
                heapq.heappush(waiting, (-complaint.finished, rank, next(order), mended + (rank == 0), further))
    return Fitted(None, tries, (), said)


def _try(model: nn.Module, example: dict[str, Any]) -> Complaint | None:
    """Run the model once; None if it runs and gives numbers."""
    devices = [one.device for one in model.parameters() if one.device.type == "cuda"][:1]
    known, finished = arguments(model), itertools.count()

    def count(*_: Any) -> None:
        next(finished)

    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        torch.manual_seed(0)
        for module in in_python(model):
            stack.callback(module.register_forward_hook(count).remove)
        try:
            given = floats_in(run_model(model, example))
        except ModelError as error:
            return complaint_of(error.__cause__ or error, known, next(finished))
        except (MemoryError, torch.OutOfMemoryError) as error:
            return Complaint(f"{type(error).__name__}: {error}")
    if given and not bool(given[0].isnan().any()):
        return None
    return Complaint("its output holds NaN" if given else "its output holds no numbers", finished=next(finished))
