"""Route: attention written by hand as softmax(q·kᵀ)·v with `@` or `matmul`, or as `scaled_dot_product_attention`.

A TorchFunctionMode follows tensors forward: a product of two 4-dimensional tensors may be a score; a softmax over the
last axis of a score (through scaling, masks, casts, dropout) is a map; a map times something is z. Nothing is stored
but what is on that path. Tensors must be (batch, head, position, dim).
"""

import functools
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from headscope.anatomy.route import ROUTES, Call, Receive, Route, claiming, is_claimed

__all__ = ["HandwrittenRoute"]

_PRODUCTS = {"matmul", "__matmul__"}
_KEEPS_MEANING = {
    "add", "__add__", "__radd__", "__iadd__", "add_", "sub", "__sub__", "__isub__", "sub_", "mul", "__mul__",
    "__rmul__", "__imul__", "mul_", "div", "__truediv__", "__itruediv__", "div_", "true_divide", "masked_fill",
    "masked_fill_", "where", "clamp", "clamp_", "maximum", "minimum", "tanh", "dropout", "to", "float", "half",
    "bfloat16", "double", "type_as", "type", "contiguous", "clone", "nan_to_num", "tril", "triu",
}  # fmt: skip


@ROUTES.register("handwritten")
class HandwrittenRoute(Route):
    """Attention that a module computes itself."""

    name: ClassVar[str] = "handwritten"

    @contextmanager
    def listen(
        self, model: nn.Module, receive: Receive, modules: Collection[nn.Module] | None = None
    ) -> Iterator[None]:
        if modules is None:
            with _running_modules(model) as running, _Reader(receive, lambda: tuple(running), probing=True):
                yield
            return
        with ExitStack() as stack:
            for module in dict.fromkeys(modules):
                stack.enter_context(_read_forward(module, receive))
            yield


_LOCK = threading.Lock()


@contextmanager
def _read_forward(module: nn.Module, receive: Receive) -> Iterator[None]:
    """Let a reader watch this module's forward on this thread, and nothing else."""
    listener = (threading.get_ident(), receive)
    with _LOCK:
        reading = module.__dict__.get("forward")
        if not isinstance(reading, _ReadForward):
            reading = _ReadForward(module)
        reading.listeners = (*reading.listeners, listener)
    try:
        yield
    finally:
        with _LOCK:
            reading.listeners = tuple(other for other in reading.listeners if other is not listener)
            if not reading.listeners:
                reading.remove()


class _ReadForward:
    """Stands in for a module's forward, as an instance attribute, while at least one listener is open."""

    def __init__(self, module: nn.Module) -> None:
        self.listeners: tuple[tuple[int, Receive], ...] = ()
        self._module = module
        self._forward = module.forward
        self._own = {name: value for name, value in module.__dict__.items() if name == "forward"}
        functools.update_wrapper(self, module.forward)  # what a model takes is read off its forward's signature
        module.__dict__["forward"] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for thread, receive in self.listeners:
                if thread == threading.get_ident():
                    stack.enter_context(_Reader(receive, lambda: (self._module,)))
            return self._forward(*args, **kwargs)

    def remove(self) -> None:
        del self._module.__dict__["forward"]
        self._module.__dict__.update(self._own)


@contextmanager
def _running_modules(model: nn.Module) -> Iterator[list[nn.Module]]:
    """The modules whose forward is running, outermost first."""
    running: list[nn.Module] = []
    handles = []

    def end(*_: object) -> None:
        running.pop()

    for module in model.modules():
        handles.append(module.register_forward_pre_hook(lambda module, _: running.append(module)))
        handles.append(module.register_forward_hook(end, always_call=True))
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, eq=False)
class _Scores:
    """A tensor that stems from q·kᵀ by operations that keep rows and columns in place."""

    q: Tensor
    k: Tensor
    product: Tensor
    within: tuple[nn.Module, ...]


@dataclass(frozen=True, eq=False)
class _Map:
    """A tensor that stems from a softmax over scores."""

    scores: _Scores
    logits: Tensor
    pattern: Tensor


class _Reader(TorchFunctionMode):
    """Recognises attention as its operations go by, and tells `receive` when z has been made.

    Args:
        receive: is told.
        running: tells the modules that are running, outermost first.
        probing: whether the bare product is kept apart from what the model makes of it.
    """

    def __init__(self, receive: Receive, running: Callable[[], tuple[nn.Module, ...]], probing: bool = False) -> None:
        super().__init__()
        self._receive = receive
        self._running = running
        self._probing = probing
        self._tags: dict[int, tuple[Tensor, _Scores | _Map]] = {}  # the tensor is kept: ids of dead ones come again

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if is_claimed():
            return function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if name == "scaled_dot_product_attention":
            return self._fused(function, args, kwargs)
        out = function(*args, **kwargs)
        if not isinstance(out, Tensor) or out.ndim != 4 or not out.is_floating_point():
            return out
        if name in _PRODUCTS:
            return self._product(out, args, kwargs)
        if name == "softmax":
            self._softmax(out, args, kwargs)
        elif name in _KEEPS_MEANING:
            self._keep(out, args, kwargs)
        return out

    def _tag(self, tensor: Any) -> _Scores | _Map | None:
        return self._tags.get(id(tensor), (None, None))[1] if isinstance(tensor, Tensor) else None

    def _mark(self, tensor: Tensor, tag: _Scores | _Map) -> None:
        self._tags[id(tensor)] = (tensor, tag)

    def _keep(self, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for source in (*args, *kwargs.values()):
            tag = self._tag(source)
            if tag is not None and source.shape == out.shape:
                self._mark(out, tag)
                return

    def _softmax(self, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        source = args[0] if args else kwargs["input"]
        tag = self._tag(source)
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if isinstance(tag, _Scores) and dim in (-1, 3):
            self._mark(out, _Map(tag, source, out))

    def _product(self, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        left, right = args[0], args[1] if len(args) > 1 else kwargs["other"]
        tag = self._tag(left)
        if isinstance(tag, _Map) and right.ndim == 4:
            return self._told(_written_call(self._running(), tag, right, out, self._probing), out)
        if left.ndim == 4 and right.ndim == 4:
            product, out = out, out.clone() if self._probing else out  # models scale and mask their scores in place
            self._mark(out, _Scores(left, right.transpose(-2, -1), product, self._running()))
        return out

    def _fused(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        out: Tensor = function(*args, **kwargs)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = dict(zip(names, args, strict=False)) | kwargs
        if given["query"].ndim != 4:
            return out
        return self._told(_fused_call(self._running()[-1], function, given, out), out)

    def _told(self, call: Call, out: Tensor) -> Tensor:
        z = self._receive(call)
        return out if z is None else z


def _written_call(running: tuple[nn.Module, ...], tag: _Map, v: Tensor, z: Tensor, probing: bool) -> Call:
    logits, scores = tag.logits, tag.scores

    def bias(scaling: float) -> Tensor:
        return logits - scaling * (scores.q @ scores.k.transpose(-2, -1))  # -inf stays -inf

    # the smallest module that makes the scores as well as z: a module of its own may multiply map and values
    module = next(one for one, other in reversed(list(zip(scores.within, running, strict=False))) if one is other)
    return Call(
        module=module,
        q=scores.q,
        k=scores.k,
        v=v,
        z=z,
        pattern=lambda: tag.pattern,
        bias=bias,
        scaling=float("nan"),
        scores=(logits, scores.product) if probing else None,
    )


def _fused_call(module: nn.Module, function: Any, given: dict[str, Any], z: Tensor) -> Call:
    q, k, v = given["query"], given["key"], given["value"]
    mask, scale = given.get("attn_mask"), given.get("scale")

    def pattern() -> Tensor:
        length = k.shape[-2]
        identity = torch.eye(length, dtype=v.dtype, device=v.device).expand(*v.shape[:2], length, length)
        with claiming():
            result: Tensor = function(**(given | {"value": identity, "dropout_p": 0.0}))
        return result

    def bias(scaling: float) -> Tensor:
        zero = q.new_zeros(1, 1, q.shape[-2], k.shape[-2])
        if given.get("is_causal"):
            return zero.masked_fill(torch.ones_like(zero, dtype=torch.bool).triu(1), -torch.inf)
        if mask is None:
            return zero
        return zero.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else zero + mask

    return Call(
        module=module,
        q=q,
        k=k,
        v=v,
        z=z,
        pattern=pattern,
        bias=bias,
        scaling=q.shape[-1] ** -0.5 if scale is None else float(scale),
    )
