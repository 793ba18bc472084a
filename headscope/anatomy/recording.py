"""Recording: the graph of the operations of one forward pass, with where in the model each of them ran."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from headscope._support.running import in_python
from headscope.anatomy.linear import linear_layers
from headscope.anatomy.operations import (
    CASTS,
    CONTRACTS,
    JOINS,
    MOVES,
    Axes,
    axes_of,
    is_pointwise,
    tensors_in,
)
from headscope.anatomy.overhearing import Overhearing
from headscope.anatomy.route import Call

__all__ = ["Frame", "Graph", "Node", "recording"]

_FORGETS_DATA = {"zeros_like", "ones_like", "empty_like", "new_zeros", "new_ones", "new_empty", "full_like", "new_full",
                 "new_tensor", "size", "arange", "argsort", "argmax", "rand_like", "randn_like"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Frame:
    """A module that was running: which call of it, and how often this operation had run in that call before."""

    module: nn.Module
    call: int
    nth: int


@dataclass(eq=False, slots=True)
class Node:
    """One operation, or a tensor that none made (`function` is None).

    Attributes:
        index: its place in the order in which operations ran.
        name: as `name_of` spells it; "input", "parameter" or "constant" where no operation made it.
        inputs: by id of the tensor, the node that had made it by then.
        outputs: the tensors that it made.
        data: whether it depends on what the model was given.
        parameter: dotted name of the parameter or buffer that it is.
        frames: the modules that were running, outermost first.
        linear: the linear layer (a module) that ran it.
    """

    index: int
    name: str
    function: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: dict[int, "Node"]
    outputs: list[Tensor]
    data: bool
    parameter: str | None = None
    frames: tuple[Frame, ...] = ()
    linear: nn.Module | None = None
    users: list["Node"] = field(default_factory=list)

    @property
    def passes(self) -> bool:
        """Whether each number of its result stems from one number of an argument, moved or changed on its own."""
        return self.name in CASTS or self.name in MOVES or self.pointwise

    @property
    def pointwise(self) -> bool:
        return is_pointwise(self.name, self.args, self.kwargs)

    @property
    def tensors(self) -> list[Tensor]:
        """Its tensor arguments, in order."""
        return tensors_in((self.args, self.kwargs))

    @property
    def carried(self) -> list[Tensor]:
        """Of its tensor arguments, those whose numbers its result may hold: no masks, indices, models of shape."""
        own = [tensor for tensor in self.tensors if tensor.dtype != torch.bool]
        if self.name in JOINS or self.pointwise:
            return own[1:2] if self.name == "copy" else own
        return own[:1]

    @property
    def keeps_places(self) -> bool:
        """Whether it makes something of each number that stands in the same place: a norm, an activation."""
        shape = self.outputs[0].shape if len(self.outputs) == 1 and self.function is not None else None
        return self.name not in CONTRACTS and any(one.shape == shape for one in self.carried)

    def source(self, tensor: Tensor) -> "Node":
        return self.inputs[id(tensor)]


class Graph:
    """The operations of one forward pass, in order. Tensors are kept alive: ids of dead ones come again."""

    def __init__(self, model: nn.Module, given: Iterable[Tensor]) -> None:
        self.nodes: list[Node] = []
        self._made: dict[int, Node] = {}
        self._kept: list[Any] = []
        named = [*model.named_buffers(remove_duplicate=False), *model.named_parameters(remove_duplicate=False)]
        self._parameters = {id(tensor): name for name, tensor in named}
        self._given = {id(tensor) for tensor in given}

    def add(
        self,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
        frames: tuple[Frame, ...] = (),
        linear: nn.Module | None = None,
    ) -> None:
        """One more operation; what makes no tensor is passed over."""
        entering = tensors_in((args, kwargs))
        outputs = [args[0]] if name == "__setitem__" else tensors_in(out)
        same = len(outputs) == 1 and any(outputs[0] is one for one in entering)
        if not outputs or (same and name in CASTS | {"dropout"}):
            return  # nothing was made: a cast to what it was already gives the same tensor
        inputs = {id(tensor): self._node_of(tensor) for tensor in entering}
        data = name not in _FORGETS_DATA and any(node.data for node in inputs.values())
        node = self._append(
            Node(len(self.nodes), name, function, args, kwargs, inputs, outputs, data, None, frames, linear)
        )
        for tensor in outputs:
            base, source = tensor._base, self._made.get(id(tensor))
            self._made[id(tensor)] = node
            changed = name == "__setitem__" or any(tensor is one for one in entering)
            if base is not None and changed and source is not None and id(base) in self._made:
                self._write_through(base, tensor, node)

    def attended(self, call: Call) -> None:
        """Attention that another route has told of: one operation, whatever it is made of."""
        self.add("attention", type(call), (call.q, call.k, call.v), {}, [tensor for tensor, _, _ in call.made])

    def _node_of(self, tensor: Tensor) -> Node:
        node = self._made.get(id(tensor))
        if node is not None:
            return node
        base = tensor._base
        if base is not None and id(base) in self._made:  # a view made where nobody saw it
            source = self._made[id(base)]
            made = Node(len(self.nodes), "view of its base", None, (base, tensor), {}, {id(base): source}, [tensor],
                        source.data)  # fmt: skip
        else:
            name = self._parameters.get(id(tensor))
            kind = "parameter" if name else "input" if id(tensor) in self._given else "constant"
            # what nobody saw being made, and has a graph, stems from data: a compiled function's result, say
            data = kind == "input" or (kind == "constant" and tensor.grad_fn is not None)
            made = Node(len(self.nodes), kind, None, (), {}, {}, [tensor], data, parameter=name)
        self._made[id(tensor)] = made
        return self._append(made)

    def _write_through(self, base: Tensor, view: Tensor, node: Node) -> None:
        """What was written into a view has changed its base too."""
        source = self._made[id(base)]
        inputs = {id(base): source, id(view): node}
        self._made[id(base)] = self._append(
            Node(len(self.nodes), "write into a view", None, (base, view), {}, inputs, [base], source.data or node.data)
        )

    def _append(self, node: Node) -> Node:
        for source in node.inputs.values():
            source.users.append(node)
        self.nodes.append(node)
        self._kept.append((node.args, node.kwargs, node.outputs))
        return node


def product(node: Node) -> tuple[Axes, Node, Node] | None:
    """A contraction of two tensors, of whatever spelling, with the nodes that made them; None for anything else.

    (a * b).sum(axis) is one too.
    """
    if node.name == "sum":
        return _summed_product(node)
    if node.name not in CONTRACTS or node.function is None or len(node.outputs) != 1:
        return None
    axes = axes_of(node.name, node.function, node.args, node.kwargs, node.outputs[0])
    return None if axes is None else (axes, node.source(axes.left), node.source(axes.right))


def _summed_product(node: Node) -> tuple[Axes, Node, Node] | None:
    summed = node.args[0] if node.args else None
    made = node.source(summed) if isinstance(summed, Tensor) else None
    if made is None or made.name != "mul" or not all(isinstance(one, Tensor) for one in made.args[:2]):
        return None
    over = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if over is None or summed is None or len(made.args) < 2:
        return None
    gone = {axis % summed.ndim for axis in ([over] if isinstance(over, int) else over)}
    keeps = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)

    def letters(tensor: Tensor) -> tuple[str | None, ...]:
        skipped = summed.ndim - tensor.ndim
        return tuple(
            f"x{axis + skipped}" if size > 1 or summed.shape[axis + skipped] == 1 else None
            for axis, size in enumerate(tensor.shape)
        )

    left, right = made.args[:2]
    out = tuple(None if axis in gone else f"x{axis}" for axis in range(summed.ndim) if keeps or axis not in gone)
    axes = Axes(left, right, letters(left), letters(right), out)
    return (axes, made.source(left), made.source(right)) if axes.contracted else None


def weight_of(node: Node) -> Node | None:
    """The parameter (or buffer) that a contraction weights something else by; None where there is none."""
    if node.name not in CONTRACTS:
        return None
    sources = list(node.inputs.values())
    weights = [None if source.data else _parameter_behind(source) for source in sources]
    found = [weight for weight in weights if weight is not None]
    # of two parameters, neither is data: positions times a table, say
    return found[0] if len(found) == 1 and len(sources) > 1 else None


def _parameter_behind(node: Node, depth: int = 8) -> Node | None:
    if node.parameter is not None:
        return node if node.outputs[0].ndim >= 2 else None
    if depth and node.passes:
        for source in node.inputs.values():
            if not source.data and (found := _parameter_behind(source, depth - 1)) is not None:
                return found
    return None


class _Stack:
    """The modules whose forward is running, outermost first, with how often each operation has run in each."""

    def __init__(self) -> None:
        self._running: list[tuple[nn.Module, int, dict[str, int]]] = []
        self._calls: dict[nn.Module, int] = {}

    def enter(self, module: nn.Module, _: Any) -> None:
        call = self._calls.get(module, 0)
        self._calls[module] = call + 1
        self._running.append((module, call, {}))

    def leave(self, *_: Any) -> None:
        self._running.pop()

    def tick(self, name: str) -> tuple[Frame, ...]:
        frames = []
        for module, call, counts in self._running:
            counts[name] = counts.get(name, -1) + 1
            frames.append(Frame(module, call, counts[name]))
        return tuple(frames)

    def innermost(self, kinds: set[nn.Module]) -> nn.Module | None:
        return next((module for module, _, _ in self._running if module in kinds), None)


class _Recorder(Overhearing):
    def __init__(self, graph: Graph, stack: _Stack, layers: set[nn.Module]) -> None:
        super().__init__()
        self._graph, self._stack, self._layers = graph, stack, layers

    def heard(self, name: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        frames = self._stack.tick(name)
        out = function(*args, **kwargs)
        if name in CONTRACTS | {"embedding"} and isinstance(out, Tensor) and out.is_floating_point():
            # with frozen weights nothing would have a graph; a copy, since models go on in place
            out = out if out.requires_grad or not torch.is_grad_enabled() else out.requires_grad_().clone()
        self._graph.add(name, function, args, kwargs, out, frames, self._stack.innermost(self._layers))
        return out


@contextmanager
def recording(model: nn.Module, given: Iterable[Tensor]) -> Iterator[Graph]:
    """While open, what the model does on this thread is written down.

    Args:
        model: the model that will be run once.
        given: the tensors that it will be given, on its device.
    """
    graph, stack = Graph(model, given), _Stack()
    handles = []
    try:
        for module in in_python(model):
            handles.append(module.register_forward_pre_hook(stack.enter))
            handles.append(module.register_forward_hook(stack.leave, always_call=True))
        with _Recorder(graph, stack, set(linear_layers(model))):
            yield graph
    finally:
        for handle in handles:
            handle.remove()
