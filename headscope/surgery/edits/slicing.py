"""Edits that make weights smaller: rows and columns of linear layers, parts of other parameters, items of lists."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headscope.anatomy.linear import stores_transposed
from headscope.errors import SurgeryError
from headscope.surgery.edits.base import EDITS, Edit, Runs, indices_of

__all__ = ["COUNTS", "DropItems", "SliceInput", "SliceOutput", "SliceParameter", "part_of_parameter", "slice_layer"]

COUNTS = {"output": ("out_features", "nf", "out_channels"), "input": ("in_features", "nx", "in_channels")}
"""By side of a linear layer, the attributes that count its features."""


@EDITS.register("slice_output")
@dataclass(frozen=True)
class SliceOutput(Edit):
    """Keep some rows of a linear layer: weight, bias and the attribute that counts them.

    Attributes:
        keep: the rows that stay, as (start, stop) runs.
        size: how many rows there were.
    """

    keep: Runs
    size: int

    def apply(self, module: nn.Module) -> None:
        slice_layer(module, self.module, "output", indices_of(self.keep), self.size)


@EDITS.register("slice_input")
@dataclass(frozen=True)
class SliceInput(Edit):
    """Keep some columns of a linear layer; `keep` and `size` as in `SliceOutput`."""

    keep: Runs
    size: int

    def apply(self, module: nn.Module) -> None:
        slice_layer(module, self.module, "input", indices_of(self.keep), self.size)


@EDITS.register("slice_parameter")
@dataclass(frozen=True)
class SliceParameter(Edit):
    """Keep part of a parameter or buffer that is no linear layer's weight: sinks, position tables, norms by head.

    Attributes:
        name: of the parameter in its module.
        axis: along which it is cut.
        keep: the places on that axis that stay, as (start, stop) runs.
        size: how many there were.
        unread: whether nothing read it as the cut was tried: as long as there are heads, it is taken to be theirs.
    """

    name: str
    axis: int
    keep: Runs
    size: int
    unread: bool = False

    @property
    def full_name(self) -> str:
        """Dotted name of the parameter."""
        return f"{self.module}.{self.name}".lstrip(".")

    def apply(self, module: nn.Module) -> None:
        old = module._parameters.get(self.name, module._buffers.get(self.name))
        if old is None or old.ndim <= self.axis or old.shape[self.axis] != self.size:
            found = "missing" if old is None else tuple(old.shape)
            raise SurgeryError(f"{self.module}.{self.name} is {found}; expected {self.size} on axis {self.axis}")
        _keep(module, self.name, old, self.axis, indices_of(self.keep))
        if isinstance(module, nn.Embedding):
            module.num_embeddings, module.embedding_dim = module.weight.shape
        if isinstance(getattr(module, "normalized_shape", None), tuple):
            module.normalized_shape = tuple(getattr(module, self.name).shape)  # type: ignore[assignment]


@EDITS.register("drop_items")
@dataclass(frozen=True)
class DropItems(Edit):
    """Keep some items of an `nn.ModuleList` that has one for each head.

    Attributes:
        keep: places of those that stay.
        size: how many there were.
    """

    keep: tuple[int, ...]
    size: int

    def apply(self, module: nn.Module) -> None:
        if not isinstance(module, nn.ModuleList) or len(module) != self.size:
            raise SurgeryError(f"{self.module} is no nn.ModuleList of {self.size} items")
        kept = [module[place] for place in self.keep]
        del module[:]
        module.extend(kept)


def slice_layer(module: nn.Module, name: str, side: str, keep: Sequence[int], size: int) -> None:
    """Keep some rows ("output") or columns ("input") of a linear layer's weight, and what belongs to them.

    Args:
        module: the layer.
        name: its dotted name, for messages.
        side: "output" or "input".
        keep: the places that stay.
        size: how many there have to be.

    Raises:
        SurgeryError: it is no plain layer, or one of another size.
    """
    parameters = {one for one, parameter in module._parameters.items() if parameter is not None}
    if not {"weight"} <= parameters <= {"weight", "bias"} or getattr(module, "groups", 1) != 1:
        raise SurgeryError(
            f"{name} ({type(module).__name__}) cannot be sliced: it holds {', '.join(sorted(parameters))} or "
            "works in groups, and only plain weight and bias are understood; merge adapters into the weight, or "
            "dequantise the model, first"
        )
    axis = 1 if stores_transposed(module) == (side == "output") else 0
    weight = module.get_parameter("weight")
    if weight.shape[axis] != size:
        raise SurgeryError(f"{name} has {weight.shape[axis]} {side} features; expected {size}")
    _keep(module, "weight", weight, axis, keep)
    if side == "output" and "bias" in parameters:
        _keep(module, "bias", module.get_parameter("bias"), 0, keep)
    for one in COUNTS[side]:
        if hasattr(module, one):
            setattr(module, one, len(keep))


def _keep(module: nn.Module, name: str, old: Tensor, axis: int, keep: Sequence[int]) -> None:
    index = torch.tensor(list(keep), dtype=torch.long)
    if name in module._parameters:
        setattr(module, name, part_of_parameter(old, axis, index))
    else:
        module._buffers[name] = _picked(old, axis, index)


def part_of_parameter(old: Tensor, axis: int, index: Tensor) -> nn.Parameter:
    """A new parameter of some places of one, with what was set on that.

    Args:
        old: the parameter.
        axis: along which places are taken.
        index: of those that stay, on any device.
    """
    parameter = nn.Parameter(_picked(old, axis, index), requires_grad=old.requires_grad)
    parameter.__dict__.update(old.__dict__)  # as users note there that a weight does not decay
    return parameter


def _picked(old: Tensor, axis: int, index: Tensor) -> Tensor:
    return old.detach().index_select(axis, index.to(old.device)).clone()
