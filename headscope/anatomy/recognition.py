"""Recognition: attention found in a recorded graph, whatever it is written in: softmax(q·kᵀ)·v, and fused calls.

From each softmax, back to the product that made the scores and forward to the product with the values, through views
and what acts on each number alone; then on to the layer that reads the result. Which axis is what is told by following
every number (`Labels`), never by sizes: the softmax must walk over exactly one free axis of the scores, and the second
product must sum over it; a head is what lands on columns of its own before the projection.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from headscope.anatomy.coordinates import Own, of_factor, of_tensor, ranked, scattered
from headscope.anatomy.joining import Attention, Piece, together
from headscope.anatomy.labels import Labels, UntraceableError
from headscope.anatomy.layout import IrregularError, Layout
from headscope.anatomy.lookalikes import find_alike, without_weights
from headscope.anatomy.operations import Axes, tensors_in
from headscope.anatomy.placing import UnlikeError, check_positions, place, reached
from headscope.anatomy.recording import Graph, Node, product, weight_of
from headscope.anatomy.route import Refusal
from headscope.anatomy.softmaxes import FUSED, Softmax, softmaxes
from headscope.anatomy.spelling import RESULT

__all__ = ["recognise"]


def recognise(graph: Graph) -> tuple[list[Attention], list[Refusal]]:
    """Every attention in a graph, in the order in which it ran, and what looks like it and is none.

    Args:
        graph: of one forward pass with at least two rows and two tokens.
    """
    pieces: list[Piece] = []
    refusals = []
    found: list[tuple[Node, Softmax | None]] = [(softmax.node, softmax) for softmax in softmaxes(graph)]
    found += [(node, None) for node in graph.nodes if node.name == FUSED]
    taken: set[int] = set()  # products that are scores of an attention before: a later one may add them to its own
    for node, softmax in found:
        try:
            pieces.append(_fused(node) if softmax is None else _written(softmax, taken))
        except (UnlikeError, UntraceableError, IrregularError) as error:
            why = str(error) or ("" if softmax is None else _pooled(softmax))
            if why:  # without a reason it is a softmax of something else: a gate, a router
                refusals.append(Refusal(node.frames[-1].module, why))
    by_reader: dict[int, list[Piece]] = {}
    for piece in sorted(pieces, key=lambda piece: piece.index):
        by_reader.setdefault(id(piece.placed.reader), []).append(piece)
    blamed = {refusal.module for refusal in refusals}
    read = [node for piece in pieces for node, _ in piece.nodes.values()]
    refusals += [refusal for refusal in find_alike(graph, read) if refusal.module not in blamed]
    return [site for own in by_reader.values() for site in together(own, graph)], refusals


def _pooled(softmax: Softmax) -> str:
    """Why a softmax whose scores are no product is none, though it weighs values that depend on the input."""
    try:
        value = _value(softmax)
    except (UnlikeError, UntraceableError):
        return ""
    weighed = _product(value.product)
    of_data = weighed[1].data and weighed[2].data
    entropy = any(one is softmax.source for one in without_weights(_factors(value.product).source(value.values)))
    return "its scores are no product of queries and keys" if of_data and not entropy else ""


def _written(softmax: Softmax, taken: set[int]) -> Piece:
    scores, value = _scores(softmax, taken), _value(softmax)
    placed = place(value.out, value.node, value.axes, value.of_map, value.of_values)
    lies = {"z": Layout.of(of_tensor(placed.letters, value.axes.of_result, value.out.shape), "bhtd")}
    check_positions(placed, lies["z"])
    lies["v"] = Layout.of(ranked(of_tensor(placed.letters, value.of_values, value.values.shape)), "bhkd")
    met = of_tensor(placed.letters, value.of_map, value.map.shape)
    pattern = scattered(met, value.labels, softmax.out.shape)
    lies |= {"pattern": Layout.of(pattern, "bhtk"), "met": Layout.of(met, "bhtk")}
    made = scattered(pattern, scores.labels, scores.out.shape)
    q = of_factor(made, scores.axes.of_result, scores.of_queries, scores.queries.shape, "bhtd")
    k = of_factor(made, scores.axes.of_result, scores.of_keys, scores.keys.shape, "bhkd")
    lies |= {"q": Layout.of(q, "bhtd"), "k": Layout.of(ranked(k), "bhkd")}
    if lies["q"].read(scores.queries).shape[1] > lies["pattern"].read(softmax.out).shape[1]:
        raise UnlikeError("its map is a part of a product with more heads")
    lies |= _where_regular("product", made)
    nodes = {
        "q": _pick(_factors(scores.node), scores.queries),
        "k": _pick(_factors(scores.node), scores.keys),
        "v": _pick(_factors(value.product), value.values),
        "met": _pick(_factors(value.product), value.map),
        "z": (value.node, RESULT),
        "pattern": (softmax.node, RESULT),
        "logits": _pick(softmax.entry, softmax.logits),
        "product": (scores.node, RESULT),
    }
    taken.add(id(scores.node))
    summed = any(_is_of_both(one, softmax, pattern) for one in scores.others)
    return Piece(nodes, lies, placed, softmax.node.index, softmax.late is not None, summed)


def _is_of_both(node: Node, softmax: Softmax, pattern: dict[str, Tensor]) -> bool:
    """Whether one factor of a product walks along queries alone and the other along keys: no table for each pair."""
    axes, out = _product(node)[0], node.outputs[0]
    made = scattered(pattern, Labels(node, out).at(softmax.source, softmax.logits), out.shape)
    sides = []
    for kind in "tk":
        letters = {c for axis, c in enumerate(axes.of_result) if _varies(made[kind], axis)} - {None}
        sides.append([bool(letters & set(own)) for own in (axes.of_left, axes.of_right)])
    return sorted(sides) == [[False, True], [True, False]]


def _varies(places: Tensor, axis: int) -> bool:
    before, after = _neighbours(places, axis)
    return bool(((before != after) & (torch.minimum(before, after) >= 0)).any())


def _where_regular(name: str, coordinates: dict[str, Tensor]) -> dict[str, Layout]:
    try:
        return {name: Layout.of(coordinates, "bhtk")}
    except IrregularError:  # keys that no softmax sees, say
        return {}


def _factors(node: Node) -> Node:
    """The operation that takes both factors: of (a * b).sum(axis), the first."""
    return node.source(node.args[0]) if node.name == "sum" else node


def _pick(node: Node, tensor: Tensor) -> tuple[Node, int]:
    return node, next(place for place, one in enumerate(tensors_in((node.args, node.kwargs))) if one is tensor)


@dataclass(frozen=True, eq=False)
class _Scores:
    """q·kᵀ behind a softmax; which of its numbers each of the logits stems from."""

    node: Node
    axes: Axes
    queries: Tensor
    keys: Tensor
    of_queries: Own
    of_keys: Own
    labels: Tensor
    others: list[Node]

    @property
    def out(self) -> Tensor:
        return self.node.outputs[0]


def _scores(softmax: Softmax, taken: set[int]) -> _Scores:
    both, single, mixers = _products_behind(softmax.source)
    own = [node for node in both if id(node) not in taken] or both
    # between the products and the softmax a layer mixes numbers: talking heads, say
    mixed = any(not _mixes_values(made) for one in mixers for made in _products_behind(one)[0])
    why = "its scores are mixed before the softmax" if mixed else ""
    for node in own or single:
        axes, others = _product(node)[0], [one for one in own if one is not node]
        labels = Labels(node, node.outputs[0]).at(softmax.source, softmax.logits)
        walked = _walked(labels, node.outputs[0].shape, axes.of_result, softmax.dim)
        of_right, of_left = axes.free(axes.of_right, axes.of_left), axes.free(axes.of_left, axes.of_right)
        if len(walked) != 1 or walked[0] not in (*of_right, *of_left):
            alone = softmax.logits.shape[softmax.dim] == 1
            why = why or ("it sees a single key" if alone else "its softmax does not run over the keys")
        elif not of_right or not of_left:
            why = why or "its scores have no axis of queries"
        elif any(_covers_more(one, softmax, labels) for one in (*both, *single) if one is not node):
            raise UnlikeError("its scores are put together from several products")
        elif walked[0] in of_right:
            return _Scores(node, axes, axes.left, axes.right, axes.of_left, axes.of_right, labels, others)
        else:
            return _Scores(node, axes, axes.right, axes.left, axes.of_right, axes.of_left, labels, others)
    raise UnlikeError(why)


def _product(node: Node) -> tuple[Axes, Node, Node]:
    made = product(node)
    assert made is not None
    return made


def _mixes_values(product: Node) -> bool:
    """Whether one of its factors is a map, so that it makes no scores."""
    todo, seen = list(product.inputs.values()), set()
    while todo:
        one = todo.pop()
        if id(one) not in seen:
            seen.add(id(one))
            if "softmax" in one.name:
                return True
            todo.extend(one.inputs.values() if one.passes else ())
    return False


def _products_behind(node: Node) -> tuple[list[Node], list[Node], list[Node]]:
    """Products of two tensors behind one: of two that depend on the input, and of which one does not.

    And what stands behind layers that come first.
    """
    both: list[Node] = []
    single: list[Node] = []
    layered: list[Node] = []
    seen: set[int] = set()
    todo = [node]
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        found = product(one)
        if found is not None:
            if found[1].data and found[2].data:
                both.append(one)
            elif weight_of(one) is None and one.linear is None:
                single.append(one)
        elif one.passes:
            todo.extend(one.inputs.values())
        if one.linear is not None or weight_of(one) is not None:
            layered += [source for source in one.inputs.values() if source.data]
    return sorted(both, key=lambda n: n.index), sorted(single, key=lambda n: n.index), layered


def _walked(labels: Tensor, shape: torch.Size, letters: Own, dim: int) -> list[str]:
    """The axes of the scores along which the softmax's axis moves."""
    before, after = _neighbours(labels, dim)
    both = (before >= 0) & (after >= 0)
    was, now = (torch.unravel_index(one.clamp(min=0), shape) for one in (before, after))
    pairs = zip(letters, was, now, strict=True)
    return [letter for letter, a, b in pairs if letter is not None and bool(((a != b) & both).any())]


def _neighbours(tensor: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    size = tensor.shape[axis] - 1
    return tensor.narrow(axis, 0, size), tensor.narrow(axis, 1, size)


def _covers_more(node: Node, softmax: Softmax, labels: Tensor) -> bool:
    other = Labels(node, node.outputs[0]).at(softmax.source, softmax.logits)
    return bool(((other >= 0) & (labels < 0)).any())


@dataclass(frozen=True, eq=False)
class _Value:
    """The product of a map and values; which of the map's numbers each of those that enter it stems from."""

    node: Node
    product: Node
    axes: Axes
    map: Tensor
    values: Tensor
    of_map: Own
    of_values: Own
    labels: Tensor
    of_data: bool

    @property
    def out(self) -> Tensor:
        return self.node.outputs[0]


def _value(softmax: Softmax) -> _Value:
    """The product of a map and values; where some values come from the input, that one."""
    found: list[_Value] = []
    # nobody reads it, as where a model makes a map for show
    why = "its map meets no values" if reached(softmax.node, lambda one: not one.passes) else ""
    labels = Labels(softmax.node, softmax.out)
    for node in reached(softmax.node, lambda one: product(one) is not None):
        axes, left, right = _product(node)
        if weight_of(node) is not None or node.linear is not None:
            why = "its map is mixed before it meets the values"
        elif (on_left := labels.depends(left)) != labels.depends(right):
            sides = (axes.left, axes.right, axes.of_left, axes.of_right)
            seen, values, of_map, of_values = sides if on_left else (sides[1], sides[0], sides[3], sides[2])
            own = labels.at(left if on_left else right, seen)
            if len(axes.contracted) == 1 and _sums_over(own, softmax, of_map.index(axes.contracted[0])):
                of_data = (right if on_left else left).data
                last = softmax.late or node
                found.append(_Value(last, node, axes, seen, values, of_map, of_values, own, of_data))
            else:
                why = "its values are not summed over the axis of its softmax"
    if not found:
        raise UnlikeError(why)
    chosen = next((one for one in found if one.of_data), found[0])
    used = set(chosen.labels.unique().tolist())
    others = [one for one in found if one is not chosen]
    if any(one.of_data or not used >= set(one.labels.unique().tolist()) for one in others):
        raise UnlikeError("its map is used in several pieces")
    return chosen


def _sums_over(labels: Tensor, softmax: Softmax, axis: int) -> bool:
    """Whether this axis of the map, and no other, runs over what the softmax ran over."""
    key = torch.unravel_index(labels.clamp(min=0), softmax.out.shape)[softmax.dim]
    for one in range(labels.ndim):
        before, after = _neighbours(key, one)
        valid = torch.stack(_neighbours(labels, one)).amin(0) >= 0
        if labels.shape[one] > 1 and bool(((before != after) & valid).any()) != (one == axis):
            return False
    return True


def _fused(node: Node) -> Piece:
    """scaled_dot_product_attention: which axis is what, apart from the heads, is told by its arguments."""
    names = ("query", "key", "value")
    given = dict(zip(names, node.args, strict=False)) | {n: node.kwargs[n] for n in names if n in node.kwargs}
    q, k, v = (given[name] for name in names)
    batch = tuple(f"b{axis}" for axis in range(q.ndim - 2))
    grouped = k.ndim > 2 and k.shape[-3] != q.shape[-3]
    of_k = (*batch[:-1], "g") if grouped else batch
    shape = torch.Size((*q.shape[:-1], k.shape[-2]))
    axes = Axes(q.new_empty(shape), v, (*batch, "m", "n"), (*of_k, "n", "c"), (*batch, "m", "c"))
    placed = place(node.outputs[0], node, axes, axes.of_left, axes.of_right)
    letters = placed.letters | {"e": {"d": torch.arange(q.shape[-1])}}
    if grouped:
        each = q.shape[-3] // k.shape[-3]
        letters["g"] = {kind: places[::each] for kind, places in letters[batch[-1]].items()}
    lies = {
        "q": Layout.of(of_tensor(letters, (*batch, "m", "e"), q.shape), "bhtd"),
        "k": Layout.of(ranked(of_tensor(letters, (*of_k, "n", "e"), k.shape)), "bhkd"),
        "v": Layout.of(ranked(of_tensor(letters, (*of_k, "n", "c"), v.shape)), "bhkd"),
        "z": Layout.of(of_tensor(letters, axes.of_result, node.outputs[0].shape), "bhtd"),
        "pattern": Layout.of(of_tensor(letters, axes.of_left, shape), "bhtk"),
    }
    check_positions(placed, lies["z"])
    nodes = {"q": _pick(node, q), "k": _pick(node, k), "v": _pick(node, v), "z": (node, RESULT)}
    return Piece(nodes, lies, placed, node.index)
