"""Weights that are no numbers, refused by name: what is made of them would be no number, or a wrong one."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headscope.errors import NumericalError

__all__ = ["check_finite", "check_weights"]


def check_weights(model: nn.Module) -> None:
    """Refuse a model with NaN or infinity in its weights.

    Raises:
        NumericalError: naming the first such parameter or buffer.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        # a sum is one pass and no copy; only a suspicious one is looked at closely (masks may hold infinities)
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.sum())):
            bad = torch.isnan(tensor) if name in dict(model.named_buffers()) else ~torch.isfinite(tensor)
            if bool(bad.any()):
                raise NumericalError(
                    f"{name} of {type(model).__name__} holds NaN or infinity; was the file damaged, or did training "
                    "diverge?"
                )


def check_finite(name: str, weight: Float[Tensor, "out in"]) -> None:
    """Refuse one layer's weight that holds NaN or infinity.

    Raises:
        NumericalError: it does.
    """
    if not bool(weight.isfinite().all()):
        raise NumericalError(f"the weight of {name} holds NaN or infinity; was the model loaded or trained right?")
