"""A cut as data: a tuple of edits, each one change to one module, with a JSON form that can be replayed.

Edits are made by looking at one model and applied by one function, to a copy of it now or to a fresh model when a saved
one is loaded.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from headscope.anatomy.linear import stores_transposed
from headscope.errors import SurgeryError
from headscope.surgery.pytorch import narrow_attention, pack_by_hand
from headscope.surgery.replacements import empty_attention, map_groups, repair_sizes

__all__ = [
    "Edit",
    "EmptyAttention",
    "MapGroups",
    "NarrowAttention",
    "PackByHand",
    "RepairSizes",
    "SetAttribute",
    "SliceInput",
    "SliceOutput",
    "apply_edits",
    "edits_from_json",
    "runs",
]

Runs = tuple[tuple[int, int], ...]

_WIDTHS = {"output": ("out_features", "nf", "out_channels"), "input": ("in_features", "nx", "in_channels")}


def runs(indices: Collection[int]) -> Runs:
    """Indices as sorted (start, stop) runs: a head's 64 rows are one pair in the file, not 64 numbers.

    >>> runs({7, 0, 1, 2})
    ((0, 3), (7, 8))
    """
    starts = sorted(index for index in indices if index - 1 not in indices)
    stops = sorted(index + 1 for index in indices if index + 1 not in indices)
    return tuple(zip(starts, stops, strict=True))


@dataclass(frozen=True)
class Edit(ABC):
    """One change to one module.

    Attributes:
        module: dotted name of the module that it changes, "" for the whole model.
    """

    kind: ClassVar[str]
    module: str

    @abstractmethod
    def apply(self, module: nn.Module) -> None:
        """Make the change.

        Raises:
            SurgeryError: the module is not the one that the edit was made for.
        """

    def within(self, unit: str) -> Self:
        """The same edit as seen from a module above: names are relative to it."""
        return replace(self, module=self.module[len(unit) :].lstrip("."))

    def to_json(self) -> dict[str, Any]:
        return {"edit": self.kind, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(**{part.name: _tuples(data[part.name]) for part in fields(cls)})


@dataclass(frozen=True)
class SliceOutput(Edit):
    """Keep some rows of a linear layer: weight, bias and the attribute that counts them.

    Attributes:
        keep: the rows that stay, as (start, stop) runs.
        size: how many rows there were.
    """

    kind: ClassVar[str] = "slice_output"
    keep: Runs
    size: int

    def apply(self, module: nn.Module) -> None:
        _slice(module, self, "output", 1 if stores_transposed(module) else 0)


@dataclass(frozen=True)
class SliceInput(Edit):
    """Keep some columns of a linear layer; `keep` and `size` as in `SliceOutput`."""

    kind: ClassVar[str] = "slice_input"
    keep: Runs
    size: int

    def apply(self, module: nn.Module) -> None:
        _slice(module, self, "input", 0 if stores_transposed(module) else 1)


@dataclass(frozen=True)
class SetAttribute(Edit):
    """Put an integer right that a module computes its shapes from."""

    kind: ClassVar[str] = "set_attribute"
    name: str
    value: int
    was: int

    def apply(self, module: nn.Module) -> None:
        found = getattr(module, self.name, None)
        if found != self.was:
            raise SurgeryError(f"{self.module}.{self.name} is {found}; expected {self.was}")
        setattr(module, self.name, self.value)


@dataclass(frozen=True)
class MapGroups(Edit):
    """Let query heads share key heads unevenly; see `map_groups`."""

    kind: ClassVar[str] = "map_groups"
    kv_of_query: tuple[int, ...]

    def apply(self, module: nn.Module) -> None:
        map_groups(module, self.kv_of_query)


@dataclass(frozen=True)
class EmptyAttention(Edit):
    """Let a module without heads return its output projection's bias; see `empty_attention`."""

    kind: ClassVar[str] = "empty_attention"
    projection: str | None
    returns: tuple[str, ...] | None
    keeps_cache: bool

    def apply(self, module: nn.Module) -> None:
        empty_attention(module, self.projection, self.returns, self.keeps_cache)


@dataclass(frozen=True)
class RepairSizes(Edit):
    """Put sizes right that a module writes out in its forward; see `repair_sizes`."""

    kind: ClassVar[str] = "repair_sizes"
    sizes: tuple[tuple[int, int], ...]

    def apply(self, module: nn.Module) -> None:
        repair_sizes(module, self.sizes)


@dataclass(frozen=True)
class NarrowAttention(Edit):
    """Keep some heads of an `nn.MultiheadAttention`; see `narrow_attention`.

    Attributes:
        keep: positions of the heads that stay.
        heads: how many there were.
    """

    kind: ClassVar[str] = "narrow_attention"
    keep: tuple[int, ...]
    heads: int

    def apply(self, module: nn.Module) -> None:
        if not isinstance(module, nn.MultiheadAttention) or module.num_heads != self.heads:
            raise SurgeryError(f"{self.module} is no nn.MultiheadAttention of {self.heads} heads")
        narrow_attention(module, self.keep)


@dataclass(frozen=True)
class PackByHand(Edit):
    """Let an `nn.TransformerEncoder` leave zeros in the padding as before; see `pack_by_hand`."""

    kind: ClassVar[str] = "pack_by_hand"

    def apply(self, module: nn.Module) -> None:
        if not isinstance(module, nn.TransformerEncoder):
            raise SurgeryError(f"{self.module} is no nn.TransformerEncoder")
        pack_by_hand(module)


_KINDS: Mapping[str, type[Edit]] = {
    kind.kind: kind
    for kind in (
        SliceOutput,
        SliceInput,
        SetAttribute,
        MapGroups,
        EmptyAttention,
        RepairSizes,
        NarrowAttention,
        PackByHand,
    )
}


def apply_edits(edits: Iterable[Edit], model: nn.Module) -> None:
    """Change a model in place, edit by edit.

    Raises:
        SurgeryError: a module is missing, or is not the one that its edit was made for.
    """
    with torch.no_grad():
        for edit in edits:
            try:
                module = model.get_submodule(edit.module)
            except AttributeError as error:
                raise SurgeryError(f"{type(model).__name__} has no module {edit.module!r}: {error}") from error
            edit.apply(module)


def edits_from_json(data: Iterable[Mapping[str, Any]]) -> tuple[Edit, ...]:
    """Edits from the JSON form in which a `Record` holds them.

    Raises:
        KeyError: a kind or a field that does not exist.
    """
    return tuple(_KINDS[part["edit"]].from_json(part) for part in data)


def _slice(module: nn.Module, edit: SliceOutput | SliceInput, side: str, axis: int) -> None:
    parameters = {name for name, parameter in module._parameters.items() if parameter is not None}
    if not {"weight"} <= parameters <= {"weight", "bias"} or getattr(module, "groups", 1) != 1:
        raise SurgeryError(
            f"{edit.module} ({type(module).__name__}) cannot be sliced: it holds {', '.join(sorted(parameters))} or "
            "works in groups, and only plain weight and bias are understood; merge adapters into the weight, or "
            "dequantise the model, first"
        )
    weight = module.get_parameter("weight")
    if weight.shape[axis] != edit.size:
        raise SurgeryError(f"{edit.module} has {weight.shape[axis]} {side} features; expected {edit.size}")
    keep = torch.tensor([index for start, stop in edit.keep for index in range(start, stop)], dtype=torch.long)
    _set_parameter(module, "weight", weight, axis, keep)
    if side == "output" and "bias" in parameters:
        _set_parameter(module, "bias", module.get_parameter("bias"), 0, keep)
    for name in _WIDTHS[side]:
        if hasattr(module, name):
            setattr(module, name, len(keep))


def _set_parameter(module: nn.Module, name: str, old: Tensor, axis: int, keep: Tensor) -> None:
    new = old.detach().index_select(axis, keep.to(old.device)).clone()
    setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
