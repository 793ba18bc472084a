"""Adapters: PEFT can run rows, or positions, of one batch under adapters of their own; heads are told for one."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from headscope.errors import InputError

__all__ = ["check_one_adapter", "several_adapters"]

_BY_ROW = ("adapter_names", "alora_offsets")  # what PEFT reads to do so
_ONE_BY_ONE = "the rows of each adapter by themselves, after model.set_adapter(NAME)"


def check_one_adapter(batch: Mapping[str, Any], taken: Collection[str]) -> None:
    """Refuse a batch that asks for several adapters at once.

    Args:
        batch: as the model will be given.
        taken: what the model's own forward takes by name.

    Raises:
        InputError: it does.
    """
    mixed = [name for name in _BY_ROW if name not in taken and batch.get(name) is not None]
    if mixed:
        raise InputError(
            f"the batches hold {mixed[0]!r}: heads are told for one adapter at a time, as their weights are others "
            f"under another; give {_ONE_BY_ONE}"
        )


def several_adapters(module: nn.Module) -> str:
    """What is wrong with reading a module's weight in the forward pass that runs now, in words; "" where nothing is.

    Args:
        module: an output projection.
    """
    for hook in module._forward_pre_hooks.values():
        given = getattr(hook, "keywords", {})  # PEFT hands them over by a hook that it puts on for the call
        mixed = [name for name in _BY_ROW if given.get(name) is not None]
        if mixed:
            return (
                f"rows ran under adapters of their own ({mixed[0]}), and contributions would be read with the weights "
                f"of the active one; run {_ONE_BY_ONE}"
            )
    return ""
