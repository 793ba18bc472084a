"""Joining: which of what was recognised is one site, heads side by side before one layer, and how it is spelled."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from headscope.anatomy.layout import Layout
from headscope.anatomy.operations import tensors_in
from headscope.anatomy.placing import Placed
from headscope.anatomy.recording import Graph, Node
from headscope.anatomy.spelling import RESULT, Part, Pick, Spelling, Weighting
from headscope.anatomy.weightings import weighting_of

__all__ = ["Attention", "Piece", "together"]


@dataclass(frozen=True, eq=False)
class Attention:
    """A site as the graph shows it: the module whose forward holds all of it, and how it is spelled there."""

    module: nn.Module
    call: int
    spelling: Spelling


@dataclass(frozen=True, eq=False)
class Piece:
    """One softmax (or fused call) with all that belongs to it."""

    nodes: dict[str, tuple[Node, int]]
    layouts: dict[str, Layout]
    placed: Placed
    index: int
    late: bool = False
    summed: bool = False

    def width(self, name: str) -> int:
        """Of one query ("q") or value ("v")."""
        node, place = self.nodes[name]
        tensor: Tensor = node.outputs[0] if place == RESULT else tensors_in((node.args, node.kwargs))[place]
        return self.layouts[name].read(tensor).shape[-1]


def together(pieces: list[Piece], graph: Graph) -> Iterator[Attention]:
    """Sites of pieces that one layer reads: one of all that have one width, where they lie side by side; else one each.

    Args:
        pieces: in the order in which they ran.
        graph: that they are of.
    """
    apart = len({piece.placed.first_column for piece in pieces}) == len(pieces)
    for own in _of_one_width(pieces) if apart else [[piece] for piece in pieces]:
        nodes = [node for piece in own for node, _ in piece.nodes.values()]
        depth = _shared_depth(nodes)
        if depth is not None:
            yield _site(own, nodes[0], depth, graph)


def _of_one_width(pieces: list[Piece]) -> list[list[Piece]]:
    groups: dict[tuple[int, ...], list[Piece]] = {}
    for piece in sorted(pieces, key=lambda piece: piece.placed.first_column):
        groups.setdefault(tuple(piece.width(name) for name in ("q", "v")), []).append(piece)
    return sorted(groups.values(), key=lambda own: min(piece.index for piece in own))


def _site(pieces: list[Piece], node: Node, depth: int, graph: Graph) -> Attention:
    def picks(piece: Piece) -> dict[str, Pick]:
        return {name: Pick(one.name, one.frames[depth].nth, place) for name, (one, place) in piece.nodes.items()}

    parts = tuple(Part(picks(piece), piece.layouts, piece.late, piece.summed) for piece in pieces)
    frame, reader = node.frames[depth], pieces[0].placed.reader
    weightings: list[Weighting] = []
    output = None
    for one in graph.nodes:
        here = one.frames[depth] if len(one.frames) > depth and one.linear is None else None
        if here is not None and (here.module, here.call) == (frame.module, frame.call):
            weighting = weighting_of(one, depth)
            if weighting is not None:
                output = len(weightings) if one is reader and pieces[0].placed.alone else output
                weightings.append(weighting)
    totals = _totals([piece.nodes.get("pattern", piece.nodes["z"])[0] for piece in pieces], depth, graph)
    return Attention(frame.module, frame.call, Spelling(parts, tuple(weightings), output, totals))


def _totals(makers: list[Node], depth: int, graph: Graph) -> dict[str, int]:
    """How often operations run in the call of the module that these ran in, by name."""
    place = (makers[0].frames[depth].module, makers[0].frames[depth].call)
    names = {node.name for node in makers}
    runs = [
        one.name
        for one in graph.nodes
        if one.name in names and len(one.frames) > depth
        and (one.frames[depth].module, one.frames[depth].call) == place
    ]  # fmt: skip
    return dict(Counter(runs))


def _shared_depth(nodes: list[Node]) -> int | None:
    """How deep the innermost module stands that was running all of these operations in one call."""
    depth = None
    for level, frames in enumerate(zip(*(node.frames for node in nodes), strict=False)):
        if len({(frame.module, frame.call) for frame in frames}) > 1:
            break
        depth = level
    return depth
