"""Linear layers as a probe and a surgeon see them: rows are outputs, columns are inputs, however weights are stored."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["is_linear", "matrix", "stores_transposed"]


def is_linear(module: nn.Module) -> bool:
    """Linear layers, transformers' Conv1D, convolutions and look-alikes with a weight matrix."""
    if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return True
    weight: Any = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and type(module).__name__.endswith(("Linear", "Conv1D"))


def stores_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored (in, out), as transformers' Conv1D of GPT-2 does."""
    return type(module).__name__ == "Conv1D"


def matrix(module: nn.Module) -> Float[Tensor, "out in"]:
    """The layer's weight as (out, in)."""
    weight: Tensor = module.get_parameter("weight")
    return weight.T if stores_transposed(module) else weight.flatten(1)
