"""Weightings: operations that act as a linear layer without being a module, `F.linear(x, self.weight)` and the like."""

import torch
from torch import Tensor

from headscope.anatomy.coordinates import scattered
from headscope.anatomy.labels import Labels, UntraceableError
from headscope.anatomy.layout import IrregularError, Layout
from headscope.anatomy.operations import tensors_in
from headscope.anatomy.recording import Node, product, weight_of
from headscope.anatomy.spelling import Pick, Weighting

__all__ = ["features_of", "weighting_of"]

Own = tuple[str | None, ...]


def features_of(node: Node) -> tuple[Tensor, Tensor, tuple[int, ...], tuple[int, ...]] | None:
    """Of a contraction with a parameter: data, weight, and the axes of data and of the result that hold features."""
    weight, made = weight_of(node), product(node)
    if weight is None or made is None:
        return None
    axes, left, _ = made
    sides = (axes.left, axes.right, axes.of_left, axes.of_right)
    data, weights, of_data, of_weight = sides if left.data or weight_behind(made[2]) else (*sides[1::-1], *sides[:1:-1])
    if any(letter in of_data and letter in axes.of_result for letter in of_weight if letter is not None):
        return None  # a table for each row or head, not one map of features
    entering = tuple(axis for axis, letter in enumerate(of_data) if letter in axes.contracted)
    leaving = tuple(
        axis
        for axis, letter in enumerate(axes.of_result)
        if letter is not None and letter in of_weight and letter not in of_data
    )
    return (data, weights, entering, leaving) if leaving else None


def weight_behind(node: Node) -> bool:
    """Whether a tensor is a parameter, moved or cast."""
    while node.parameter is None:
        if node.data or not node.passes or not node.inputs:
            return False
        node = next(iter(node.inputs.values()))
    return True


def weighting_of(node: Node, depth: int) -> Weighting | None:
    """How a contraction with a parameter is spelled; None where it is none, or the parameter lies in no plain order.

    Args:
        node: the operation.
        depth: of the module, among its frames, that the operation is counted in.
    """
    weight, found = weight_of(node), features_of(node)
    if weight is None or found is None:
        return None
    data, weights, entering, leaving = found
    try:
        layout, first = _lies(node, weight, weights, data, entering, leaving)
    except (UntraceableError, IrregularError):
        return None
    place = next(place for place, one in enumerate(tensors_in((node.args, node.kwargs))) if one is data)
    assert weight.parameter is not None
    pick = Pick(node.name, node.frames[depth].nth, place)
    return Weighting(pick, weight.parameter, layout, first, entering, leaving)


def _lies(
    node: Node, weight: Node, weights: Tensor, data: Tensor, entering: tuple[int, ...], leaving: tuple[int, ...]
) -> tuple[str, int]:
    """From the parameter to (out, in), as a layout; and the first of its rows that is used."""
    parameter = weight.outputs[0]
    labels = Labels(weight, parameter).at(node.source(weights), weights)
    made = product(node)
    assert made is not None
    axes = made[0]
    of_data, of_weight = (axes.of_left, axes.of_right) if axes.left is data else (axes.of_right, axes.of_left)
    outs = _counted([axes.of_result[axis] for axis in leaving], of_weight, weights)
    ins = _counted([of_data[axis] for axis in entering], of_weight, weights)
    first = int(labels.flatten()[0]) // parameter.shape[-1] if parameter.ndim == 2 else 0
    lies = scattered({"o": outs + first, "i": ins}, labels, parameter.shape)
    missing = lies["o"] < 0
    if bool(missing.any()):  # packed with others: rows of a matrix, in their order
        rows = torch.arange(parameter.shape[0])[:, None].expand(parameter.shape) if parameter.ndim == 2 else lies["o"]
        if bool((lies["o"] != rows)[~missing].any()):
            raise IrregularError("it uses a part of its parameter that is not a run of rows")
        return "", first
    pattern = Layout.of(lies, "oi").pattern
    return ("" if pattern == "o i -> o i" else pattern), 0


def _counted(letters: list[str | None], own: Own, tensor: Tensor) -> Tensor:
    """For each number of the weight, its place among the features that these axes hold."""
    count, step = torch.zeros(tensor.shape, dtype=torch.long), 1
    for letter in reversed(letters):
        axis = own.index(letter)
        view = [1] * tensor.ndim
        view[axis] = tensor.shape[axis]
        count = count + (torch.arange(tensor.shape[axis]) * step).view(view)
        step *= tensor.shape[axis]
    return count
