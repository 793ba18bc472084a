"""Unseen operations that may be attention: kernels of one's own, vmap, what torch.jit compiled.

They show by what they leave: a tensor of the batch that no known operation made. Where it has a graph, one number of it
is followed back to what was seen last: an activation or a norm leads to one number there, or to one axis of them;
attention leads to several positions and features.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from headscope.anatomy.graph import mixes
from headscope.anatomy.linear import is_linear
from headscope.anatomy.recording import Graph, Node
from headscope.anatomy.route import Refusal

__all__ = ["find_unseen"]

_Edge = tuple[Any, int]


def find_unseen(model: nn.Module, graph: Graph, rows: int, again: Callable[[], Graph]) -> list[Refusal]:
    """What mixes positions in a way that no known operation shows, with the module that does.

    Args:
        model: the model.
        graph: of one forward pass, recorded with gradients.
        rows: of the batch that it ran on.
        again: records one more; run only where it is needed.
    """
    found = {module: Refusal(module, _COMPILED, seen=False) for module in model.modules() if _is_compiled(module)}
    inside = {one for module in found for one in list(module.modules())[1:]}
    known = {
        edge: tensor for node in graph.nodes if node.function for tensor in node.outputs if (edge := _edge(tensor))
    }
    bare = [one for one in graph.nodes if one.name == "constant" and _is_bare(one, rows)]
    # what a model keeps from before (tables of positions, say) is the same tensor in each pass
    kept = {id(one.outputs[0]) for one in again().nodes if one.name == "constant"} if bare else set()
    for node in graph.nodes:
        tensor, why = node.outputs[0], ""
        if not tensor.is_floating_point() or tensor.ndim < 2 or not node.users:
            continue
        if node in bare:
            why = "" if id(tensor) in kept else "what it makes without PyTorch's operations"
        elif node.name == "constant":
            why = _of_nothing(tensor, known)
        elif _is_foreign(node):
            entering = [one for one in node.tensors if node.source(one).data and one.is_floating_point()]
            mixed = mixes(tensor, entering)
            why = f"an operation of its own ({node.function})" if mixed or (mixed is None and len(entering) > 1) else ""
        module = _where(node)
        if why and module is not None and not any(one in found for one in module.modules()):
            found[module] = Refusal(module, f"{why} is not read", seen=False)
    return [refusal for module, refusal in found.items() if module not in inside]


_COMPILED = "torch.jit compiled it, and what it does is not seen; give the plain module"


def _is_compiled(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


def _is_foreign(node: Node) -> bool:
    """Whether an operation was registered by somebody else, or is one of the kernels that PyTorch keeps to itself."""
    name = str(node.function)
    return isinstance(node.function, (torch._ops.OpOverloadPacket, torch._ops.OpOverload)) and (
        not name.startswith("aten.") or "attention" in name
    )


def _where(node: Node) -> nn.Module | None:
    """The module in which a node is made, or is first made use of; not the layer that reads it."""
    frames = node.frames or node.users[0].frames
    return next((frame.module for frame in reversed(frames) if not is_linear(frame.module)), None)


def _edge(tensor: Tensor) -> _Edge | None:
    return None if tensor.grad_fn is None else (tensor.grad_fn, tensor.output_nr)


def _is_bare(node: Node, rows: int) -> bool:
    """Whether it holds a tensor by rows of the batch, without a graph."""
    tensor = node.outputs[0]
    by_rows = tensor.is_floating_point() and tensor.ndim > 2 and tensor.shape[0] == rows
    return by_rows and tensor.grad_fn is None and bool(node.users)


def _of_nothing(tensor: Tensor, known: dict[_Edge, Tensor]) -> str:
    """What made a tensor that no operation made, if it mixes positions."""
    edge = _edge(tensor)
    if edge is None:
        return ""
    mixed = edge not in known and mixes(tensor, list(_seen_last(edge, known))) is not False
    return f"what it makes unseen ({edge[0].name()})" if mixed else ""


def _seen_last(edge: _Edge, known: dict[_Edge, Tensor]) -> Iterator[Tensor]:
    """The tensors from which unseen operations made what lies at an edge of the graph of gradients."""
    todo, done = [edge], set()
    while todo:
        one = todo.pop()
        if one in known and one not in done:
            yield known[one]
        elif one[0] is not None and one not in done:
            todo.extend(one[0].next_functions)
        done.add(one)
