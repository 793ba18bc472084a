"""Picking: single operations of one module's forward, looked at or changed as they go by."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from headscope._support.around import around
from headscope.anatomy.operations import tensors_in
from headscope.anatomy.overhearing import Overhearing
from headscope.anatomy.route import claiming
from headscope.anatomy.spelling import Pick, Spelling
from headscope.errors import AnatomyError

__all__ = ["Picking", "entering_operation", "reading"]


@contextmanager
def entering_operation(
    module: nn.Module,
    spelling: Spelling,
    change: Callable[[Tensor, tuple[int, ...]], Tensor | None],
    *,
    first: bool = False,
) -> Iterator[None]:
    """While open, what enters an output projection that is no module goes through `change` first.

    Args:
        module: the attention module, whose forward holds the projection.
        spelling: of its attention.
        change: given what enters and its axes of features; returns a replacement, or None.
        first: ahead of all others that change it.
    """
    assert spelling.output is not None
    weighting = spelling.weightings[spelling.output]
    with reading(module, lambda: _Changer(weighting.pick, weighting.entering, change), first=first):
        yield


@contextmanager
def reading(module: nn.Module, mode: Callable[[], TorchFunctionMode], *, first: bool = False) -> Iterator[None]:
    """Let a function mode watch this module's forward on this thread, and nothing else; a new one in each call.

    Args:
        module: the module.
        mode: makes one.
        first: whether it sees an operation before all others that are open.
    """
    running: list[TorchFunctionMode] = []

    def enter(_: Any) -> None:
        running.append(mode())
        running[-1].__enter__()

    def leave() -> None:
        if running:
            running.pop().__exit__(None, None, None)

    # the mode that is entered last is asked first
    with around(module, before=enter, leave=leave, first=not first):
        try:
            yield
        finally:
            while running:  # where it was stopped from outside, nothing was called after it
                leave()


class Picking(Overhearing):
    """Counts operations by name, and stops at those that were asked for.

    Args:
        wanted: by name and by how many of that name ran before.
        most: by name, how many there may be.
    """

    def __init__(self, wanted: Collection[tuple[str, int]], most: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self._wanted = frozenset(wanted)
        self._most = most or {}
        self._count: dict[str, int] = {}

    def heard(self, name: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nth = self._count[name] = self._count.get(name, -1) + 1
        if nth >= self._most.get(name, nth + 1):
            raise AnatomyError(
                f"{name} runs more often here than the {self._most[name]} times that it ran in the probe: this forward "
                "goes through a longer input piece by piece, and what is done to the pieces cannot be read"
            )
        if (name, nth) not in self._wanted:
            return function(*args, **kwargs)
        return self.picked((name, nth), function, args, kwargs)

    @abstractmethod
    def picked(self, call: tuple[str, int], function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation that was asked for, and give what it gives."""


class _Changer(Picking):
    """Changes what enters one operation."""

    def __init__(
        self, pick: Pick, axes: tuple[int, ...], change: Callable[[Tensor, tuple[int, ...]], Tensor | None]
    ) -> None:
        super().__init__({pick.call})
        self._place, self._axes, self._change = pick.place, axes, change

    def picked(self, call: tuple[str, int], function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        entering = tensors_in((args, kwargs))[self._place]
        with claiming():
            other = self._change(entering, self._axes)
        if other is not None:
            args, kwargs = (_replaced(part, entering, other) for part in (args, kwargs))
        return function(*args, **kwargs)


def _replaced(value: Any, old: Tensor, new: Tensor) -> Any:
    if value is old:
        return new
    if isinstance(value, (list, tuple)):
        return type(value)(_replaced(part, old, new) for part in value)
    if isinstance(value, dict):
        return {name: _replaced(part, old, new) for name, part in value.items()}
    return value
