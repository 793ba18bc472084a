"""Spelling: which operations of a module's forward are its attention, and how their tensors lie; plain data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from headscope.anatomy.layout import Layout

__all__ = ["RESULT", "Part", "Pick", "Spelling", "Weighting"]

RESULT = -1


@dataclass(frozen=True, slots=True)
class Pick:
    """One tensor of one operation.

    Attributes:
        operation: its name, as `headscope.anatomy.operations.name_of` spells it.
        nth: how many of that name ran before it in the same call of the module.
        place: which of its tensor arguments; -1 for its result.
    """

    operation: str
    nth: int
    place: int = RESULT

    @property
    def call(self) -> tuple[str, int]:
        return self.operation, self.nth


@dataclass(frozen=True, slots=True)
class Part:
    """Attention over some heads of a site, mostly all of them: softmax(q·kᵀ)·v.

    Attributes:
        picks: of "q", "k", "v", "z"; and unless it is one fused call, of "pattern", of "met" (the map as it meets the
            values, after dropout), of "logits" (the softmax's input) and of "product" (the bare q·kᵀ).
        layouts: of the same; the logits lie as the pattern does, and "product" may lie in no regular way.
        late: whether the pattern is not made as such: it is divided by its sum only after it has met the values.
        summed: whether several products of queries and keys make its scores, so that q and k are not all of them.
    """

    picks: Mapping[str, Pick]
    layouts: Mapping[str, Layout]
    late: bool = False
    summed: bool = False

    @property
    def fused(self) -> bool:
        return "pattern" not in self.picks

    def to_json(self) -> dict[str, Any]:
        return {
            "picks": {name: asdict(pick) for name, pick in self.picks.items()},
            "layouts": {name: layout.to_json() for name, layout in self.layouts.items()},
            "late": self.late,
            "summed": self.summed,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            {name: Pick(**pick) for name, pick in data["picks"].items()},
            {name: Layout.from_json(layout) for name, layout in data["layouts"].items()},
            data["late"],
            data.get("summed", False),
        )


@dataclass(frozen=True, slots=True)
class Weighting:
    """An operation that acts as a linear layer without being a module: it weights data by a parameter.

    Attributes:
        pick: the data that enters.
        parameter: dotted name of the parameter.
        layout: from the parameter to (out, in), as einops writes it; "" where it lies like that.
        first: row of that matrix from which on the operation uses it (of q, k and v packed into one, say).
        entering, leaving: the axes of what enters and of the result that hold features, in the matrix's order.
    """

    pick: Pick
    parameter: str
    layout: str
    first: int
    entering: tuple[int, ...]
    leaving: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        lists = {name: tuple(data[name]) for name in ("entering", "leaving")}
        return cls(**dict(data) | {"pick": Pick(**data["pick"])} | lists)


@dataclass(frozen=True, slots=True)
class Spelling:
    """One site written by hand.

    Attributes:
        parts: its heads, those that are computed together in one part.
        weightings: operations of the same call that act as linear layers without being modules.
        output: which of these reads z; None where a module does.
        totals: how often the operations that make maps run in such a call, by name: a forward that goes through a long
            text piece by piece runs them more often, and would be seen in part.
    """

    parts: tuple[Part, ...]
    weightings: tuple[Weighting, ...] = ()
    output: int | None = None
    totals: Mapping[str, int] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "parts": [part.to_json() for part in self.parts],
            "weightings": [one.to_json() for one in self.weightings],
            "output": self.output,
            "totals": dict(self.totals),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            tuple(map(Part.from_json, data["parts"])),
            tuple(map(Weighting.from_json, data["weightings"])),
            data["output"],
            dict(data.get("totals", {})),
        )
