"""Layout: how a model's own tensor lies, and the way to (batch, head, position, dim) and such, as text.

"(b h) t d -> b h t d": which axis of the tensor holds what, and where it goes, as einops writes it. It is read off the
coordinates of each number, and kept only if it puts every number of the probe where it belongs.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from einops import rearrange
from torch import Tensor

__all__ = ["Coordinates", "IrregularError", "Layout"]

Coordinates = Mapping[str, Tensor]
"""For each kind of axis ("b", "h", "t" …) the place of each number along it, -1 where it has none; all of one shape."""


class IrregularError(Exception):
    """Numbers do not lie in a grid of axes."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How to bring a tensor into the order in which headscope has it.

    Attributes:
        pattern: as einops writes it.
        sizes: of the axes that are told by no tensor: numbers of heads.
        cut: along the last axis, how much of its start and of its end does not belong to it (a sink, say).
    """

    pattern: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    cut: tuple[int, int] = (0, 0)

    def read(self, tensor: Tensor) -> Tensor:
        """The tensor in headscope's order."""
        out: Tensor = rearrange(tensor, self.pattern, **self.sizes)
        start, end = self.cut
        return out[..., start : out.shape[-1] - end] if start or end else out

    def write(self, tensor: Tensor, like: Tensor) -> Tensor:
        """The way back: a tensor in headscope's order, as one like this lies."""
        here, there = self.pattern.split(" -> ")
        sizes = dict(self.sizes)
        for axis, size in zip(_axes(here), like.shape, strict=True):
            free = [name for name in axis if name not in sizes]
            known = math.prod(sizes[name] for name in axis if name in sizes)
            sizes |= dict.fromkeys(free, size // known)  # one at most: else it could not be read either
        out: Tensor = rearrange(tensor, f"{there} -> {here}", **{name: sizes[name] for name in sizes if name in there})
        return out

    def to_json(self) -> dict[str, Any]:
        return {"pattern": self.pattern, "sizes": dict(self.sizes), "cut": list(self.cut)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(data["pattern"], dict(data["sizes"]), tuple(data["cut"]))

    @classmethod
    def of(cls, coordinates: Coordinates, order: Sequence[str]) -> Self:
        """The layout of a tensor from the coordinates of its numbers.

        Args:
            coordinates: by kind; a kind without any is one that the tensor does not have.
            order: the kinds in headscope's order.

        Raises:
            IrregularError: they do not lie in a grid.
        """
        shape = next(iter(coordinates.values())).shape
        valid = torch.stack([places >= 0 for places in coordinates.values()]).all(0)
        if not bool(valid.any()):
            raise IrregularError("none of its numbers is used")
        base: list[Any] = torch.nonzero(valid)[0].tolist()
        axes = [_factors(axis, size, coordinates, base) for axis, size in enumerate(shape)]
        names, steps, sizes = _named(axes)
        left = " ".join("1" if not own else own[0] if len(own) == 1 else f"({' '.join(own)})" for own in names)
        parts = {
            kind: sorted((n for own in names for n in own if n[0] == kind), key=lambda n: -steps[n]) for kind in order
        }
        right = " ".join(
            "1" if not own else own[0] if len(own) == 1 else f"({' '.join(own)})" for own in parts.values()
        )
        found = cls(f"{left} -> {right}", {name: size for name, size in sizes.items() if name[0] == "h"})
        return cls(found.pattern, found.sizes, _proven(found, coordinates, order, sizes))


def _axes(pattern: str) -> list[list[str]]:
    """Names by axis, of one side of a pattern: "(b h) t 1" are [b, h], [t] and none."""
    parts = re.findall(r"\([^)]*\)|\S+", pattern)
    return [[name for name in part.strip("()").split() if name != "1"] for part in parts]


@dataclass(frozen=True, slots=True)
class _Factor:
    kind: str
    size: int
    step: int


def _factors(axis: int, size: int, coordinates: Coordinates, base: list[Any]) -> list[_Factor]:
    """What one axis holds, outermost first: the kinds that change along it, the slowest first."""
    line = (*base[:axis], slice(None), *base[axis + 1 :])
    changing: list[tuple[int, int, str]] = []
    for kind, places in coordinates.items():
        own = places[line].tolist()
        start = next(index for index, place in enumerate(own) if place >= 0)
        change = next((i for i in range(start, size) if own[i] >= 0 and own[i] != own[start]), None)
        if change is not None:
            changing.append((change - start, own[change] - own[start], kind))
    changing.sort(reverse=True)
    if changing and changing[-1][0] != 1:
        raise IrregularError(f"numbers of one {changing[-1][2]!r} stand side by side on an axis of their own")
    found, outer = [], size
    for stride, step, kind in changing:
        if outer % stride:
            raise IrregularError(f"an axis of {size} does not fall into equal parts")
        found.append(_Factor(kind, outer // stride, step))
        outer = stride
    return found


def _named(axes: list[list[_Factor]]) -> tuple[list[list[str]], dict[str, int], dict[str, int]]:
    names: list[list[str]] = []
    steps: dict[str, int] = {}
    sizes: dict[str, int] = {}
    many = {
        factor.kind: sum(other.kind == factor.kind for own in axes for other in own) for own in axes for factor in own
    }
    for own in axes:
        names.append([])
        for factor in own:
            count = sum(name[0] == factor.kind for name in steps)
            name = factor.kind if many[factor.kind] == 1 else f"{factor.kind}{count + 1}"
            names[-1].append(name)
            steps[name], sizes[name] = factor.step, factor.size
    return names, steps, sizes


def _proven(
    layout: Layout, coordinates: Coordinates, order: Sequence[str], sizes: Mapping[str, int]
) -> tuple[int, int]:
    """Read the coordinates themselves: each must count along its own axis. Returns what to cut off the last one."""
    cut = (0, 0)
    for axis, kind in enumerate(order):
        if kind not in coordinates:
            continue
        places = rearrange(coordinates[kind], layout.pattern, **sizes)
        shape = [1] * places.ndim
        shape[axis] = places.shape[axis]
        count = torch.arange(places.shape[axis]).view(shape)
        used = places >= 0
        if axis == places.ndim - 1:
            columns = torch.nonzero(used.flatten(0, -2).any(0)).flatten()
            cut = (int(columns[0]), places.shape[-1] - 1 - int(columns[-1]))
            count = count - cut[0]
        if not bool((places == count)[used].all()):
            raise IrregularError(f"the {kind!r} axis is not counted through")
    return cut
