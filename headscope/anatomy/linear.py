"""Linear layers as a probe and a surgeon see them: rows are outputs, columns are inputs, however weights are stored.

A layer is what acts as one: an adapter around a projection, and what quantisation put in its place, are the layer, and
its weight is what the whole of it does.
"""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from headscope._support.running import evaluating
from headscope.anatomy.check import tolerance
from headscope.anatomy.route import claiming
from headscope.errors import AnatomyError

__all__ = [
    "NEARLY",
    "is_linear",
    "is_plain",
    "layer_matrix",
    "linear_layers",
    "matrix",
    "row_size",
    "stores_transposed",
]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SIZES = (("in_features", "out_features"), ("infeatures", "outfeatures"), ("nx", "nf"))
NEARLY = 3e-2  # of the largest entry: what a layer that rounds its input may differ from the matrix read off it


def is_linear(module: nn.Module) -> bool:
    """Linear layers, transformers' Conv1D, convolutions, and whatever says how many features enter and leave it."""
    if isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
        return True
    if any(all(isinstance(getattr(module, side, None), int) for side in pair) for pair in _SIZES):
        return not isinstance(module, nn.Bilinear)
    weight: Any = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and type(module).__name__.endswith(("Linear", "Conv1D"))


def linear_layers(model: nn.Module) -> list[nn.Module]:
    """The linear layers of a model; of those inside each other (an adapter's), the outermost."""
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in model.modules():  # parents come first
        if module not in inside and is_linear(module):
            found.append(module)
            inside.update(module.modules())
    return found


def is_plain(module: nn.Module) -> bool:
    """Whether the layer is its weight: a matrix of numbers, read by its class's own forward and nothing else."""
    weight = module._parameters.get("weight")
    if weight is None or type(weight) not in (nn.Parameter, Tensor) or not weight.is_floating_point() or weight.is_meta:
        return False
    known = {nn.Linear.forward, *(kind.forward for kind in _CONVOLUTIONS)}
    if (type(module).forward in known or type(module).__name__ == "Conv1D") and "forward" not in vars(module):
        return True
    return isinstance(module, nn.Linear) and _does_as_its_weight(module, weight)


def _does_as_its_weight(module: nn.Linear, weight: Tensor) -> bool:
    """Whether a linear layer with a forward of its own gives what its weight and bias would."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, module.in_features, generator=generator).to(weight.device, weight.dtype)
    try:
        with claiming(), torch.no_grad(), evaluating(module):
            gap = (module(x) - nn.functional.linear(x, weight, module.bias)).abs().max()
            return bool(gap <= tolerance(weight.dtype) * weight.abs().max())
    except Exception:  # whatever its forward needs beside
        return False


def stores_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored (in, out), as transformers' Conv1D of GPT-2 does."""
    return type(module).__name__ == "Conv1D"


def matrix(module: nn.Module, name: str = "") -> Float[Tensor, "out in"]:
    """The layer's map as (out, in): its weight, or where the layer does more than that, what it does to a basis.

    Args:
        module: a linear layer.
        name: its dotted name, for the message.

    Raises:
        AnatomyError: it has no weight of its own, and is not a linear map either.
    """
    if is_plain(module):
        weight: Any = module.weight  # in a functional call it is no parameter
        return weight.T if stores_transposed(module) else weight.flatten(1)
    if isinstance(module, _CONVOLUTIONS) and "forward" not in vars(module):
        return module.weight.flatten(1)
    return _read_off(module, name or type(module).__name__)


def layer_matrix(module: nn.Module, parameter: str, layout: str, name: str = "") -> Float[Tensor, "out in"]:
    """`matrix` of a layer that may be an operation on a parameter.

    Args:
        module: the layer, or what holds the parameter.
        parameter, layout: of `headscope.sites.Slices`.
        name: the module's dotted name, for the message.
    """
    with evaluating(module):  # weights that are computed as they are read (a spectral norm) move what they keep
        if parameter == "weight" and not layout:
            return matrix(module, name)
        weight: Tensor = getattr(module, parameter)
        return rearrange(weight, layout) if layout else weight


def row_size(module: nn.Module, parameter: str, layout: str, *, column: bool = False) -> int:
    """Numbers that make one row of a layer, its bias among them, or one column; 0 where the layer does not tell.

    Args:
        module, parameter, layout: as in `layer_matrix`.
        column: of a column, which has no bias of its own.
    """
    sizes: list[Any] = [[getattr(module, side, None) for side in pair] for pair in _SIZES]
    told = [pair for pair in sizes if all(isinstance(size, int) for size in pair)]
    weight: Any = module._parameters.get(parameter)
    is_matrix = bool(layout) or (parameter != "weight" and weight is not None and weight.ndim == 2) or is_plain(module)
    if type(weight) is nn.Parameter and is_matrix:
        shape = layer_matrix(module, parameter, layout).shape
    elif told:
        shape = torch.Size(reversed(told[0]))
    else:
        return 0
    bias = getattr(module, parameter.replace("weight", "bias"), None) if "weight" in parameter else None
    return int(shape[0]) if column else int(shape[1]) + isinstance(bias, Tensor)


def _of_rows(module: nn.Module, rows: Tensor) -> Tensor:
    """What a layer makes of each row."""
    if not isinstance(module, _CONVOLUTIONS):
        out: Tensor = module(rows[None])[0]
        return out
    made: Tensor = module(rows.T[None].unflatten(-1, (-1, *[1] * (module.weight.ndim - 3))))
    return made[0].flatten(1).T


def _read_off(module: nn.Module, name: str) -> Float[Tensor, "out in"]:
    weight: Any = getattr(module, "weight", None)
    named = [pair[0] for pair in _SIZES] if not isinstance(module, _CONVOLUTIONS) else ["in_channels"]
    sizes = [int(getattr(module, one)) for one in named if hasattr(module, one)]
    if not sizes and not (isinstance(weight, Tensor) and weight.ndim == 2):
        raise AnatomyError(f"{name} ({type(module).__name__}) does not say how many features enter it")
    width = sizes[0] if sizes else int(weight.shape[-1])
    like = next((p for p in (*module.parameters(), *module.buffers()) if p.is_floating_point()), torch.empty(0))
    device = next((p.device for p in (*module.parameters(), *module.buffers()) if not p.is_meta), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    probes = torch.cat([torch.zeros(1, width), torch.eye(width), torch.randn(4, width, generator=generator)])
    try:
        # claimed: what watches or switches off heads here keeps silent
        with claiming(), torch.no_grad():
            out = _of_rows(module, probes.to(device, like.dtype))
    except Exception as error:
        raise AnatomyError(
            f"{name} ({type(module).__name__}) holds no plain weight, and running it on a basis failed with "
            f"{type(error).__name__}: {error}"
        ) from error
    bias, out = out[0], out[1:] - out[0]
    weight = out[:width].T
    expected = probes[width + 1 :].to(device, out.dtype) @ out[:width]
    gap = float((out[width:] - expected).abs().max())
    if not gap <= NEARLY * max(float(expected.abs().max()), float(bias.abs().max()), 1e-30):
        raise AnatomyError(
            f"{name} ({type(module).__name__}) is taken for a linear layer and is none: what it makes of a random "
            f"input is {gap:.2e} away from what its own matrix gives"
        )
    return weight
