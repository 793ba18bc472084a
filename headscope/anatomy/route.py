"""A route is one way to be told of every attention call that a model makes. A new route is one new file."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from headscope._support.registry import Registry

__all__ = ["ROUTES", "Call", "Receive", "Route", "claiming", "is_claimed"]

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
        pattern: makes the map, (batch, head, query, key): after mask and bias, before dropout.
        bias: given the scaling, makes what is added to scaling·q·kᵀ before the softmax, broadcastable to the map;
            -inf (or the model's own large negative number) where masked.
        scaling: what multiplies q·kᵀ; NaN where it is not one number, or where only `scores` can tell.
        scores: (softmax's input, bare q·kᵀ) where the probe needs them: it reads the scaling off their graph.
    """

    module: nn.Module
    q: Float[Tensor, "batch head query head_dim"]
    k: Float[Tensor, "batch kv_head key head_dim"]
    v: Float[Tensor, "batch value_head key value_dim"]
    z: Float[Tensor, "batch head query value_dim"]
    pattern: Callable[[], Float[Tensor, "batch head query key"]]
    bias: Callable[[float], Float[Tensor, "..."]]
    scaling: float
    scores: tuple[Tensor, Tensor] | None = None


Receive = Callable[[Call], Tensor | None]


class Route(ABC):
    """One way into a model."""

    name: ClassVar[str]

    @abstractmethod
    def listen(
        self, model: nn.Module, receive: Receive, modules: Collection[nn.Module] | None = None
    ) -> AbstractContextManager[None]:
        """While open, hand every attention call of `model` on this thread to `receive`.

        Args:
            model: the model whose calls are meant; calls of other models pass untouched.
            receive: may return a tensor shaped like z, which then takes its place.
            modules: the attention modules to listen to; None for all (discovery).
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
