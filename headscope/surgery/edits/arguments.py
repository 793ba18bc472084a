"""Edit of a module that is given something for each head, as position biases: it takes what is for the heads left."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headscope.surgery.edits.base import EDITS, Edit
from headscope.surgery.forwards import parameters_of, replace_forward, run_inner

__all__ = ["TakeHeads", "Taken"]

Taken = tuple[str, int, bool]
"""Name of an argument; its axis of heads; whether, where other things lie on that axis too, heads come first there."""


@EDITS.register("take_heads")
@dataclass(frozen=True)
class TakeHeads(Edit):
    """Let a module take, of arguments that hold something for each head, what is for the heads left.

    Attributes:
        given: which.
        keep: places of the heads left.
        heads: how many come.
    """

    given: tuple[Taken, ...]
    keep: tuple[int, ...]
    heads: int

    def apply(self, module: nn.Module) -> None:
        names = parameters_of(module)
        places = tuple((name, names.index(name), *rest) for name, *rest in self.given)
        replace_forward(module, _run_on_own, places, self.keep, self.heads)


def _run_on_own(
    self: nn.Module,
    inner: Any,
    given: Sequence[tuple[str, int, int, bool]],
    keep: Sequence[int],
    heads: int,
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    own = list(args)
    for name, place, axis, heads_first in given:
        if place < len(own):
            own[place] = _own(own[place], axis, heads_first, keep, heads)
        elif name in kwargs:
            kwargs[name] = _own(kwargs[name], axis, heads_first, keep, heads)
    return run_inner(self, inner, *own, **kwargs)


def _own(value: Any, axis: int, heads_first: bool, keep: Sequence[int], heads: int) -> Any:
    if not isinstance(value, Tensor) or value.ndim <= axis or value.shape[axis] % heads or value.shape[axis] == 1:
        return value
    index = torch.tensor(list(keep), device=value.device)
    if value.shape[axis] == heads:
        return value.index_select(axis, index)
    sizes, own = ((heads, -1), axis) if heads_first else ((-1, heads), axis + 1)
    return value.unflatten(axis, sizes).index_select(own, index).flatten(axis, axis + 1)
