"""A forward of its own for one module instance, which goes wherever the module goes: copies, pickles, processes."""

import copy
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from headscope.surgery.kept import kept_tensors

__all__ = ["copied", "parameters_of", "replace_forward", "run_inner"]

Module = TypeVar("Module", bound=nn.Module)


def copied(model: Module) -> Module:
    """A deep copy whose modules run themselves, and whose parameters keep what users noted on them.

    What `module.forward = torch.compile(module.forward)` leaves there is bound to the module that it was made of, and
    would run that one in the copy too; the copy gets the plain method back.

    Args:
        model: a model or a part of one.
    """
    # what a model keeps for the next call may hang on a graph, which cannot be copied
    kept = [*(one.tensor for one in kept_tensors(model).values()), *model.buffers()]
    twin = copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in kept if not tensor.is_leaf})
    for module, own in zip(model.modules(), twin.modules(), strict=True):
        inner = getattr(vars(module).get("forward"), "_torchdynamo_orig_callable", None)
        if isinstance(inner, types.MethodType) and inner.__self__ is module:
            own.__dict__["forward"] = types.MethodType(inner.__func__, own)
    for parameter, own_parameter in zip(model.parameters(), twin.parameters(), strict=True):
        if type(parameter) is nn.Parameter:  # PyTorch copies its numbers alone
            own_parameter.__dict__.update(parameter.__dict__)
    return twin


def replace_forward(module: nn.Module, run: Callable[..., Any], *settings: Any) -> None:
    """Let a module run something else than its class's forward, and take what that takes.

    What runs there already is handed to it as `inner`; where that is of the same kind, it takes its place.

    Args:
        module: keeps its class and its place.
        run: called with the module, `inner`, the settings and what the module is given; a function that can be
            imported.
        settings: what else it needs; they are copied, moved and pickled with the module.
    """
    module.__dict__["forward"] = _Replaced(run, module, _without(run, module.__dict__.get("forward")), *settings)


def _without(run: Callable[..., Any], forward: Any) -> Any:
    """What runs on a module, without what `run` had been told to do there before."""
    if not isinstance(forward, _Replaced):
        return forward
    module, inner, *settings = forward.args
    inner = _without(run, inner)
    return inner if forward.func is run else _Replaced(forward.func, module, inner, *settings)


def run_inner(module: nn.Module, inner: Any, *args: Any, **kwargs: Any) -> Any:
    """What a module would run without its replacement."""
    return type(module).forward(module, *args, **kwargs) if inner is None else inner(*args, **kwargs)


class _Replaced(functools.partial[Any]):
    """Not a method: pickle knows methods by their names, and would read the class's own forward back without a word."""

    @property
    def __signature__(self) -> inspect.Signature:
        module = self.args[0]
        return inspect.signature(types.MethodType(type(module).forward, module))


def parameters_of(module: nn.Module) -> list[str]:
    """Names of what a module's own forward takes, in order, whatever has been done to the module."""
    return list(inspect.signature(types.MethodType(type(module).forward, module)).parameters)
