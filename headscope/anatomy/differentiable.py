"""Gradients where a model turns them off: by them heads are found, and told what they are worth."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from headscope._support.holding import Held
from headscope.anatomy.route import is_claimed

__all__ = ["differentiable", "not_inferring"]

_LEAVING = (torch.Tensor.numpy, torch.Tensor.__array__)
_THREADS: list[int] = []  # those on which a model runs without inference mode, once for each time that it was asked


@contextmanager
def differentiable() -> Iterator[None]:
    """While open, a model on this thread makes the graph of all it does: its own torch.no_grad does not act.

    Towers that are kept as they are, and forwards that are meant for use only, have one. Its detach stays one.
    """
    with not_inferring(), torch.enable_grad(), _GradientsStay():
        yield


class _GradientsStay(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch._C._set_grad_enabled and not is_claimed():
            return None
        if function in _LEAVING and args[0].requires_grad and not is_claimed():
            args = (args[0].detach(), *args[1:])  # which its own no_grad would have allowed
        return function(*args, **(kwargs or {}))


@contextmanager
def not_inferring() -> Iterator[None]:
    """While open, tensors made on this thread are plain ones: a model's own torch.inference_mode does not act."""
    with torch.inference_mode(False), _PLAIN_TENSORS:
        _THREADS.append(threading.get_ident())
        try:
            yield
        finally:
            _THREADS.remove(threading.get_ident())


@contextmanager
def _without_inference() -> Iterator[None]:
    module: Any = torch._C
    own = module._InferenceMode  # `torch.inference_mode` looks it up when it is entered

    def chosen(mode: bool) -> Any:
        return nullcontext() if threading.get_ident() in _THREADS else own(mode)

    module._InferenceMode = chosen
    try:
        yield
    finally:
        module._InferenceMode = own


_PLAIN_TENSORS = Held(_without_inference)
