"""What is held off in the whole process while somebody watches: compiled code, and checkpoints of activations."""

import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, cast

import torch
import torch.utils.checkpoint

__all__ = ["Held", "uncheckpointed", "uncompiled"]


class Held:
    """One context for all who need it at a time, in whatever thread: the first enters it, the last leaves it."""

    def __init__(self, make: Callable[[], AbstractContextManager[Any] | None]) -> None:
        """Takes what makes the context, or None where there is nothing to hold off yet."""
        self._make = make
        self._lock = threading.Lock()
        self._open = 0
        self._context: AbstractContextManager[Any] | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._open += 1
            context = self._make() if self._context is None else None
            if context is not None:
                context.__enter__()
                self._context = context

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._open -= 1
            if self._open == 0 and self._context is not None:
                self._context.__exit__(None, None, None)
                self._context = None


@contextmanager
def _eager() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        # by it PyTorch tells of hooks beside all modules, which here act on those that are meant
        warnings.filterwarnings("ignore", _GLOBAL_HOOKS, UserWarning)
        own = warnings.filters[0]
        try:
            yield
        finally:
            with suppress(ValueError):  # somebody else may have reset the filters
                cast(list[Any], warnings.filters).remove(own)


_GLOBAL_HOOKS = r"Using `torch.compile\(module\)` when there are global hooks"
# where nothing was ever compiled, there is nothing to hold back, and torch's compiler is slow to load
_EAGERLY = Held(lambda: _eager() if "torch._dynamo.eval_frame" in sys.modules else None)


def uncompiled() -> AbstractContextManager[None]:
    """While open, nothing runs compiled: compiled code calls no hooks, and would be watched in vain.

    What torch.compile made stays, and runs again afterwards. It may hold a model without the model's knowing, so this
    does not depend on the model.
    """
    return _EAGERLY


class _Straight:
    """In place of the autograd function that runs a part of a model without a graph, and once more for gradients."""

    @staticmethod
    def apply(function: Callable[..., Any], _: Any, *args: Any) -> Any:
        return function(*args)


def _nothing(*_: Any, **__: Any) -> Iterator[None]:
    yield


@contextmanager
def _straight() -> Iterator[None]:
    # `checkpoint` looks both up when it is called; models hold `checkpoint` itself under names of their own
    module: Any = torch.utils.checkpoint
    own = {name: getattr(module, name) for name in _KINDS if hasattr(module, name)}
    for name in own:
        setattr(module, name, _KINDS[name])
    try:
        yield
    finally:
        for name, value in own.items():
            setattr(module, name, value)


_KINDS: dict[str, Any] = {
    "CheckpointFunction": _Straight,
    "_checkpoint_without_reentrant_generator": _nothing,
    "_checkpoint_without_reentrant_generator_impl": _nothing,  # from torch 2.14 on
}
_STRAIGHT = Held(_straight)


def uncheckpointed() -> AbstractContextManager[None]:
    """While open, `torch.utils.checkpoint` runs what it is given once, as a plain call: gradients pass through it.

    Otherwise it runs a part of a model without a graph, or once more in the backward pass, where hooks hear it again.
    The output is the same; memory is what the model takes without checkpoints.
    """
    return _STRAIGHT
