"""Trying drafts on the model until one runs: the draft that came furthest is mended first, by what the model says."""

import heapq
import itertools
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from headscope._support.drawing import nothing_drawn
from headscope._support.running import arguments, evaluating, in_python, run_model
from headscope.anatomy.examples.complaints import Complaint, complaint_of
from headscope.anatomy.examples.drafts import Draft, Maker
from headscope.anatomy.examples.facts import Facts
from headscope.anatomy.examples.repairs import repaired
from headscope.anatomy.operations import floats_in
from headscope.errors import ModelError

__all__ = ["Fitted", "Trial", "fit", "fit_one", "try_once"]

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
        draft: what the example was made from.
        ran: modules that ran on it.
        given: what the model returned.
    """

    example: dict[str, Any] | None
    tries: int
    tried: tuple[tuple[str, ...], ...] = ()
    complaint: str = ""
    others: tuple[str, ...] = ()
    draft: Draft | None = None
    ran: frozenset[nn.Module] = frozenset()
    given: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One forward pass: what was complained of, if anything, which modules ran, and the numbers that came out."""

    complaint: Complaint | None
    ran: frozenset[nn.Module] = frozenset()
    given: tuple[Tensor, ...] = ()


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
        found = fit_one(model, Draft(names), maker, facts, most)
        tries += found.tries
        tried.append(names)
        if found.example is not None:
            return replace(found, tries=tries, tried=tuple(tried))
        said.append(found.complaint)
    return Fitted(None, tries, tuple(tried), next(iter(said), ""), tuple(dict.fromkeys(said[1:])))


def fit_one(model: nn.Module, draft: Draft, maker: Maker, facts: Facts, most: int) -> Fitted:
    """One selection of arguments, mended as long as tries are left.

    Args:
        model: it is left as it was.
        draft: what is tried first.
        maker: makes examples of drafts.
        facts: of the model's configs.
        most: forward passes.
    """
    takes, order = arguments(model), itertools.count()
    waiting, seen, tries = [(0, 0, next(order), 0, draft)], {draft.key()}, 0
    said, furthest = "", (-1, 0)
    first, asked = set(draft.names), set[str]()
    while waiting and tries < most:
        _, _, _, mended, draft = heapq.heappop(waiting)
        if asked - set(draft.names):
            continue  # it lacks what was dropped and was asked for then
        tries += 1
        example = maker.make(draft)
        trial = try_once(model, example)
        complaint = trial.complaint
        if complaint is None:
            return Fitted(example, tries, draft=draft, ran=trial.ran, given=trial.given)
        if (complaint.finished, mended) > furthest:
            said, furthest = complaint.line, (complaint.finished, mended)
        asked |= first.intersection(complaint.missing).difference(draft.names)
        for rank, further in repaired(draft, complaint, maker, takes, facts):
            if further.key() not in seen:
                seen.add(further.key())
                heapq.heappush(waiting, (-complaint.finished, rank, next(order), mended + (rank == 0), further))
    return Fitted(None, tries, (), said)


def try_once(model: nn.Module, example: dict[str, Any]) -> Trial:
    """Run the model once; nothing is complained of if it runs and gives numbers.

    Args:
        model: it is left as it was.
        example: arguments of its forward.
    """
    known = arguments(model)
    ran: list[nn.Module] = []

    with ExitStack() as stack:
        stack.enter_context(nothing_drawn(model))
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        torch.manual_seed(0)
        for module in in_python(model):
            stack.callback(module.register_forward_hook(lambda module, *_: ran.append(module)).remove)
        try:
            given = floats_in(run_model(model, example))
        except ModelError as error:
            return Trial(complaint_of(error.__cause__ or error, known, len(ran)))
        except (MemoryError, torch.OutOfMemoryError) as error:
            return Trial(Complaint(f"{type(error).__name__}: {error}"))
    if given and not bool(given[0].isnan().any()):
        return Trial(None, frozenset(ran), tuple(one.detach() for one in given))
    return Trial(Complaint("its output holds NaN" if given else "its output holds no numbers", finished=len(ran)))
