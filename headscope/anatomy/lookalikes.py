"""What mixes as attention does, and is none that is read: by sigmoids, kernels, distances, or with no weights at all.

Attention multiplies what depends on the input by what depends on the input, twice over, with no weights in between. So
do its linear and softmax-free kin, and recurrences with states of that form; nothing else in common use does.
"""

from collections.abc import Collection, Iterable

from torch import Tensor, nn

from headscope.anatomy.recording import Graph, Node, product, weight_of
from headscope.anatomy.route import Refusal

__all__ = ["find_alike"]

_WHY = "it multiplies what depends on the input twice over, as attention does, and by no softmax over keys that is read"


def find_alike(graph: Graph, read: Iterable[Node]) -> list[Refusal]:
    """Modules that do so outside of the attention that is read.

    Args:
        graph: of one forward pass.
        read: the operations of the attention that is read.
    """
    own = {id(node) for node in read}
    found: dict[nn.Module, Refusal] = {}
    for node in graph.nodes:
        factors = node.source(node.args[0]) if node.name == "sum" and node.args else node
        if id(node) not in own and id(factors) not in own and _pairs(node) and node.frames and _follows(node, own):
            found.setdefault(node.frames[-1].module, Refusal(node.frames[-1].module, _WHY, seen=False))
    return list(found.values())


def _pairs(node: Node) -> bool:
    """Whether a node sums products of two tensors that both depend on the input."""
    made = product(node) if node.function is not None and node.linear is None else None
    return made is not None and made[1].data and made[2].data


def _follows(node: Node, own: Collection[int]) -> bool:
    """Whether one factor was made, without weights, of two tensors in which everything meets everything."""
    todo, seen = list(node.inputs.values()), set()
    while todo:
        one = todo.pop()
        if id(one) in seen or id(one) in own or one.linear is not None or weight_of(one) is not None:
            continue
        seen.add(id(one))
        if one.function is not None and (one.name == "cdist" or _pairs(one) or _is_outer(one)):
            return True
        todo.extend(source for source in one.inputs.values() if source.data)
    return False


def _is_outer(node: Node) -> bool:
    """Whether each number of one tensor meets each of another: both are spread out along axes of the other."""
    factors = [one for one in node.tensors if node.source(one).data and one.is_floating_point()]
    return node.pointwise and len(factors) == 2 and _is_spread(*factors) and _is_spread(*reversed(factors))


def _is_spread(one: Tensor, other: Tensor) -> bool:
    many = max(one.ndim, other.ndim)
    own, its = ((1,) * (many - len(shape)) + tuple(shape) for shape in (one.shape, other.shape))
    return any(size == 1 < along for size, along in zip(own, its, strict=True))
