"""A route is one way to be told of every attention call that a model makes. A new route is one new file."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from headscope._support.registry import Registry

__all__ = [
    "ROUTES",
    "Call",
    "Place",
    "Receive",
    "Refusal",
    "Route",
    "Scouted",
    "Watch",
    "claiming",
    "is_claimed",
    "key_of",
]

_CLAIMED: ContextVar[bool] = ContextVar("headscope_claimed", default=False)


@dataclass(frozen=True, eq=False)
class Call:
    """One attention call, just made: what went in, what came out, and how to ask for more.

    Attributes:
        module: the attention module that made it.
        q: (batch, head, query, head_dim), after rotary embedding and norms.
        k: (batch, key head, key, head_dim); the head axis is that of q where the model repeated it before the call.
        v: (batch, value head, key, value_dim).
        z: (batch, head, query, value_dim).
        made: the model's own tensors that z lies in, each with the way from there to z's order, and the way back; side
            by side along the head axis they are z.
        pattern: makes the map, (batch, head, query, key): after mask and bias, before dropout; raises AnatomyError, as
            bias does, where there is none that can be trusted.
        bias: given the scaling, makes what is added to scaling·q·kᵀ before the softmax, broadcastable to the map;
            -inf (or the model's own large negative number) where masked.
        scaling: what multiplies q·kᵀ; NaN where it is not one number, or where only `scores` can tell.
        cap: c, where scores are capped by c·tanh(scaling·q·kᵀ / c) before the bias is added.
        scores: what the probe needs of a written-out softmax; None for a function that keeps it to itself.
        map: the model's own map, where there is one on its graph that lies as it should.
        key: of the place where it was heard; "" where a module needs none.
        refused: tensors that are not what they should be, by name, with the reason.
        given: what else a function of attention was given: its mask and its biases, by name.
    """

    module: nn.Module
    q: Float[Tensor, "batch head query head_dim"]
    k: Float[Tensor, "batch kv_head key head_dim"]
    v: Float[Tensor, "batch value_head key value_dim"]
    z: Float[Tensor, "batch head query value_dim"]
    made: Sequence[tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]
    pattern: Callable[[], Float[Tensor, "batch head query key"]]
    bias: Callable[[float], Float[Tensor, "..."]]
    scaling: float
    cap: float | None = None
    scores: "Scores | None" = None
    map: Tensor | None = None
    key: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Scores:
    """A softmax written out: its input and the bare q·kᵀ, as the model has them.

    Attributes:
        logits, product: in the model's own layout; the graph between them tells the scaling.
        factor: what q·kᵀ had been multiplied by already when `product` was made.
        bare: q·kᵀ as the model made it, (batch, head, query, key), to be compared; None where it cannot be told.
    """

    logits: Tensor
    product: Tensor
    factor: float
    bare: Tensor | None


@dataclass(frozen=True, eq=False)
class Place:
    """Where a route listens: a module, and how its attention is spelled where the route needs to know."""

    module: nn.Module
    spelling: Mapping[str, Any] | None = None

    @property
    def key(self) -> str:
        """Tells places of one module apart."""
        return key_of(self.spelling)


def key_of(spelling: Mapping[str, Any] | None) -> str:
    """What tells attentions of one module apart: how they are spelled."""
    return "" if spelling is None else json.dumps(spelling, sort_keys=True)


@dataclass(frozen=True, eq=False)
class Refusal:
    """What looks like attention and isn't read: the module that does it, and why not.

    Attributes:
        module, reason: where, and why.
        seen: whether what it does was seen; else it may be attention.
    """

    module: nn.Module
    reason: str
    seen: bool = True


@dataclass(frozen=True, eq=False)
class Scouted:
    """What a route found in one forward pass: where it has to listen (None: everywhere), and what it does not read."""

    places: Sequence[Place] | None = None
    refusals: Sequence[Refusal] = ()


Receive = Callable[[Call], Tensor | None]
"""Told of a call; may return z anew, the same numbers, for the model to go on with."""


class Watch(ABC):
    """What a probe wants to be told of linear layers that are no modules."""

    @abstractmethod
    def weighted(self, module: nn.Module, weighting: Any, entering: Tensor, out: Tensor) -> Tensor:
        """Such a layer has run; what is returned takes the place of its result."""


class Route(ABC):
    """One way into a model."""

    name: ClassVar[str]

    def scout(self, model: nn.Module, given: Sequence[Tensor], run: Callable[[], object]) -> Scouted:
        """Look over one forward pass, where that has to be done before there is anything to listen to.

        Args:
            model: the model.
            given: the tensors that it is given.
            run: runs it.
        """
        del model, given, run
        return Scouted()

    @abstractmethod
    def listen(
        self,
        model: nn.Module,
        receive: Receive,
        places: Collection[Place] | None = None,
        watch: Watch | None = None,
    ) -> AbstractContextManager[None]:
        """While open, hand every attention call of `model` on this thread to `receive`.

        Args:
            model: the model whose calls are meant; calls of other models pass untouched.
            receive: told of each call; what it returns takes the place of z.
            places: where to listen: as `scout` found them; None for everywhere.
            watch: a probe's, told of linear layers too.
        """


ROUTES: Registry[Route] = Registry("route", "headscope.anatomy")


@contextmanager
def claiming() -> Iterator[None]:
    """While open, the running attention call belongs to one route: the others stay silent about what it is made of."""
    token = _CLAIMED.set(True)
    try:
        yield
    finally:
        _CLAIMED.reset(token)


def is_claimed() -> bool:
    """Whether some route has the running attention call already."""
    return _CLAIMED.get()
