"""Sightings: attention calls as the probe saw them, by modules; sites have names in their place."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from headscope.anatomy.graph import HeadRows
from headscope.anatomy.standing import Standing

__all__ = ["TENSORS", "Layer", "Leaf", "Sighting"]

TENSORS = ("q", "k", "v", "pattern", "z", "bias", "gated_z", "contribution", "written")  # that may be asked for


class Layer(NamedTuple):
    """A linear layer: a module; or a parameter that a forward weights data by, and how it lies there."""

    module: nn.Module
    parameter: str = "weight"
    layout: str = ""


@dataclass
class Sighting:
    """One attention call as the probe saw it; modules where `Site` has names."""

    module: nn.Module
    call: int
    route: str
    kind: str
    n_heads: int
    n_kv_heads: int
    n_value_heads: int
    head_dim: int
    value_dim: int
    scaling: float
    kv_of_query: tuple[int, ...]
    query: dict[Layer, HeadRows]
    key: dict[Layer, HeadRows]
    value: dict[Layer, HeadRows]
    z: Tensor
    finite: bool
    spelled: str
    output: tuple[Layer, HeadRows] | None = None
    rows: str = "b t"
    output_call: int = 0
    output_runs: int = 0
    gated: bool = False
    entangled: list[str] = field(default_factory=list)
    may_be_positions: bool = False
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    copied: tuple[str, ...] = ()
    batch: str = "b"
    standing: Standing | None = None
    lands: range = range(0)
    made: list[tuple[GradientEdge, Callable[[Tensor], Tensor]]] = field(default_factory=list)

    def refuse_all(self, reason: str) -> None:
        """Nothing of this site can be had."""
        self.refused |= dict.fromkeys(TENSORS, reason)
        self.entangled = list(dict.fromkeys([*self.entangled, "o"]))

    def refuse_output(self, reason: str, *more: str) -> None:
        """What its heads write cannot be had, nor these."""
        self.refused |= dict.fromkeys(("contribution", "written", *more), reason)
        self.entangled = list(dict.fromkeys([*self.entangled, "o"]))


@dataclass(frozen=True, eq=False)
class Leaf:
    """What a linear layer put out: the graph of what comes after begins there."""

    layer: Layer
    tensor: Tensor
    features: tuple[int, ...]
    first: int
    entering: Tensor | None
