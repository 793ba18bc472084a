"""Heads left: of a cut attention module that runs with as many heads as ever, those that are there are told of."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from headscope.anatomy.route import Call
from headscope.sites import attention_of

__all__ = ["LEFT", "Left", "of_heads_left"]

LEFT = "_headscope_left"
"""Under this name a cut module says which heads are left, by attention; see `headscope.sites.Site.attention`."""


@dataclass(frozen=True)
class Left:
    """Which heads of an attention module are left.

    Attributes:
        keep: their places.
        heads: how many it runs with.
    """

    keep: tuple[int, ...]
    heads: int


@functools.lru_cache(maxsize=1024)
def _attention(key: str) -> str:
    return attention_of(json.loads(key)) if key else ""


def of_heads_left(call: Call) -> Call:
    """The call as one of the heads that are left; itself where the module does not say that any are gone."""
    by_attention: Mapping[str, Left] = call.module.__dict__.get(LEFT, {})
    left = by_attention.get(_attention(call.key), by_attention.get("")) if by_attention else None
    if left is None or call.q.shape[1] != left.heads:
        return call
    keep = list(left.keep)
    # keys are told for each query head: which of them are one and the same is seen by what makes them
    keys, values = (
        [head * tensor.shape[1] // left.heads for head in keep] if tensor.shape[1] != left.heads else keep
        for tensor in (call.k, call.v)
    )
    scores = call.scores
    if scores is not None and scores.bare is not None:
        scores = replace(scores, bare=scores.bare[:, keep])

    def of_bias(scaling: float) -> Tensor:
        bias = call.bias(scaling)
        return bias[:, keep] if bias.ndim == 4 and bias.shape[1] == left.heads else bias

    return replace(
        call,
        q=call.q[:, keep],
        k=call.k[:, keys],
        v=call.v[:, values],
        z=call.z[:, keep],
        made=_made_of(call, left),
        pattern=lambda: call.pattern()[:, keep],
        bias=of_bias,
        scores=scores,
        map=None,
    )


_Made = tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def _made_of(call: Call, left: Left) -> list[_Made]:
    """What z lies in, of the heads left: a tensor of all heads, or several of some each."""
    found: list[_Made] = []
    first = 0
    for made, way, back in call.made:
        heads = way(made).shape[1]
        own = [head - first for head in left.keep if first <= head < first + heads]
        first += heads
        if own:
            found.append((made, functools.partial(_picked, way, own), functools.partial(_put_back, back, own, heads)))
    return found


def _picked(way: Callable[[Tensor], Tensor], keep: Sequence[int], made: Tensor) -> Tensor:
    return way(made)[:, list(keep)]


def _put_back(back: Callable[[Tensor], Tensor], keep: Sequence[int], heads: int, z: Tensor) -> Tensor:
    made: Tensor = back(_among(z, keep, heads))
    return made


def _among(z: Tensor, keep: Sequence[int], heads: int) -> Any:
    """z with nothing in the place of heads that are gone."""
    whole = z.new_zeros(z.shape[0], heads, *z.shape[2:])
    return whole.index_copy(1, torch.tensor(list(keep), device=z.device), z)
