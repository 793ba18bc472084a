"""Undoing what a forward pass leaves in modules: attributes, parts, and what it puts in their dicts and lists."""

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

__all__ = ["Attributes"]

_HELD = ("_modules", "_parameters", "_buffers")
_OWN = frozenset(vars(nn.Module()))  # what every module has: hooks have an undoing of their own
_Container = dict[Any, Any] | list[Any] | set[Any] | deque[Any]
_KINDS = (dict, OrderedDict, defaultdict, list, set, deque)  # no others: some make what they hold when they are asked


class Attributes:
    """What modules hold, to be put back.

    Args:
        modules: whose.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._states = [({**vars(one)}, [{**vars(one)[name]} for name in _HELD]) for one in modules]
        own = (value for one in modules for name, value in vars(one).items() if name not in _OWN)
        self._contents = [(one, _content(one)) for one in _containers(own)]

    @property
    def are_rebuilt(self) -> bool:
        """Whether modules are others now, or stand elsewhere."""
        return any(
            dict(module._modules) != held[0] for module, (_, held) in zip(self._modules, self._states, strict=True)
        )

    def put_back(self) -> None:
        """Everything as it was: the same objects, in the same order."""
        for module, (attributes, held) in zip(self._modules, self._states, strict=True):
            _put_back(vars(module), attributes)
            for name, own in zip(_HELD, held, strict=True):
                _put_back(vars(module)[name], own)
        for container, content in self._contents:
            if list(map(id, _content(container))) != list(map(id, content)) or isinstance(container, dict):
                _fill(container, content)


def _containers(values: Iterator[Any]) -> Iterator[_Container]:
    """Dicts, lists and sets, and those in them."""
    todo, seen = list(values), set()
    while todo:
        value = todo.pop()
        if type(value) in _KINDS and id(value) not in seen:
            seen.add(id(value))
            yield value
            todo.extend(value.values() if isinstance(value, dict) else value)


def _content(container: _Container) -> list[Any]:
    return list(container.items()) if isinstance(container, dict) else list(container)


def _fill(container: _Container, content: list[Any]) -> None:
    if isinstance(container, dict):
        _put_back(container, dict(content))
    elif isinstance(container, set):
        container &= set(content)
        container |= set(content)
    else:
        container.clear()
        container.extend(content)


def _put_back(now: dict[Any, Any], before: dict[Any, Any]) -> None:
    for name in now.keys() - before.keys():
        del now[name]
    # one by one, not emptied and filled: another thread may be running the model
    for name, value in before.items():
        if now.get(name, _put_back) is not value:
            now[name] = value
    if list(now) != list(before):  # something was taken out and is back at the end; modules have an order
        for name in before:
            now[name] = now.pop(name)
