"""Labels: which number of one tensor becomes which number of another, told by replaying operations on a count.

Numbers are counted, 0, 1, 2 …, and the count goes through the recorded operations: views and copies move it, what acts
on each number alone leaves it, padding gives -1. Shapes are never compared, so that equal sizes mislead nobody.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from headscope.anatomy.operations import MOVES
from headscope.anatomy.recording import Node

__all__ = ["Labels", "UntraceableError"]

_NONE = -1


class UntraceableError(Exception):
    """Numbers cannot be followed through some operation."""


class Labels:
    """Where each number of one tensor goes.

    Args:
        start: the node that made it.
        tensor: the tensor, an output of that node.
        loosely: through norms and activations too, which make something else of a number, in the same place.
    """

    def __init__(self, start: Node, tensor: Tensor, *, loosely: bool = False) -> None:
        self.start = start
        self._loosely = loosely
        self.shape = tensor.shape
        self._memo: dict[tuple[int, int], Tensor] = {
            (id(start), id(tensor)): torch.arange(tensor.numel()).view(tensor.shape)
        }
        self._depends: dict[int, bool] = {id(start): True}

    def depends(self, node: Node) -> bool:
        """Whether anything of the tensor arrives there, by operations that labels can follow."""
        todo = [node]
        while todo:  # no recursion: graphs are as deep as models
            one = todo[-1]
            if id(one) in self._depends:
                todo.pop()
            elif one.index < self.start.index or not self._follows(one):
                self._depends[id(one)] = False
            else:
                sources = [one.source(tensor) for tensor in one.carried]
                missing = [source for source in sources if id(source) not in self._depends]
                if not missing:
                    self._depends[id(one)] = any(self._depends[id(source)] for source in sources)
                todo.extend(missing)
        return self._depends[id(node)]

    def _follows(self, node: Node) -> bool:
        return node.passes or node.name == "softmax" or (self._loosely and node.keeps_places)

    def at(self, node: Node, tensor: Tensor) -> Tensor:
        """For each number of `tensor`, an output of `node`: the count of the number it stems from; -1 for none.

        Raises:
            UntraceableError: an operation on the way mixes numbers, or puts them where it cannot be told.
        """
        key = (id(node), id(tensor))
        if key not in self._memo:
            if not self.depends(node):
                return torch.full(tensor.shape, _NONE)
            self._memo[key] = self._made(node, tensor)
        return self._memo[key]

    def _made(self, node: Node, tensor: Tensor) -> Tensor:
        if node.name == "view of its base":
            base = node.args[0]
            return _as_view(self.at(node.source(base), base), base, tensor)
        if node.name == "write into a view":
            base, view = node.args
            labels = self.at(node.source(base), base).clone()
            _as_view(labels, base, view).copy_(self.at(node.source(view), view))
            return labels
        if node.name == "__setitem__":
            base, index, value = node.args
            labels = self.at(node.source(base), base).clone()
            labels[index] = self.at(node.source(value), value) if isinstance(value, Tensor) else _NONE
            return labels
        if node.name in MOVES:
            return self._moved(node, tensor)
        return self._in_place(node, tensor)

    def _in_place(self, node: Node, tensor: Tensor) -> Tensor:
        arriving = [self.at(node.source(one), one) for one in node.carried if self.depends(node.source(one))]
        try:
            parts = [labels.expand(tensor.shape) for labels in arriving]
        except RuntimeError as error:
            raise UntraceableError(f"{node.name} changes the shape") from error
        labels = parts[0]
        for other in parts[1:]:
            both = (labels >= 0) & (other >= 0)
            if bool((labels[both] != other[both]).any()):
                raise UntraceableError(f"{node.name} mixes different numbers")
            labels = torch.maximum(labels, other)
        return labels

    def _moved(self, node: Node, tensor: Tensor) -> Tensor:
        carried = {id(tensor) for tensor in node.carried}

        def labelled(value: Any) -> Any:
            if isinstance(value, Tensor):
                return self.at(node.source(value), value) if id(value) in carried else value
            if isinstance(value, (list, tuple)):
                return type(value)(map(labelled, value)) if type(value) in (list, tuple) else value
            return value

        args, kwargs = labelled(node.args), {name: labelled(value) for name, value in node.kwargs.items()}
        try:
            with torch.no_grad():
                made = _replay(node, args, kwargs, tensor)
        except Exception as error:
            raise UntraceableError(f"{node.name} cannot be replayed ({error})") from error
        outs = [made] if isinstance(made, Tensor) else list(made)
        for out, labels in zip(node.outputs, outs, strict=True):
            if labels.shape != out.shape:
                raise UntraceableError(f"{node.name} cannot be replayed")
            self._memo[id(node), id(out)] = labels
        return self._memo[id(node), id(tensor)]


def _replay(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any], tensor: Tensor) -> Any:
    if node.name in ("pad", "constant_pad_nd"):
        mode = kwargs.get("mode", args[2] if len(args) > 2 and isinstance(args[2], str) else "constant")
        if mode != "constant":
            raise UntraceableError(f"{mode} padding repeats numbers")
        return F.pad(args[0], args[1] if len(args) > 1 else kwargs["pad"], value=_NONE)
    if node.name in ("view", "_unsafe_view", "_reshape_alias"):
        return args[0].reshape(tensor.shape)  # what was contiguous as numbers need not be so as labels
    assert node.function is not None
    return node.function(*args, **kwargs)


def _as_view(labels: Tensor, base: Tensor, view: Tensor) -> Tensor:
    if not base.is_contiguous() or not labels.is_contiguous():
        raise UntraceableError("a view of a base that is not laid out in order")
    return labels.as_strided(view.shape, view.stride(), view.storage_offset() - base.storage_offset())
