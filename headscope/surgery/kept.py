"""Tensors that modules keep beside parameters and buffers: in attributes, and in dicts, lists and tuples there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["Kept", "kept_tensors"]

_OWN = frozenset(vars(nn.Module()))  # parameters, buffers, parts and hooks


@dataclass(frozen=True)
class Kept:
    """Where such a tensor stands.

    Attributes:
        tensor: what stands there.
    """

    tensor: Tensor
    _module: nn.Module
    _keys: tuple[Any, ...]

    def put(self, tensor: Tensor) -> None:
        """Let another tensor stand there; tuples around it are made anew."""
        own = vars(self._module)
        own[self._keys[0]] = _with(own[self._keys[0]], self._keys[1:], tensor)


def _with(value: Any, keys: Sequence[Any], tensor: Tensor) -> Any:
    if not keys:
        return tensor
    first, *rest = keys
    if not isinstance(value, tuple):
        value[first] = _with(value[first], rest, tensor)
        return value
    items = [_with(one, rest, tensor) if place == first else one for place, one in enumerate(value)]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def kept_tensors(model: nn.Module) -> dict[str, Kept]:
    """Each of them, by how it is reached from the model: "blocks.0.tables['near'][1]".

    What other objects hold, such as configs, is not looked into.

    Args:
        model: a model or a part of one.
    """
    found: dict[str, Kept] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in _OWN:
                for keys, tensor in _within(value, ()):
                    inner = "".join(f"[{one!r}]" for one in keys)
                    found[f"{name}.{key}{inner}".lstrip(".")] = Kept(tensor, module, (key, *keys))
    return found


def _within(value: Any, around: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    if isinstance(value, Tensor):
        yield (), value
    elif isinstance(value, dict | list | tuple) and not any(one is value for one in around):
        for key in value if isinstance(value, dict) else range(len(value)):
            for keys, tensor in _within(value[key], (*around, value)):
                yield (key, *keys), tensor
