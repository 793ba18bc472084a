"""What mixes as attention does, and is none that is read: by sigmoids, kernels, distances, or with no weights at all.

Attention multiplies what depends on the input by what depends on the input, twice over, with no weights in between, so
that one number of its result stems from several positions and features. So do its linear and softmax-free kin, and
recurrences with states of that form; little else in common use does.
"""

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from headscope.anatomy.graph import mixes
from headscope.anatomy.operations import CASTS, MOVES
from headscope.anatomy.recording import Graph, Node, product, weight_of
from headscope.anatomy.route import Refusal

__all__ = ["find_alike", "without_weights"]

_WHY = "it multiplies what depends on the input twice over, as attention does, and by no softmax over keys that is read"


def find_alike(graph: Graph, read: Iterable[Node]) -> list[Refusal]:
    """Modules that do so outside of the attention that is read.

    Args:
        graph: of one forward pass, recorded with gradients.
        read: the operations of the attention that is read.
    """
    own, features = {id(node) for node in read}, _features(graph)
    found: dict[nn.Module, Refusal] = {}
    for node in graph.nodes:
        factors = node.source(node.args[0]) if node.name == "sum" and node.args else node
        if id(node) in own or id(factors) in own or not node.frames or not _multiplies(node, features):
            continue
        module = node.frames[-1].module
        if module not in found and any(id(one) not in own and _meet(one, features) for one in without_weights(node)):
            made_of = [tensor for one in _behind(node) if _has_weights(one) for tensor in one.outputs]
            told = mixes(node.outputs[0], made_of)
            # a map of ones and zeros has no slope, and hides what it does
            weighed = (one.outputs[0] for one in node.inputs.values() if one.outputs[0].requires_grad)
            hidden = told is False and any(mixes(one, made_of) is None for one in weighed)
            # experts add up what they make in place, and gradients do not tell what of it was there before
            if told or hidden or (told is None and node.name not in _SCATTERS):
                found[module] = Refusal(module, _WHY, seen=False)
    return list(found.values())


def without_weights(node: Node) -> Iterator[Node]:
    """What stands behind a node, up to layers and other products with weights."""
    return (one for one in _behind(node) if not _has_weights(one))


def _behind(node: Node) -> Iterator[Node]:
    """What stands behind a node, up to layers and other products with weights, and these."""
    todo, seen = [source for source in node.inputs.values() if source.data], set()
    while todo:
        one = todo.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            todo.extend(() if _has_weights(one) else (source for source in one.inputs.values() if source.data))


def _has_weights(node: Node) -> bool:
    return node.linear is not None or node.name == "embedding" or weight_of(node) is not None


def _features(graph: Graph) -> set[int]:
    """What layers made of the input: no indices, no masks."""
    found: set[int] = set()
    for node in graph.nodes:  # in the order in which they ran
        if node.data and (_has_weights(node) or any(id(one) in found for one in node.inputs.values())):
            found.add(id(node))
    return found


def _multiplies(node: Node, features: set[int]) -> bool:
    """Whether a node sums products of two tensors of features: over an axis, or wherever indices send them."""
    if node.name in _SCATTERS:
        sent = [node.source(tensor) for tensor in node.tensors[1:]]
        return any(_is_product_of(one, features) for one in sent)
    made = product(node) if node.function is not None and node.linear is None else None
    return made is not None and all(id(one) in features for one in made[1:])


_SCATTERS = frozenset({
    "index_add", "scatter_add", "scatter_reduce", "index_reduce", "index_put", "segment_reduce", "scatter",
})  # fmt: skip


def _is_product_of(node: Node, features: set[int]) -> bool:
    """Whether it is two tensors of features, multiplied, and perhaps moved since."""
    while node.name in MOVES | CASTS and node.carried:
        node = node.source(node.carried[0])
    pair = [node.source(one) for one in node.tensors] if node.name == "mul" else []
    return len(pair) == 2 and all(id(one) in features for one in pair)


def _meet(node: Node, features: set[int]) -> bool:
    """Whether all features of one tensor meet all of another there."""
    if _multiplies(node, features):
        return True
    pair = node.tensors if node.name == "cdist" or node.pointwise else []
    sources = [node.source(one) for one in pair]
    if len(pair) != 2 or not all(id(one) in features for one in sources):
        return False
    return node.name == "cdist" or (_is_spread(*pair) and _is_spread(*reversed(pair)))


def _is_spread(one: Tensor, other: Tensor) -> bool:
    """Whether one tensor is repeated along an axis of the other."""
    many = max(one.ndim, other.ndim)
    own, its = ((1,) * (many - len(shape)) + tuple(shape) for shape in (one.shape, other.shape))
    return any(size == 1 < along for size, along in zip(own, its, strict=True))
