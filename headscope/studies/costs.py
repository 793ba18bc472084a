"""Costs that repeat: operations as they are counted, and bytes of the tensors that are alive at once."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["Peak", "count_flops", "peak", "peak_bytes"]


def count_flops(run: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products in `run`, a multiplication and an addition counting as two.

    What works on each number alone, as softmax and norms do, is not counted. Counted by torch.
    """
    with FlopCounterMode(display=False, custom_mapping=_FUSED) as counter:
        run()
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class Peak:
    """The moment at which most bytes of tensors are alive.

    Attributes:
        bytes: of all tensors.
        masks: of these, bytes of tensors of truth values: masks that say who may look at whom.
    """

    bytes: int = 0
    masks: int = 0


def peak_bytes(run: Callable[[], Any]) -> int:
    """Most bytes of tensors made in `run` that are alive at once: the same on every run, on any machine.

    What stood before, what operations hold inside themselves, and what the allocator keeps at hand, is not seen.
    """
    return peak(run).bytes


def peak(run: Callable[[], Any]) -> Peak:
    """The same, with what masks are of it."""
    with _Living() as living:
        run()
    return living.peak


def _fused(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _fused_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


# the fused kernel of the CPU, which torch's own counter does not know
_FUSED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _fused,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _fused_backward,
}


class _Living(TorchDispatchMode):
    """Adds a storage when it is first seen, and takes it off when it goes."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._alive = Peak()
        self._seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._add((args, kwargs), count=False)  # stood before: a view of it is nothing new
        made = func(*args, **(kwargs or {}))
        self._add(made, count=True)
        return made

    def _add(self, tree: Any, count: bool) -> None:
        for leaf in tree_leaves(tree):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage()) not in self._seen:
                self._seen[storage] = count
                if count:
                    size = storage.nbytes()
                    own = Peak(size, size if leaf.dtype == torch.bool else 0)
                    weakref.finalize(storage, self._grow, own, -1).atexit = False
                    self._grow(own)
                    self.peak = max(self.peak, self._alive, key=lambda moment: moment.bytes)

    def _grow(self, own: Peak, times: int = 1) -> None:
        self._alive = Peak(self._alive.bytes + times * own.bytes, self._alive.masks + times * own.masks)
