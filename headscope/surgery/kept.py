"""Tensors that modules keep beside parameters and buffers: in attributes, and in dicts, lists and tuples there."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
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
    _holder: Any
    _key: Any

    def put(self, tensor: Tensor) -> None:
        """Let another tensor stand there.

        Raises:
            ValueError: a tuple holds it, and it is another.
        """
        if isinstance(self._holder, dict | list):
            self._holder[self._key] = tensor
        elif self.tensor.is_meta or not torch.equal(self.tensor.cpu(), tensor.cpu()):
            raise ValueError("it stands in a tuple, in which nothing can be replaced; make it a buffer, or hold a list")


def kept_tensors(model: nn.Module) -> dict[str, Kept]:
    """Each of them, by its name: that of the module, of the attribute, and what leads to it from there.

    What other objects hold, such as configs, is not looked into.

    Args:
        model: a model or a part of one.
    """
    found: dict[str, Kept] = {}
    for name, module in model.named_modules():
        own = {key: value for key, value in vars(module).items() if key not in _OWN}
        for key in own:
            found |= dict(_within(f"{name}.{key}" if name else key, vars(module), key, ()))
    return found


def _within(name: str, holder: Any, key: Any, around: tuple[Any, ...]) -> Iterator[tuple[str, Kept]]:
    value = holder[key]
    if isinstance(value, Tensor):
        yield name, Kept(value, holder, key)
    elif isinstance(value, dict | list | tuple) and not any(one is value for one in around):
        for inner in value if isinstance(value, dict) else range(len(value)):
            yield from _within(f"{name}.{inner}", value, inner, (*around, value))
