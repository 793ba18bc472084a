"""Edits of numbers that a module computes its shapes from: its own, and those of the config that it reads."""

from copy import copy
from dataclasses import dataclass
from typing import Any

from torch import nn

from headscope.errors import SurgeryError
from headscope.surgery.edits.base import EDITS, Edit

__all__ = ["AXES", "SHARED_CONFIG", "SetAttribute", "SetAxis", "SetConfig", "own_config"]

AXES = "axes_lengths"
"""Under this name a layer of einops keeps how long its axes are."""
SHARED_CONFIG = "_headscope_config"
"""Under this name a module with a config of its own keeps the one that it shared before."""


@EDITS.register("set_attribute")
@dataclass(frozen=True)
class SetAttribute(Edit):
    """Put an integer right that a module computes its shapes from."""

    name: str
    value: int
    was: int

    def apply(self, module: nn.Module) -> None:
        found = getattr(module, self.name, None)
        if found != self.was:
            raise SurgeryError(f"{self.module}.{self.name} is {found}; expected {self.was}")
        setattr(module, self.name, self.value)


@EDITS.register("set_axis")
@dataclass(frozen=True)
class SetAxis(SetAttribute):
    """Put right how long an axis is in a layer of einops, which holds its axes by name."""

    def apply(self, module: nn.Module) -> None:
        lengths = getattr(module, AXES, {})
        if lengths.get(self.name) != self.was:
            raise SurgeryError(f"{self.module}: {self.name} is {lengths.get(self.name)}; expected {self.was}")
        # made anew, as from a file: what it works out of its lengths follows; what every module has stays
        other: Any = type(module).__new__(type(module))
        other.__setstate__(module.__getstate__() | {AXES: lengths | {self.name: self.value}})
        vars(module).update({name: own for name, own in vars(other).items() if name not in vars(nn.Module())})


@EDITS.register("set_config")
@dataclass(frozen=True)
class SetConfig(Edit):
    """Put an integer right in the config that a module reads as it runs: in one of its own, so that no other sees it.

    Attributes:
        name: of the number in the config.
        value, was: what it becomes, what it is.
    """

    name: str
    value: int
    was: int

    def apply(self, module: nn.Module) -> None:
        config = own_config(module)
        found = getattr(config, "__dict__", {}).get(self.name)
        if found != self.was:
            raise SurgeryError(f"{self.module}.config.{self.name} is {found}; expected {self.was}")
        # not by setattr: some configs write aliases, or refuse a number that others have to fit
        config.__dict__[self.name] = self.value


def own_config(module: nn.Module) -> Any:
    """The config of a module, as a copy that is its alone; made at the first call.

    Args:
        module: an attention module of transformers.

    Raises:
        SurgeryError: it has none.
    """
    config: Any = getattr(module, "config", None)
    if not hasattr(config, "_attn_implementation_internal"):
        raise SurgeryError(f"{type(module).__name__} has no config of its own to change")
    if SHARED_CONFIG not in module.__dict__:
        module.__dict__[SHARED_CONFIG] = config
        module.config = copy(config)
    return module.config
