"""Edit of an attention module that loses all its heads: it returns its output projection's bias."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from headscope.anatomy.linear import stores_transposed
from headscope.surgery.edits.attributes import SHARED_CONFIG
from headscope.surgery.edits.base import EDITS, Edit
from headscope.surgery.forwards import parameters_of, replace_forward

__all__ = ["EmptyAttention", "empty_attention"]


@EDITS.register("empty_attention")
@dataclass(frozen=True)
class EmptyAttention(Edit):
    """Let a module without heads return its output projection's bias; see `empty_attention`."""

    projection: str | None
    returns: tuple[str, ...] | None
    keeps_cache: bool

    def apply(self, module: nn.Module) -> None:
        empty_attention(module, self.projection, self.returns, self.keeps_cache)


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
        keeps_cache: whether a KV cache passed in is to learn that the tokens went by: its length is read off it. It is
            off for cross attention in what was saved by earlier versions.
    """
    replace_forward(module, _run_empty, projection, returns, keeps_cache)


def _run_empty(
    self: nn.Module,
    _: Any,
    projection: str | None,
    returns: Sequence[str] | None,
    keeps_cache: bool,
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    hidden = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim > 1)
    given = dict(zip(parameters_of(self), args, strict=False)) | kwargs
    keys = _count_tokens(self, hidden, given) if keeps_cache else hidden.shape[1]
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
    config = module.__dict__.get(SHARED_CONFIG, getattr(module, "config", None))
    return getattr(config, "_attn_implementation", "eager") == "eager"


def _count_tokens(module: nn.Module, hidden: Tensor, given: Mapping[str, Any]) -> int:
    """Store one number per token in a KV cache: a cache without entries would say that no token has gone by.

    Returns:
        How many keys there would be.
    """
    caching = sys.modules.get("transformers.cache_utils")
    layer = getattr(module, "layer_idx", None)
    others = next((given[name] for name in _OF_OTHERS if isinstance(given.get(name), Tensor)), None)
    states = hidden if others is None else others
    if caching is None or layer is None or states.ndim != 3:
        return states.shape[1]
    for cache in given.values():
        if isinstance(cache, caching.EncoderDecoderCache) and others is not None:
            if not cache.is_updated.get(layer):
                cache.is_updated[layer] = True
                return _store(cache.cross_attention_cache, states, layer)
        elif isinstance(cache, caching.EncoderDecoderCache):
            return _store(cache.self_attention_cache, states, layer)
        elif isinstance(cache, caching.Cache) and others is None:
            return _store(cache, states, layer)
    return states.shape[1]


_OF_OTHERS = ("key_value_states", "encoder_hidden_states")  # what cross attention reads


def _store(cache: Any, states: Tensor, layer: int) -> int:
    token = states.new_zeros(states.shape[0], 1, states.shape[1], 1)
    try:
        return int(cache.update(token, token, layer)[0].shape[-2])
    except NotImplementedError:  # a layer that reads the keys of another one, and keeps none
        return states.shape[1]
