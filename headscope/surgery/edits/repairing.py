"""Edit of a forward that computes sizes from a width which it no longer has."""

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from headscope.surgery.edits.base import EDITS, Edit
from headscope.surgery.forwards import replace_forward, run_inner

__all__ = ["RepairSizes", "repair_sizes"]


@EDITS.register("repair_sizes")
@dataclass(frozen=True)
class RepairSizes(Edit):
    """Put sizes right that a module writes out in its forward; see `repair_sizes`."""

    sizes: tuple[tuple[int, int], ...]
    while_it_runs: ClassVar[bool] = True

    def apply(self, module: nn.Module) -> None:
        repair_sizes(module, self.sizes)


def repair_sizes(module: nn.Module, sizes: Sequence[tuple[int, int]]) -> None:
    """Let a module's forward run although it computes sizes from a width that it no longer has.

    Where `view`, `reshape` or `split` is asked for sizes that the tensor does not have, the last stale size that makes
    it fit is put right. Sizes with a -1 among them are left as they are: whether those fit would depend on the number
    of rows and tokens, and what was proven for one input would not hold for the next. Where the -1 comes first, and
    what comes after it are the last axes that the tensor has but for stale ones, these are put right too.

    Args:
        module: an attention module that writes sizes out, such as `view(B, T, self.n_head, C // self.n_head)`.
        sizes: (stale, right) pairs.
    """
    replace_forward(module, _run_repaired, tuple(sizes))


def _run_repaired(self: nn.Module, inner: Any, sizes: Sequence[tuple[int, int]], /, *args: Any, **kwargs: Any) -> Any:
    with _Repair(sizes):
        return run_inner(self, inner, *args, **kwargs)


class _Repair(TorchFunctionMode):
    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self._sizes = sizes

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in (Tensor.view, Tensor.reshape, torch.reshape) and len(args) > 1:
            shape = tuple(args[1]) if isinstance(args[1], (tuple, list)) else args[1:]
            if all(isinstance(size, int) and size >= 0 for size in shape):
                return function(args[0], self._fitting(args[0], shape), **kwargs)
            if shape[:1] == (-1,) and all(isinstance(size, int) and size >= 0 for size in shape[1:]):
                return function(args[0], (-1, *self._kept(args[0].shape, shape[1:])), **kwargs)
        if function in (Tensor.unflatten, torch.unflatten) and len(args) == 3:
            return function(args[0], args[1], self._divided(args[0].shape[args[1]], tuple(args[2])))
        if function in (Tensor.split, torch.split) and len(args) > 1 and isinstance(args[1], int):
            axis = kwargs.get("dim", args[2] if len(args) > 2 else 0)
            return function(args[0], self._dividing(args[0].shape[axis], args[1]), axis)
        return function(*args, **kwargs)

    def _fitting(self, tensor: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
        if math.prod(shape) == tensor.numel():
            return shape
        for place in reversed(_unmatched(tuple(tensor.shape), shape)):
            for stale, right in self._sizes:
                repaired = (*shape[:place], right, *shape[place + 1 :])
                if shape[place] == stale and math.prod(repaired) == tensor.numel():
                    return repaired
        return shape

    def _kept(self, have: Sequence[int], last: tuple[int, ...]) -> tuple[int, ...]:
        """The last axes of a tensor, as which they are asked for, where stale sizes alone are others.

        What asks for as many numbers as some last axes have merges these, and is right.
        """
        if math.prod(last) in itertools.accumulate(reversed(have), operator.mul):
            return last
        own = tuple(have[len(have) - len(last) :]) if len(have) > len(last) else ()
        alike = own and all(one == other or (other, one) in self._sizes for one, other in zip(own, last, strict=True))
        return own if alike else last

    def _divided(self, length: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Sizes into which an axis of features is divided, (heads, -1) or (heads, dim), with the heads left."""
        if -1 not in sizes and math.prod(sizes) != length:
            numbers = [(right, *sizes[1:]) for stale, right in self._sizes if stale == sizes[0]]
            return next((own for own in numbers if math.prod(own) == length), sizes)
        rights = [right for stale, right in self._sizes if stale == sizes[0] and right and length % right == 0]
        left = [right for right in rights if any(length // right == other for _, other in self._sizes)]
        return (left[0], *sizes[1:]) if len(sizes) == 2 and sizes[1] == -1 and left else sizes

    def _dividing(self, length: int, part: int) -> int:
        rights = [right for stale, right in self._sizes if stale == part and right and length % right == 0]
        return rights[0] if length % part and rights else part


def _unmatched(have: tuple[int, ...], want: tuple[int, ...]) -> range:
    """Places of a shape that are left when those at both ends are taken off that fit what a tensor has.

    So a number of positions is not put right where it happens to be as large as a width that is stale.

    >>> list(_unmatched((2, 24, 4, 8), (2, 4, 8, 32))), list(_unmatched((2, 5, 16), (2, 5, 2, 16)))
    ([1, 2], [2, 3])
    """
    start = next((i for i, (a, b) in enumerate(zip(have, want, strict=False)) if a != b), min(len(have), len(want)))
    i, j = len(have), len(want)
    while i > start and j > start:
        before = j
        a, b = i - 1, j - 1
        own, other = have[a], want[b]
        while own != other:
            if own < other:
                a -= 1
                own *= have[a] if a >= start else 0
            else:
                b -= 1
                other *= want[b] if b >= start else 0
            if a < start or b < start:
                return range(start, j)
        i, j = a, b
        if (i == start) != (j == start):  # what it fitted was what is stale
            return range(start, before)
    return range(start, j)
