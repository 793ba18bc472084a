"""Models that cannot be tried: those without hooks or gradients, that run themselves, or write into their weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

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

    before = _corners(model)
    with around(model, before=enter, leave=leave):
        try:
            yield
        except ModelError as error:
            if _IN_PLACE in str(error.__cause__):
                raise AnatomyError(_WRITES.format(type(model).__name__, "in place")) from error
            raise
    if deepest > 1:
        raise AnatomyError(
            f"{type(model).__name__} runs itself within its own forward, so which of its heads are meant is not known; "
            "pass the module that it runs, or put the outer part into one of its own"
        )
    after = _corners(model)
    written = next((name for name in before if name in after and not torch.equal(before[name], after[name])), None)
    if written is not None:
        raise AnatomyError(_WRITES.format(type(model).__name__, written))


_IN_PLACE = "a leaf Variable that requires grad is being used in an in-place operation"
_WRITES = (
    "{} writes into its own weights while it runs ({}), so that no two runs are alike, and what it wrote stays; switch "
    "that off, or pass the part of it that does not"
)
_FEW = 64  # numbers of each weight: what averages weights moves all of them


def _corners(model: nn.Module) -> dict[str, Tensor]:
    """The first numbers of each weight, as bytes: NaN is no other number than itself."""
    known = ((name, one) for name, one in model.named_parameters() if type(one) is nn.Parameter and not one.is_meta)
    return {name: one.detach().flatten()[:_FEW].clone().view(torch.uint8) for name, one in known}
