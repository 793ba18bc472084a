"""Models that cannot be tried: those without hooks or gradients, that run themselves, or write into their weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from headscope._support.around import around
from headscope.errors import AnatomyError, ModelError

__all__ = ["check_kind", "running_alone"]


def check_kind(model: nn.Module) -> None:
    """Refuse a model that takes no hooks, or whose weights take no gradients.

    Raises:
        AnatomyError: it was made by torch.jit or torch.export.
        ModelError: it was made under inference_mode.
    """
    # what torch.export gives has an eval of its own, which raises
    if isinstance(model, torch.jit.ScriptModule) or (isinstance(model, torch.fx.GraphModule) and "eval" in vars(model)):
        raise AnatomyError(
            f"{type(model).__name__} is what torch.jit or torch.export made of a model, and takes no hooks; pass the "
            "model that it was made of"
        )
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ModelError(
            f"{type(model).__name__} was made under torch.inference_mode(), and such weights take no gradients, by "
            "which heads are found; load it outside of that, or pass a copy.deepcopy of it that is made outside"
        )


@contextmanager
def running_alone(model: nn.Module) -> Iterator[None]:
    """While open, a forward that runs itself, or writes into its own weights, is noted, and refused at the end.

    Raises:
        AnatomyError: it does: neither can be compared with itself.
    """
    inside = deepest = 0

    def enter(*_: object) -> None:
        nonlocal inside, deepest
        inside += 1
        deepest = max(deepest, inside)

    def leave() -> None:
        nonlocal inside
        inside -= 1

    before = {name: one._version for name, one in model.named_parameters()}
    with around(model, before=enter, leave=leave):
        yield
    if deepest > 1:
        raise AnatomyError(
            f"{type(model).__name__} runs itself within its own forward, so which of its heads are meant is not known; "
            "pass the module that it runs, or put the outer part into one of its own"
        )
    written = next((name for name, one in model.named_parameters() if one._version != before.get(name)), None)
    if written is not None:
        raise AnatomyError(
            f"{type(model).__name__} writes into its own weights while it runs ({written}), so that no two runs are "
            "alike; switch that off, or pass the part of it that does not"
        )
