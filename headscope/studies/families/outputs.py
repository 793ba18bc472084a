"""Outputs of a model as bare tensors, and how far two are apart: what checks here rest on, without headscope's own."""

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from headscope._support.running import evaluating

__all__ = [
    "apart",
    "complaint_of",
    "features_last",
    "finer",
    "floats",
    "outputs_of",
    "same",
    "takes_more",
    "with_settings",
]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SEED = 7  # some models draw in evaluation too
_LEFT_OUT = ("past_key_values", "cache_params", "attentions", "cache")  # by the end of a name


def with_settings(model: nn.Module, example: Mapping[str, Any]) -> dict[str, Any]:
    """An example with what keeps a model from making a cache.

    Args:
        model: the model.
        example: arguments of its forward.
    """
    takes = "use_cache" in inspect.signature(model.forward).parameters
    return {**({"use_cache": False} if takes else {}), **example}


def takes_more(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether a forward takes arguments that it does not name, and was not told to make no cache.

    Args:
        model: the model.
        inputs: arguments of its forward.
    """
    known = inspect.signature(model.forward).parameters.values()
    return "use_cache" not in inputs and any(one.kind is one.VAR_KEYWORD for one in known)


def outputs_of(model: nn.Module, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Float tensors of the output in evaluation mode, without maps and caches; the same whenever it is called.

    Args:
        model: left as it was.
        inputs: arguments of its forward.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad(), evaluating(model):
        torch.manual_seed(_SEED)
        return [one.detach().clone() for one in floats(model(**inputs))]


def floats(output: Any) -> list[Tensor]:
    """Float tensors of an output, however deep, in their order.

    Args:
        output: of a forward.
    """
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        return [one for name, part in output.items() if not str(name).endswith(_LEFT_OUT) for one in floats(part)]
    if isinstance(output, list | tuple):
        return [one for part in output for one in floats(part)]
    return []


def complaint_of(model: nn.Module, inputs: Mapping[str, Any]) -> str:
    """Why a model gives nothing on an input, "" where it runs and gives a finite number.

    Args:
        model: the model.
        inputs: arguments of its forward.
    """
    try:
        made = outputs_of(model, inputs)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if not made:
        return "it gives no float tensor"
    return "" if any(bool(one.isfinite().any()) for one in made) else "it gives nothing but NaN or infinity"


def features_last(projection: nn.Module, tensor: Tensor) -> Tensor:
    """What a projection takes or gives as (…, position, feature): convolutions have their features second.

    Args:
        projection: a linear layer, or a convolution of width 1.
        tensor: its input or output.
    """
    return tensor.movedim(1, -1).flatten(1, -2) if isinstance(projection, _CONVOLUTIONS) else tensor


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether outputs are equal to the last bit, NaN where the other has NaN.

    Args:
        first: some outputs.
        second: others.
    """
    return len(first) == len(second) and all(
        a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
        for a, b in zip(first, second, strict=True)
    )


def apart(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Largest difference between outputs; infinity where they cannot be compared.

    Args:
        first: some outputs.
        second: others, of the same shapes.
    """
    if not first or [one.shape for one in first] != [one.shape for one in second]:
        return math.inf
    return max(_gap(a.double(), b.double()) for a, b in zip(first, second, strict=True))


def _gap(a: Tensor, b: Tensor) -> float:
    gap = (a - b).abs()
    gap[(a == b) | (a.isnan() & b.isnan())] = 0  # infinities of one sign too
    return float(gap.nan_to_num_(math.inf, math.inf).max()) if gap.numel() else 0.0


def finer(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """A copy of a model in float64, and its inputs.

    Args:
        model: left as it was.
        inputs: arguments of its forward.
    """

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.double() if value.is_floating_point() else value
        if isinstance(value, Mapping):
            return {name: moved(part) for name, part in value.items()}
        return type(value)(map(moved, value)) if type(value) in (list, tuple) else value

    return copy.deepcopy(model).double(), {name: moved(value) for name, value in inputs.items()}
