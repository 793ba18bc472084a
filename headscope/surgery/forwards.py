"""A forward of its own for one module instance, which goes wherever the module goes: copies, pickles, processes."""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["replace_forward"]


def replace_forward(module: nn.Module, run: Callable[..., Any], *settings: Any) -> None:
    """Let a module run something else than its class's forward, and take what that takes.

    Args:
        module: keeps its class and its place.
        run: called with the module, the settings and what the module is given; a function that can be imported.
        settings: what else it needs; they are copied, moved and pickled with the module.
    """
    module.__dict__["forward"] = _Replaced(run, module, *settings)


class _Replaced(functools.partial[Any]):
    """Not a method: pickle knows methods by their names, and would read the class's own forward back without a word."""

    @property
    def __signature__(self) -> inspect.Signature:
        module = self.args[0]
        return inspect.signature(types.MethodType(type(module).forward, module))
