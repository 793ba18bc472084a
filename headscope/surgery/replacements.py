"""What a cut module runs where slicing its weights is not enough.

Each replacement sets an attribute of the module instance and nothing else: the module keeps its class and its place,
and what it needs is copied, moved and cast along with it.
"""

import math
import sys
from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from headscope.anatomy.linear import stores_transposed
from headscope.errors import SurgeryError
from headscope.surgery.forwards import replace_forward

__all__ = ["KV_BUFFER", "empty_attention", "map_groups", "repair_sizes"]

KV_BUFFER = "_headscope_kv_of_query"

_IMPLEMENTATION = "headscope"
_SHARED_CONFIG = "_headscope_config"
_KNOWN = "_headscope_known"


def map_groups(module: nn.Module, kv_of_query: Sequence[int]) -> None:
    """Let each query head of a module of transformers read the key and value head that the map names.

    The module gets a config of its own that names our attention function; the model's config, which makes masks and
    caches and names the function that does the work in the end, stays what it is.

    Args:
        module: an attention module that dispatches through `AttentionInterface`.
        kv_of_query: for each query head left, the index of a key head left.

    Raises:
        SurgeryError: the module has no config to give it a name by.
    """
    config = getattr(module, "config", None)
    if config is None or not hasattr(config, "_attn_implementation_internal"):
        raise SurgeryError(
            f"{type(module).__name__} has no config of its own to change: its query heads cannot be mapped onto key "
            "heads unevenly; cut as many from each group, or whole groups"
        )
    module.__dict__[_KNOWN] = _Registered()
    if _SHARED_CONFIG not in module.__dict__:
        module.__dict__[_SHARED_CONFIG] = config
        module.config = copy(config)
        # not by the property: its setter would reach into sub-configs that the copy shares with the model's config
        module.config.__dict__["_attn_implementation_internal"] = _IMPLEMENTATION
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    index = torch.tensor(tuple(kv_of_query), dtype=torch.long, device=device)
    module.register_buffer(KV_BUFFER, index, persistent=False)


class _Registered:
    """Kept by a module whose config names our attention function: made, copied or unpickled, it makes the name known.

    Not done on import: only a process that holds a model with uneven groups needs it.
    """

    def __init__(self) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(_IMPLEMENTATION, _attend_by_map)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


def _attend_by_map(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Any:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = module.__dict__[_SHARED_CONFIG]._attn_implementation
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, _eager(module))
    index = module.get_buffer(KV_BUFFER)
    return attend(module, query, key.index_select(1, index), value.index_select(1, index), attention_mask, **kwargs)


def _eager(module: nn.Module) -> Any:
    """The family's own function: it is in no registry, but stands beside the class that calls it."""
    for kind in type(module).__mro__:
        function = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if function is not None:
            return function
    return None


def empty_attention(
    module: nn.Module, projection: str | None, returns: Sequence[str] | None, keeps_cache: bool
) -> None:
    """Let an attention module without heads return what its output projection makes of nothing: its bias.

    Args:
        module: the attention module.
        projection: its output projection, by its name inside the module, already without columns; None where the
            projection stands outside, which then gets a z without columns.
        returns: what the module returns, entry by entry: "output", "map" (a map of no heads, or None where the
            model's attention function returns no maps) or "nothing" (None); None if it returns the output alone.
        keeps_cache: whether a KV cache passed in is to learn that the tokens went by: its length is read off it.
    """
    replace_forward(module, _run_empty, projection, returns, keeps_cache)


def _run_empty(
    self: nn.Module,
    projection: str | None,
    returns: Sequence[str] | None,
    keeps_cache: bool,
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    hidden = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim > 1)
    keys = _count_tokens(self, hidden, (*args, *kwargs.values())) if keeps_cache else hidden.shape[1]
    output = _bias(hidden, None if projection is None else self.get_submodule(projection))
    if returns is None:
        return output
    seen = hidden.new_zeros(hidden.shape[0], 0, hidden.shape[1], keys) if _returns_maps(self) else None
    entries = {"output": output, "nothing": None, "map": seen}
    return tuple(entries[name] for name in returns)


def _bias(hidden: Tensor, projection: nn.Module | None) -> Tensor:
    """What the projection makes of nothing at each position of `hidden`; without one, nothing itself."""
    if projection is None:
        return hidden.new_zeros(*hidden.shape[:-1], 0)
    layer: Any = projection
    while isinstance(beneath := getattr(layer, "base_layer", None), nn.Module):
        layer = beneath  # adapters around it make nothing of nothing
    # not by calling it: Conv1D cannot reshape what has no elements
    output = hidden.new_zeros(*hidden.shape[:-1], layer.weight.shape[1 if stores_transposed(layer) else 0])
    return output if layer.bias is None else output + layer.bias


def _returns_maps(module: nn.Module) -> bool:
    config = module.__dict__.get(_SHARED_CONFIG, getattr(module, "config", None))
    return getattr(config, "_attn_implementation", "eager") == "eager"


def _count_tokens(module: nn.Module, hidden: Tensor, values: Sequence[Any]) -> int:
    """Store one number per token in a KV cache: a cache without entries would say that no token has gone by.

    Returns:
        How many keys there would be.
    """
    caching = sys.modules.get("transformers.cache_utils")
    layer = getattr(module, "layer_idx", None)
    if caching is None or layer is None or hidden.ndim != 3:
        return hidden.shape[1]
    for value in values:
        if isinstance(value, caching.EncoderDecoderCache):
            value = value.self_attention_cache
        if isinstance(value, caching.Cache):
            token = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[1], 1)
            return int(value.update(token, token, layer)[0].shape[-2])
    return hidden.shape[1]


def repair_sizes(module: nn.Module, sizes: Sequence[tuple[int, int]]) -> None:
    """Let a module's forward run although it computes sizes from a width that it no longer has.

    Where `view`, `reshape` or `split` is asked for sizes that the tensor does not have, the last stale size that makes
    it fit is put right. Sizes with a -1 among them are left as they are: whether those fit would depend on the number
    of rows and tokens, and what was proven for one input would not hold for the next.

    Args:
        module: an attention module that writes sizes out, such as `view(B, T, self.n_head, C // self.n_head)`.
        sizes: (stale, right) pairs.
    """
    replace_forward(module, _run_repaired, tuple(sizes))


def _run_repaired(self: nn.Module, sizes: Sequence[tuple[int, int]], /, *args: Any, **kwargs: Any) -> Any:
    with _Repair(sizes):
        return type(self).forward(self, *args, **kwargs)


class _Repair(TorchFunctionMode):
    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self._sizes = sizes

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in (Tensor.view, Tensor.reshape, torch.reshape) and len(args) > 1:
            shape = tuple(args[1]) if isinstance(args[1], (tuple, list)) else args[1:]
            if all(isinstance(size, int) and size >= 0 for size in shape):
                return function(args[0], self._fitting(args[0], shape), **kwargs)
        if function in (Tensor.unflatten, torch.unflatten) and len(args) == 3:
            return function(args[0], args[1], self._divided(args[0].shape[args[1]], tuple(args[2])))
        if function in (Tensor.split, torch.split) and len(args) > 1 and isinstance(args[1], int):
            axis = kwargs.get("dim", args[2] if len(args) > 2 else 0)
            return function(args[0], self._dividing(args[0].shape[axis], args[1]), axis)
        return function(*args, **kwargs)

    def _fitting(self, tensor: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
        if math.prod(shape) == tensor.numel():
            return shape
        for place in reversed(range(len(shape))):
            for stale, right in self._sizes:
                repaired = (*shape[:place], right, *shape[place + 1 :])
                if shape[place] == stale and math.prod(repaired) == tensor.numel():
                    return repaired
        return shape

    def _divided(self, length: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Sizes into which an axis of features is divided: (heads, -1) with the heads that are left."""
        rights = [right for stale, right in self._sizes if stale == sizes[0] and right and length % right == 0]
        left = [right for right in rights if any(length // right == other for _, other in self._sizes)]
        return (left[0], *sizes[1:]) if len(sizes) == 2 and sizes[1] == -1 and left else sizes

    def _dividing(self, length: int, part: int) -> int:
        rights = [right for stale, right in self._sizes if stale == part and right and length % right == 0]
        return rights[0] if length % part and rights else part
