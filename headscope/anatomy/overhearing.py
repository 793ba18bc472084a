"""Overhearing: which of a model's operations are told, and under what name; the same for all who listen."""

import types
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from headscope.anatomy.operations import name_of
from headscope.anatomy.route import is_claimed

__all__ = ["Overhearing"]


class Overhearing(TorchFunctionMode, ABC):
    """A mode that is told of each operation by name. What is recorded once is found again only if both count alike.

    What some route has claimed is not told, nor what runs inside torch.func's vmap; `F.multi_head_attention_forward` is
    opened, so that what it does is.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if is_claimed() or _is_transformed():
            return function(*args, **kwargs)
        if function is F.multi_head_attention_forward:
            with self:
                return _opened(function)(*args, **kwargs)
        return self.heard(name_of(function, kwargs), function, args, kwargs)

    @abstractmethod
    def heard(self, name: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation, and give what it gives.

        Args:
            name: as `headscope.anatomy.operations.name_of` spells it.
            function, args, kwargs: the operation.
        """


def _is_transformed() -> bool:
    """Whether torch.func (vmap, grad) is at work: its tensors are not to be kept, and stand for several at once."""
    return torch._C._functorch.peek_interpreter_stack() is not None


_OPENED: dict[Callable[..., Any], Callable[..., Any]] = {}


def _opened(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of PyTorch's with its look for overrides taken out, so that what it does is seen.

    A mode is off inside its own handler, and this function would hand itself to the handler again and again.
    """
    if function not in _OPENED:
        names = dict(function.__globals__)
        names |= {name: _never for name in names if name.startswith("has_torch_function")}
        open_one = types.FunctionType(
            function.__code__, names, function.__name__, function.__defaults__, function.__closure__
        )
        open_one.__kwdefaults__ = function.__kwdefaults__
        _OPENED[function] = open_one
    return _OPENED[function]


def _never(*_: Any, **__: Any) -> bool:
    return False
