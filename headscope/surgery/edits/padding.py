"""Edits for forwards that know their sizes by heart: weights are smaller, what stands between them keeps its sizes.

A layer that makes q, k or v puts zeros where the rows of heads that are gone would have been; the output projection
reads the columns of the heads that are left. Exact wherever heads can be told apart, and no faster.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from headscope.anatomy.features import feature_axis
from headscope.anatomy.left import LEFT, Left
from headscope.anatomy.linear import stores_transposed
from headscope.errors import SurgeryError
from headscope.surgery.edits.base import EDITS, Edit, Runs, indices_of, runs
from headscope.surgery.edits.slicing import COUNTS, slice_layer
from headscope.surgery.forwards import replace_forward, run_inner

__all__ = ["FrameFunctions", "KeepHeads", "PadOutput", "PickInput", "stands_for"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FRAME = "_headscope_frame"


@EDITS.register("pad_output")
@dataclass(frozen=True)
class PadOutput(Edit):
    """Keep some rows of a linear layer, which puts zeros in the place of the others.

    Attributes:
        keep: the rows that stay, among those that there were in the beginning, as (start, stop) runs.
        size: how many these were.
    """

    keep: Runs
    size: int

    def apply(self, module: nn.Module) -> None:
        _frame(module, self.module, "output", indices_of(self.keep), self.size)


@EDITS.register("pick_input")
@dataclass(frozen=True)
class PickInput(Edit):
    """Keep some columns of a linear layer, which reads these alone; `keep` and `size` as in `PadOutput`."""

    keep: Runs
    size: int

    def apply(self, module: nn.Module) -> None:
        _frame(module, self.module, "input", indices_of(self.keep), self.size)


@EDITS.register("keep_heads")
@dataclass(frozen=True)
class KeepHeads(Edit):
    """Say on an attention module that runs with as many heads as ever which of them are left.

    Attributes:
        keep: their places.
        heads: how many it runs with.
        whole: those of q, k and v whose layers are as large as ever.
        attention: which of the module's attentions is meant; see `headscope.sites.Site.attention`.
    """

    keep: tuple[int, ...]
    heads: int
    whole: tuple[str, ...] = ()
    attention: str = ""

    def apply(self, module: nn.Module) -> None:
        module.__dict__[LEFT] = {**module.__dict__.get(LEFT, {}), self.attention: Left(self.keep, self.heads)}


@EDITS.register("frame_functions")
@dataclass(frozen=True)
class FrameFunctions(Edit):
    """Let `F.linear` go on as a layer does of which it gets the weight, where a module hands it that and runs no layer.

    Attributes:
        layers: by their names in the module.
    """

    layers: tuple[str, ...]
    while_it_runs: ClassVar[bool] = True

    def apply(self, module: nn.Module) -> None:
        replace_forward(module, _run_functions, self.layers)


def _run_functions(self: nn.Module, inner: Any, layers: Sequence[str], /, *args: Any, **kwargs: Any) -> Any:
    with _Framed([self.get_submodule(name) for name in layers]):
        return run_inner(self, inner, *args, **kwargs)


class _Framed(TorchFunctionMode):
    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self._layers = {id(layer.weight): layer for layer in layers if _FRAME in layer.__dict__}

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        layer = self._layers.get(id(args[1] if len(args) > 1 else kwargs.get("weight")))
        if layer is None or function is not F.linear:
            return function(*args, **kwargs)
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        bias, (keep, size) = given.get("bias"), layer.__dict__[_FRAME].get("output", ((), 0))
        if bias is not None and len(bias) == size:  # put together by the module, of parts that are whole
            bias = _picked(bias, keep, 0)
        return _framed(layer, given["input"], lambda x: function(x, given["weight"], bias))


def stands_for(module: nn.Module) -> dict[str, int]:
    """How many features a cut layer stands for, by side ("output", "input"), where it goes on as if it were whole."""
    return {side: size for side, (_, size) in module.__dict__.get(_FRAME, {}).items()}


def _frame(module: nn.Module, name: str, side: str, keep: Sequence[int], size: int) -> None:
    """Slice one side of a layer, which goes on as if it were whole."""
    frame: dict[str, tuple[Runs, int]] = dict(module.__dict__.get(_FRAME, {}))
    left = indices_of(frame[side][0]) if side in frame else list(range(size))
    if side in frame and frame[side][1] != size:
        raise SurgeryError(f"{name} stands for {frame[side][1]} {side} features; expected {size}")
    here = set(keep)
    slice_layer(module, name, side, [place for place, one in enumerate(left) if one in here], len(left))
    frame[side] = (runs([one for one in left if one in here]), size)
    module.__dict__[_FRAME] = frame
    for count in COUNTS[side]:  # whoever asks is told what enters and leaves it
        if hasattr(module, count):
            setattr(module, count, size)
    replace_forward(module, _run_framed)


def _run_framed(self: Any, inner: Any, x: Tensor, /) -> Tensor:
    def run(x: Tensor) -> Tensor:
        if stores_transposed(self):  # which counts what it puts out
            return F.linear(x, self.weight.T, self.bias)
        if isinstance(self, _CONVOLUTIONS) and not self.weight.numel():
            return _convolved(self, x)
        out: Tensor = run_inner(self, inner, x)
        return out

    return _framed(self, x, run)


def _framed(self: nn.Module, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """What a layer would make of an input if it were whole, by what it makes of its own part of it."""
    frame: dict[str, tuple[Runs, int]] = self.__dict__[_FRAME]
    if "input" in frame:
        x = _picked(x, frame["input"][0], feature_axis(self, x))
    out = run(x)
    if "output" not in frame:
        return out
    keep, size = frame["output"]
    return _padded(out, keep, size, feature_axis(self, out))


def _convolved(self: Any, x: Tensor) -> Tensor:
    """What a convolution without rows, or without columns, makes: PyTorch has none."""
    rows, columns, *window = self.weight.shape
    if not columns:
        x = torch.cat([x, x.new_zeros(x.shape[0], 1, *x.shape[2:])], 1)
    out: Tensor = self._conv_forward(x, self.weight.new_zeros(max(rows, 1), max(columns, 1), *window), None)
    out = out.narrow(1, 0, rows)
    return out if self.bias is None else out + self.bias.view(-1, *[1] * len(window))


def _picked(x: Tensor, keep: Runs, axis: int) -> Tensor:
    return torch.cat([x.narrow(axis, start, stop - start) for start, stop in keep] or [x.narrow(axis, 0, 0)], axis)


def _padded(out: Tensor, keep: Runs, size: int, axis: int) -> Tensor:
    """Rows that are there, with zeros between them."""
    pieces, place, taken = [], 0, 0
    for start, stop in (*keep, (size, size)):
        if start > place:
            shape = list(out.shape)
            shape[axis] = start - place
            pieces.append(out.new_zeros(shape))
        if stop > start:
            pieces.append(out.narrow(axis, taken, stop - start))
        place, taken = stop, taken + stop - start
    return torch.cat(pieces, axis)
