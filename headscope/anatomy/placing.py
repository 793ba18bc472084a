"""Placing: where what attention makes lands in the layer that reads it, which tells heads, rows and positions."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headscope.anatomy.coordinates import Letters, Own, split_axis
from headscope.anatomy.features import feature_axis
from headscope.anatomy.labels import Labels
from headscope.anatomy.layout import IrregularError, Layout
from headscope.anatomy.operations import MOVES, Axes
from headscope.anatomy.recording import Node, product, weight_of
from headscope.anatomy.weightings import features_of

__all__ = ["Placed", "UnlikeError", "check_positions", "place", "reached"]

_APART = 1 << 32  # between the columns of layers that share what they read


class UnlikeError(Exception):
    """It is no attention as it is meant here, for the reason given."""


@dataclass(frozen=True, eq=False)
class Placed:
    """Where z lands.

    Attributes:
        letters: by axis, the place of each of its values by kind.
        rows: of z's numbers, the row of the layer's input that each lands in; -1 for what is thrown away.
        reader: the operation that reads z.
        alone: whether it alone reads all of z.
        first_column: of its input that z fills.
    """

    letters: Letters
    rows: Tensor
    reader: Node
    alone: bool
    first_column: int


_STREAMS = (
    "several layers read what its heads make, each at some of the positions, as where two streams attend together "
    "(MMDiT)"
)


def place(out: Tensor, node: Node, axes: Axes, of_map: Own, of_values: Own) -> Placed:
    """For each axis of z what its places are: rows of the batch, heads, positions, dimensions."""
    rows, columns, reader, alone = _read_by(out, node)
    letters = axes.of_result
    dims = [axis for axis, c in enumerate(letters) if c is not None and c in of_values and c not in of_map]
    valid, least, row = rows >= 0, columns, rows
    for axis in dims:
        valid, least = valid.all(axis, keepdim=True), least.amin(axis, keepdim=True)
        row = row.narrow(axis, 0, 1)
    if not bool(valid.any()):
        raise UnlikeError("nothing of what it makes is used")
    if not bool((rows == row)[valid.expand_as(rows)].all()):
        raise UnlikeError("one row of what it makes lands in several places")
    heads = torch.full_like(least, -1)
    starts, heads[valid] = least[valid].unique(return_inverse=True)
    known: Letters = {}
    base: list[Any] = torch.nonzero(valid)[0].tolist()
    count = {"b": 1, "t": 1, "d": 1}
    for axis in reversed(range(len(letters))):
        letter, size = letters[axis], out.shape[axis]
        if letter is not None and axis in dims:
            known[letter] = {"d": torch.arange(size) * count["d"]}
            count["d"] *= size
        elif letter is not None:
            line = (*base[:axis], slice(None), *base[axis + 1 :])
            try:
                known[letter] = split_axis(heads[line], "b" if letter in of_values else "t", count)
            except IrregularError:
                if alone:
                    raise
                raise UnlikeError(_STREAMS) from None
    contracted = axes.contracted[0]
    known[contracted] = {"k": torch.arange(axes.size(contracted))}
    return Placed(known, rows, reader, alone, int(starts[0]))


def check_positions(placed: Placed, layout: Layout) -> None:
    """One position is one row of what is read, for all heads: else what one head calls a position another does not."""
    rows = layout.read(placed.rows)
    if not bool(((rows == rows[:, :1]) | (rows < 0) | (rows[:, :1] < 0)).all()):
        raise UnlikeError("its heads do not see the same positions in the same order")


def _read_by(out: Tensor, node: Node) -> tuple[Tensor, Tensor, Node, bool]:
    """Row and column of each number of z where a layer reads it; the operation that does, and whether it alone does."""
    labels = Labels(node, out, loosely=True)
    rows, columns = torch.full((out.numel(),), -1), torch.full((out.numel(),), -1)
    first, alone = None, True
    for number, (reader, source, entering) in enumerate(_readings(node, labels)):
        if bool((rows >= 0).all()):
            break
        lands = _features_last(reader, entering, labels.at(source, entering)).flatten(0, -2)
        used = lands >= 0
        row = torch.arange(lands.shape[0])[:, None].expand_as(lands)[used]
        column = torch.arange(lands.shape[1]).expand_as(lands)[used] + number * _APART
        new = rows[lands[used]] < 0
        alone = alone and (first is None or not bool(new.any()))
        rows[lands[used][new]], columns[lands[used][new]] = row[new], column[new]
        first = first or reader
    if first is None:
        raise UnlikeError("no layer reads what it makes")
    return rows.view(out.shape), columns.view(out.shape), first, alone


def _readings(node: Node, labels: Labels) -> Iterator[tuple[Node, Node, Tensor]]:
    """Each operation that reads z, what made the tensor that it reads, and the tensor.

    Where no layer does, the heads may still be put side by side in the end.
    """
    readers = reached(node, lambda one: one.linear is not None or weight_of(one) is not None, loosely=True)
    for reader in readers:
        entering = next((one for one in reader.carried if labels.depends(reader.source(one))), None)
        if entering is not None:
            yield reader, reader.source(entering), entering
    if not readers:
        joined = reached(node, lambda one: one.name in MOVES and one.outputs[0].ndim < len(labels.shape))
        for end in joined[:1]:
            yield end, end, end.outputs[0]


def _features_last(reader: Node, entering: Tensor, lands: Tensor) -> Tensor:
    """What enters a layer with the axes that it sums over last, as one."""
    if reader.linear is not None:  # whatever its forward does first
        return lands.movedim(feature_axis(reader.linear, entering), -1)
    if reader.name.startswith("conv"):
        return lands.movedim(1, -1)
    found = features_of(reader)
    summed = found[2] if found is not None and found[0] is entering else _summed(reader, entering)
    rest = [axis for axis in range(lands.ndim) if axis not in summed]
    return lands.permute(*rest, *summed).flatten(len(rest)) if rest else lands[None]


def _summed(reader: Node, entering: Tensor) -> tuple[int, ...]:
    """The axes that hold features: where each head has a matrix of its own, that of heads too."""
    made = product(reader)
    axes = None if made is None else made[0]
    if axes is None or not any(one is entering for one in (axes.left, axes.right)):
        return (entering.ndim - 1,)
    own, other = (axes.of_left, axes.of_right) if axes.left is entering else (axes.of_right, axes.of_left)
    return tuple(axis for axis, letter in enumerate(own) if letter is not None and letter in other)


def reached(node: Node, wanted: Callable[[Node], bool], *, loosely: bool = False) -> list[Node]:
    """The first nodes of a kind that a tensor arrives at, through views and what acts on each number alone.

    Args:
        node: that makes the tensor.
        wanted: the kind.
        loosely: through norms and activations too.
    """
    found: list[Node] = []
    seen: set[int] = set()
    todo = [node]
    while todo:
        for user in todo.pop(0).users:
            if id(user) not in seen:
                seen.add(id(user))
                if wanted(user):
                    found.append(user)
                elif user.passes or (loosely and user.keeps_places):
                    todo.append(user)
    return sorted(found, key=lambda n: n.index)
