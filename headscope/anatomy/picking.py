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
from headscope.anatomy.spelling import Spelling, Weighting
from headscope.errors import AnatomyError

__all__ = ["Picking", "entering_operation", "reading"]


@contextmanager
def entering_operation(
    model: nn.Module,
    module: nn.Module,
    spelling: Spelling,
    change: Callable[[Tensor, tuple[int, ...]], Tensor | None],
    *,
    first: bool = False,
) -> Iterator[None]:
    """While open, what enters an output projection that is no module goes through `change` first.

    Args:
        model: the model.
        module: the attention module, whose forward holds the projection.
        spelling: of its attention.
        change: given what enters and its axes of features; returns a replacement, or None.
        first: ahead of all others that change it.
    """
    assert spelling.output is not None
    weighting = spelling.weightings[spelling.output]
    owner, _, name = weighting.parameter.rpartition(".")
    weight: Tensor = getattr(model.get_submodule(owner), name)
    with reading(module, lambda: _Changer(weighting, weight, change), first=first):
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
    last: list[TorchFunctionMode] = []

    def enter(_: Any) -> None:
        running.append(mode())
        running[-1].__enter__()

    def leave() -> None:
        if running:
            last.append(running.pop())
            last[-1].__exit__(None, None, None)

    def after(*_: Any) -> None:
        ended = last[-1]
        last.clear()
        if isinstance(ended, Picking):
            ended.end()

    # the mode that is entered last is asked first
    with around(module, before=enter, after=after, leave=leave, first=not first):
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

    def end(self) -> None:
        """The forward has run to its end."""

    @abstractmethod
    def picked(self, call: tuple[str, int], function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation that was asked for, and give what it gives."""


class _Changer(Picking):
    """Changes what enters one operation, which must read the weight that it read in the probe."""

    def __init__(
        self, weighting: Weighting, weight: Tensor, change: Callable[[Tensor, tuple[int, ...]], Tensor | None]
    ) -> None:
        super().__init__({weighting.pick.call})
        self._weighting, self._weight, self._change = weighting, weight, change
        self._changed = False

    def picked(self, call: tuple[str, int], function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given, place = tensors_in((args, kwargs)), self._weighting.pick.place
        if place >= len(given) or not any(_is_of(one, self._weight) for one in (*given[:place], *given[place + 1 :])):
            return function(*args, **kwargs)
        self._changed, entering = True, given[place]
        with claiming():
            other = self._change(entering, self._weighting.entering)
        if other is not None:
            args, kwargs = (_replaced(part, entering, other) for part in (args, kwargs))
        return function(*args, **kwargs)

    def end(self) -> None:
        if not self._changed:
            raise AnatomyError(
                f"{self._weighting.parameter} is not read here where it was read in the probe: this forward goes "
                "another way; call discover again with an example like this input (and what else it is given)"
            )


def _is_of(tensor: Tensor, weight: Tensor) -> bool:
    """Whether a tensor is a weight, a view of it, or a copy in another precision."""
    if tensor.dtype != weight.dtype or weight.is_meta:
        return tensor.numel() <= weight.numel() and tensor.is_floating_point()
    return tensor.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()


def _replaced(value: Any, old: Tensor, new: Tensor) -> Any:
    if value is old:
        return new
    if isinstance(value, (list, tuple)):
        return type(value)(_replaced(part, old, new) for part in value)
    if isinstance(value, dict):
        return {name: _replaced(part, old, new) for name, part in value.items()}
    return value
