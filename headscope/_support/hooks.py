"""Hooks that a library leaves on a model's layers in the course of a forward."""

from collections.abc import Callable, Sequence

from torch import nn

__all__ = ["unhooking"]


def unhooking(modules: Sequence[nn.Module]) -> Callable[[], None]:
    """What takes off again the hooks that transformers has put on these modules since.

    Its first forward hooks the layers whose outputs it collects and marks the model; with the mark taken back and the
    hooks left, the next forward would hook them again, and collect each hidden state twice.
    """
    before = [(module._forward_hooks, set(module._forward_hooks)) for module in modules]

    def take_off() -> None:
        for hooks, known in before:
            for number in hooks.keys() - known:
                if str(getattr(hooks[number], "__module__", "")).startswith("transformers."):
                    del hooks[number]

    return take_off
