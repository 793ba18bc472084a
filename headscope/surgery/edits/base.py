"""A cut as data: a tuple of edits, each one change to one module, with a JSON form that can be replayed.

Edits are made by looking at one model and applied by one function, to a copy of it now or to a fresh model when a saved
one is loaded.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import nn

from headscope._support.registry import Registry
from headscope.errors import SurgeryError

__all__ = ["EDITS", "Edit", "Runs", "apply_edits", "edits_from_json", "indices_of", "runs", "shared_names", "untied"]

Runs = tuple[tuple[int, int], ...]


def runs(indices: Collection[int]) -> Runs:
    """Indices as sorted (start, stop) runs: a head's 64 rows are one pair in the file, not 64 numbers.

    >>> runs({7, 0, 1, 2})
    ((0, 3), (7, 8))
    """
    starts = sorted(index for index in indices if index - 1 not in indices)
    stops = sorted(index + 1 for index in indices if index + 1 not in indices)
    return tuple(zip(starts, stops, strict=True))


def indices_of(own: Runs) -> list[int]:
    """The way back.

    >>> indices_of(((0, 3), (7, 8)))
    [0, 1, 2, 7]
    """
    return [index for start, stop in own for index in range(start, stop)]


@dataclass(frozen=True)
class Edit(ABC):
    """One change to one module.

    Attributes:
        module: dotted name of the module that it changes, "" for the whole model.
        while_it_runs: whether what it changes is changed as the module's forward runs, and not after: what PyTorch
            computes again for gradients (torch.utils.checkpoint) would not be.
    """

    module: str
    while_it_runs: ClassVar[bool] = False

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
        return {"edit": EDITS.name_of(self), **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        own = (part for part in fields(cls) if part.name in data or part.default is MISSING)
        return cls(**{part.name: _tuples(data[part.name]) for part in own})


EDITS: Registry[Edit] = Registry("edit", "headscope.surgery.edits")


def apply_edits(edits: Iterable[Edit], model: nn.Module) -> None:
    """Change a model in place, edit by edit; parameters that modules had in common and that became the same stay so.

    Raises:
        SurgeryError: a module is missing, or is not the one that its edit was made for.
    """
    shared = shared_names(model)
    with torch.no_grad():
        for edit in edits:
            try:
                module = model.get_submodule(edit.module)
            except AttributeError as error:
                raise SurgeryError(f"{type(model).__name__} has no module {edit.module!r}: {error}") from error
            edit.apply(module)
        for places in shared:
            _share(model, places)


def shared_names(model: nn.Module) -> list[list[str]]:
    """Names of one parameter that several modules hold; a module that stands in several places has the first name.

    Args:
        model: a model or a part of one.
    """
    names: dict[nn.Parameter, list[str]] = {}
    for path, module in model.named_modules():
        for own, parameter in module._parameters.items():
            if parameter is not None:
                names.setdefault(parameter, []).append(f"{path}.{own}".lstrip("."))
    return [own for own in names.values() if len(own) > 1]


def _share(model: nn.Module, places: Sequence[str]) -> None:
    """Make one parameter of those that were one, if they are equal still."""
    owners = [(model.get_submodule(place.rpartition(".")[0]), place.rpartition(".")[2]) for place in places]
    (first, name), *others = owners
    kept = first._parameters.get(name)
    for module, own in others:
        other = module._parameters.get(own)
        if kept is None or other is None or other is kept or kept.shape != other.shape or kept.device != other.device:
            continue
        if kept.is_meta or torch.equal(kept, other):
            module._parameters[own] = kept


def untied(before: nn.Module, after: nn.Module) -> list[list[str]]:
    """Names under which one parameter stands in a model, and several in what was made of it.

    Args:
        before: the model.
        after: a copy with edits.
    """
    owners = dict(after.named_parameters(remove_duplicate=False))
    return [names for names in shared_names(before) if len({id(owners[name]) for name in names if name in owners}) > 1]


def edits_from_json(data: Iterable[Mapping[str, Any]]) -> tuple[Edit, ...]:
    """Edits from the JSON form in which a `Record` holds them.

    Raises:
        KeyError: a kind or a field that does not exist.
    """
    return tuple(EDITS[part["edit"]].from_json(part) for part in data)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
