"""Route: models that fetch their attention function from transformers' registry in every forward pass.

`AttentionInterface.get_interface` is wrapped while something listens. The function that comes out is the one that the
model would have used anyway, so nothing is switched and outputs stay bit-equal; the wrapper acts by a context variable,
so other models and other threads pass through untouched.
"""

import functools
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from headscope.anatomy.left import of_heads_left
from headscope.anatomy.route import ROUTES, Call, Place, Receive, Route, Watch, claiming, is_claimed

__all__ = ["RegistryRoute", "passed_on"]

_PASSES = "_headscope_passes"


def passed_on(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark an attention function that calls another one of the registry: that one is listened to."""
    setattr(function, _PASSES, True)
    return function


@dataclass(frozen=True, eq=False)
class _Listener:
    modules: frozenset[nn.Module]
    receive: Receive


_LISTENERS: ContextVar[tuple[_Listener, ...]] = ContextVar("headscope_listeners", default=())


@ROUTES.register("registry")
class RegistryRoute(Route):
    """Models of transformers that dispatch through `AttentionInterface`."""

    name: ClassVar[str] = "registry"

    @contextmanager
    def listen(
        self,
        model: nn.Module,
        receive: Receive,
        places: Collection[Place] | None = None,
        watch: Watch | None = None,
    ) -> Iterator[None]:
        modules = model.modules() if places is None else (place.module for place in places)
        listener = _Listener(frozenset(modules), receive)
        _LISTENERS.set((*_LISTENERS.get(), listener))
        try:
            with _WRAPPED:
                yield
        finally:
            # taken out by itself, not by a token: contexts may close in another order than they were opened in
            _LISTENERS.set(tuple(other for other in _LISTENERS.get() if other is not listener))


class _Wrapping:
    """Keeps `get_interface` wrapped while at least one listener is open, in whatever thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = 0
        self._original: Callable[..., Any] | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._open += 1
            if self._open == 1:
                self._wrap()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._open -= 1
            if self._open == 0 and self._original is not None:
                _interface().get_interface = self._original
                self._original = None

    def _wrap(self) -> None:
        interface = _interface()
        if interface is None:
            return
        original = self._original = interface.get_interface

        @functools.wraps(original)
        def get_interface(*args: Any, **kwargs: Any) -> Callable[..., Any]:
            function = original(*args, **kwargs)
            listeners = _LISTENERS.get()
            return functools.partial(_attend, function, listeners) if listeners else function

        interface.get_interface = get_interface


_WRAPPED = _Wrapping()


def _interface() -> Any:
    """The class to wrap; None where transformers was never imported, so that no model can dispatch through it."""
    modeling = sys.modules.get("transformers.modeling_utils")
    return None if modeling is None else modeling.AttentionInterface


def _attend(
    function: Callable[..., Any],
    listeners: tuple[_Listener, ...],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    if getattr(function, _PASSES, False):
        return function(module, query, key, value, attention_mask, *args, **kwargs)
    with claiming():
        result = function(module, query, key, value, attention_mask, *args, **kwargs)
    hearing = [listener for listener in listeners if module in listener.modules]
    if not hearing or is_claimed() or query.ndim != 4:
        return result
    call = of_heads_left(_Ask(function, module, query, key, value, attention_mask, args, kwargs).call(*result[:2]))
    if not call.q.shape[1]:  # no head is left
        return result
    out = result[0]
    with claiming():
        for listener in hearing:
            z = listener.receive(call)
            out = out if z is None else call.made[0][2](z)
    return (out, *result[1:])


def _by_head(out: Tensor, heads: int) -> Tensor:
    """What an attention function returned, as (batch, head, position, dim)."""
    return (out if out.ndim == 4 else out.unflatten(-1, (heads, -1))).transpose(1, 2)


def _as_it_was(z: Tensor, like: Tensor) -> Tensor:
    return z.transpose(1, 2).reshape(like.shape)


@dataclass(frozen=True, eq=False)
class _Ask:
    """The arguments of one dispatched call, kept so that it can be asked for its map."""

    function: Callable[..., Any]
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def call(self, out: Tensor, weights: Any = None) -> Call:
        way = functools.partial(_by_head, heads=self.query.shape[1])
        scaling = self.kwargs.get("scaling", self.args[0] if self.args else None)
        if scaling is None:
            scaling = self.query.shape[-1] ** -0.5
        return Call(
            module=self.module,
            q=self.query,
            k=self.key,
            v=self.value,
            z=way(out),
            made=[(out, way, functools.partial(_as_it_was, like=out))],
            pattern=self.pattern,
            bias=self.bias,
            scaling=float(scaling),
            cap=self.kwargs.get("softcap"),
            map=weights if isinstance(weights, Tensor) and weights.shape[:3] == self.query.shape[:3] else None,
            given={
                n: own for n, own in (("attention_mask", self.mask), *self.kwargs.items()) if isinstance(own, Tensor)
            },
        )

    def pattern(self) -> Tensor:
        """The map, as what the function makes of the identity in place of the values.

        pattern · 1 = pattern, so any function tells its map exactly, sinks, soft caps and biases included, without
        our knowing what is in it.
        """
        length = self.key.shape[-2]
        identity = torch.eye(length, dtype=self.value.dtype, device=self.value.device)
        try:
            return self._mix(identity)
        except (RuntimeError, ValueError):
            # fused kernels that want values as wide as keys get the identity in strips of that width
            width = self.value.shape[-1]
            padded = torch.nn.functional.pad(identity, (0, -length % width))
            return torch.cat([self._mix(strip) for strip in padded.split(width, dim=1)], dim=-1)[..., :length]

    def _mix(self, values: Tensor) -> Tensor:
        batch, heads = self.value.shape[:2]
        values = values.expand(batch, heads, *values.shape).contiguous()
        args, kwargs = self.args, self.kwargs
        if len(args) > 1:
            args = (args[0], 0.0, *args[2:])
        if "dropout" in kwargs:
            kwargs = kwargs | {"dropout": 0.0}
        with claiming():
            out = self.function(self.module, self.query, self.key, values, self.mask, *args, **kwargs)[0]
        return _by_head(out, self.query.shape[1])

    def bias(self, scaling: float) -> Tensor:
        """Mask, causality and position bias as one additive tensor, broadcastable to the map."""
        queries, keys = self.query.shape[-2], self.key.shape[-2]
        bias = self.query.new_zeros(1, 1, queries, keys)
        position_bias = self.kwargs.get("position_bias")
        if position_bias is not None:
            bias = bias + position_bias[..., :keys]
        if self.mask is not None:
            mask = self.mask[..., :keys]
            return bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask
        causal = self.kwargs.get("is_causal")
        causal = getattr(self.module, "is_causal", True) if causal is None else causal
        if causal and queries > 1:
            hidden = torch.ones(queries, keys, dtype=torch.bool, device=bias.device).triu(1)
            # functions that are written out read the mask alone, whatever else they are told
            if not bool(self.pattern().detach()[..., hidden].any()):
                bias = bias.masked_fill(hidden, -torch.inf)
        return bias
