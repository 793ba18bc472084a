"""Reading autograd's graph: what a tensor is made of, and which rows of which layers belong to which head."""

import functools
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from headscope.anatomy.features import features_last

__all__ = [
    "HeadRows",
    "are_apart_by_place",
    "behind",
    "groups_of",
    "mixes",
    "own_rows",
    "run_of",
    "sees_ahead",
    "touched_by",
]

HeadRows = tuple[tuple[int, ...], ...]
_Layer = TypeVar("_Layer", bound=Hashable)


def behind(tensor: Tensor, without: Iterable[Any] = ()) -> tuple[list[Tensor], set[Any]]:
    """Leaves of the graph that made `tensor`, and its nodes; what lies behind some nodes alone is left out."""
    found: dict[int, Tensor] = {}
    seen: set[Any] = set(without)
    todo = [tensor.grad_fn] if tensor.grad_fn is not None else []
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor):
            found[id(leaf)] = leaf
        todo.extend(parent for parent, _ in node.next_functions if parent is not None)
    return list(found.values()), seen


def touched_by(gradient: Tensor, axes: tuple[int, ...]) -> frozenset[int]:
    flat = features_last(gradient.detach(), axes).flatten(0, -2)
    return frozenset(torch.nonzero(flat.abs().amax(0)).flatten().tolist())


def are_apart_by_place(gradients: Sequence[Tensor], axes: tuple[int, ...]) -> bool:
    """Whether parts of a tensor are made of the same features at places of their own, as positions are, and not heads.

    Args:
        gradients: of one layer's output, for each part.
        axes: that hold its features.
    """
    flat = [features_last(one.detach(), axes).flatten(0, -2).abs() for one in gradients]
    features = {frozenset(one.amax(0).nonzero().flatten().tolist()) for one in flat}
    places = {frozenset(one.amax(1).nonzero().flatten().tolist()) for one in flat}
    return len(features) == 1 and len(places) == len(flat) > 1


def run_of(values: Tensor) -> range:
    """Where numbers are that are not 0, if they are side by side; else nothing."""
    places = values.nonzero().flatten().tolist()
    return range(places[0], places[-1] + 1) if places and len(places) == places[-1] + 1 - places[0] else range(0)


def groups_of(tensor: Tensor, rows: Sequence[Mapping[_Layer, frozenset[int]]]) -> list[int]:
    """Which heads are one and the same, repeated by the model before the call: equal, and made by the same rows."""
    heads = range(len(rows))
    first = [
        next(i for i in heads if i == head or (rows[i] == rows[head] and torch.equal(tensor[:, i], tensor[:, head])))
        for head in heads
    ]
    order = sorted(set(first))
    return [order.index(index) for index in first]


def own_rows(rows: Sequence[Mapping[_Layer, frozenset[int]]], groups: list[int] | range) -> dict[_Layer, HeadRows]:
    """The layers in which every head has rows of its own, with those rows; what all heads share is left out.

    Or, where each head has a layer to itself (lectures write heads as modules), those layers.
    """
    firsts = [rows[list(groups).index(group)] for group in range(len(set(groups)))]
    layers = dict.fromkeys(layer for row in firsts for layer in row)
    own: dict[_Layer, HeadRows] = {}
    apart: dict[_Layer, HeadRows] = {}
    for layer in layers:
        sets = [row.get(layer, frozenset()) for row in firsts]
        shared = frozenset.intersection(*sets) if len(sets) > 1 else frozenset()
        sets = [part - shared for part in sets]
        if sum(map(len, sets)) == len(frozenset().union(*sets)):
            (own if all(sets) else apart)[layer] = tuple(tuple(sorted(part)) for part in sets)
    if own or len(apart) < len(layers):
        return own
    owners = [sum(bool(heads[place]) for heads in apart.values()) for place in range(len(firsts))]
    return apart if all(many == 1 for many in owners) else {}


def sees_ahead(pattern: Tensor) -> bool:
    """Whether queries look at keys that come after them; where a single query tells nothing, they may.

    Args:
        pattern: (row, head, query, key).
    """
    # queries that see nothing (padding on the left) see all exactly alike
    blind = pattern.amax(-1, keepdim=True) == pattern.amin(-1, keepdim=True)
    blind &= ~blind.all()
    pattern = pattern.masked_fill(blind, 0)
    if pattern.shape[-1] > pattern.shape[-2]:  # blocks on both sides of a window may be filled up
        used = run_of(pattern.amax((0, 1, 2)))
        pattern = pattern[..., used.start : used.stop] if used else pattern
    # with keys from before (a cache, a prefix) the last query sees the last key
    ahead = pattern.triu(1 + max(pattern.shape[-1] - pattern.shape[-2], 0))
    return bool(ahead.abs().max() > 0) or ahead.shape[-1] < 2 or ahead.shape[-2] < 2


def mixes(tensor: Tensor, seen: Sequence[Tensor]) -> bool | None:
    """Whether a number of a tensor stems from numbers that lie along several axes of another one.

    Args:
        tensor: what is asked about.
        seen: what it was made of; the ways from one of them to another do not count.

    Returns:
        None where gradients do not tell: there are none, or all that are looked at are zero, as those of a map by which
        one key alone is chosen.
    """
    own = list({id(one): one for one in seen if one.requires_grad}.values())
    if not own or not tensor.requires_grad:
        return None if tensor.grad_fn is None else False
    places: list[Tensor] = []
    try:
        for number in _some_of(tensor):
            new = [slope.nonzero() for slope in _slopes(number, own).values()]
            if any(len(one) > 1 and int((one != one[:1]).any(0).sum()) > 1 for one in new):
                return True
            places += new
    except (RuntimeError, NotImplementedError):  # a model that went on in place
        return None
    return None if places and not any(len(one) for one in places) else False


def _some_of(tensor: Tensor) -> Iterator[Tensor]:
    """Some of its numbers, spread over all; what a model fills up with zeros stems from nothing."""
    filled = tensor.detach().flatten().nonzero().flatten()
    if len(filled):
        for place in sorted({(2 * part + 1) * len(filled) // (2 * _LOOKED_AT) for part in range(_LOOKED_AT)}):
            yield tensor.flatten()[filled[place]]


_LOOKED_AT = 8  # numbers of a result


def _slopes(number: Tensor, own: list[Tensor]) -> dict[int, Tensor]:
    """Gradients of a number by those tensors that it is made of, each as if the others did not depend on it."""
    found: dict[int, Tensor] = {}

    def keep(place: int, gradient: Tensor | None) -> Tensor | None:
        if gradient is None:  # from an operation that has no derivative
            return None
        found[place] = gradient
        return torch.zeros_like(gradient)  # nothing goes on from here

    handles = [one.register_hook(functools.partial(keep, place)) for place, one in enumerate(own)]
    try:
        torch.autograd.grad(number, own, retain_graph=True, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    return found
