"""The softmaxes of a graph, however they are spelled: by name, as exp(x - logsumexp(x)), as exp(x) over its sum."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from headscope.anatomy.recording import Graph, Node, product

__all__ = ["FUSED", "Softmax", "softmaxes"]

FUSED = "scaled_dot_product_attention"


@dataclass(frozen=True, eq=False)
class Softmax:
    """One softmax.

    Attributes:
        node, out: the operation that makes the map, and the map.
        entry, source, logits: the operation that takes the logits; what made them; the logits.
        dim: the axis that it runs over.
        late: the division by the sum, where it comes after the product with the values; `out` is then exp(x).
    """

    node: Node
    out: Tensor
    entry: Node
    source: Node
    logits: Tensor
    dim: int
    late: Node | None = None


def softmaxes(graph: Graph) -> Iterator[Softmax]:
    """Every softmax in a graph, in order; also of what does not depend on the input: queries may be learned."""
    for node in graph.nodes:
        if node.function is None:
            continue
        found = None
        if node.name == "softmax":
            found = _named(node)
        elif node.name == "exp":
            found = _by_logsumexp(node)
        elif node.name == "div":
            found = _by_sum(node)
        if found is not None:
            yield found


def _named(node: Node) -> Softmax | None:
    logits = node.args[0] if node.args else node.kwargs.get("input")
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    if not isinstance(logits, Tensor) or not isinstance(dim, int) or logits.ndim < 2:
        return None
    return Softmax(node, node.outputs[0], node, node.source(logits), logits, dim % logits.ndim)


def _by_logsumexp(node: Node) -> Softmax | None:
    made = node.source(node.args[0]) if node.args else None
    if made is not None and made.name == "log_softmax":
        found = _named(made)
        return None if found is None else replace(found, node=node, out=node.outputs[0])
    if made is None or made.name != "sub" or len(made.args) < 2:
        return None
    logits = made.args[0]
    total = made.source(made.args[1]) if isinstance(made.args[1], Tensor) else None
    if total is None or total.name != "logsumexp" or total.source(total.args[0]) is not made.source(logits):
        return None
    dim = _axis(total, logits.ndim)
    return None if dim is None else Softmax(node, node.outputs[0], made, made.source(logits), logits, dim)


def _by_sum(node: Node) -> Softmax | None:
    if len(node.args) < 2 or not all(isinstance(one, Tensor) for one in node.args[:2]):
        return None
    above, below = (node.source(one) for one in node.args[:2])
    total = _back(below, lambda one: one.name == "sum" and one.function is not None)
    if total is None or not total.args:
        return None
    summed = total.source(total.args[0])
    raised = _back(summed, lambda one: one.name == "exp")
    dim = _axis(total, total.args[0].ndim)
    if raised is None or dim is None:
        return None
    logits = _shifted_from(raised)
    if above is summed or _back(above, lambda one: one is summed) is not None:
        return Softmax(node, node.outputs[0], *logits, dim)
    times = _back(above, lambda one: product(one) is not None)
    if times is not None and _back(times, lambda one: one is summed, over=True) is not None:
        return Softmax(summed, total.args[0], *logits, dim, late=node)
    return None


def _shifted_from(raised: Node) -> tuple[Node, Node, Tensor]:
    """What a softmax runs over: the input of its exponential, or what the largest was taken away from there."""
    made = raised.source(raised.args[0])
    if made.name == "sub" and len(made.args) > 1 and all(isinstance(one, Tensor) for one in made.args[:2]):
        scores, largest = made.args[:2]
        most = _back(made.source(largest), lambda one: one.name in ("max", "amax"))
        if most is not None and most.args and most.source(most.args[0]) is made.source(scores):
            return made, made.source(scores), scores
    return raised, made, raised.args[0]


def _axis(node: Node, many: int) -> int | None:
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    dims = [dim] if isinstance(dim, int) else list(dim or ())
    return dims[0] % many if len(dims) == 1 else None


def _back(node: Node, wanted: Callable[[Node], bool], over: bool = False) -> Node | None:
    """The nearest node of a kind behind this one, through views and what acts on each number alone."""
    todo = list(node.inputs.values()) if over else [node]
    for _ in range(32):
        if not todo:
            return None
        one = todo.pop(0)
        if wanted(one):
            return one
        if one.passes:
            todo.extend(one.inputs.values())
    return None
