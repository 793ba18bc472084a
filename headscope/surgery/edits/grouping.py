"""Edit of a module of transformers whose attention gets more, or other, heads than its weights make regularly.

Query heads may share key heads unevenly; what makes q and k may have to stay whole, where a norm runs over all heads;
biases by head may come from a table that other layers read too. The module then attends by a function of ours, which
picks what belongs to the heads that are left and hands it to the function that the model would have used anyway.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headscope.anatomy.registry import passed_on
from headscope.surgery.edits.attributes import SHARED_CONFIG, own_config
from headscope.surgery.edits.base import EDITS, Edit

__all__ = ["KV_BUFFER", "MapGroups"]

KV_BUFFER = "_headscope_kv_of_query"
_VALUE_BUFFER = "_headscope_value_of_query"
_QUERY_BUFFER = "_headscope_queries"
_GIVEN_BUFFER = "_headscope_heads_given"

_IMPLEMENTATION = "headscope"
_KNOWN = "_headscope_known"
_GIVEN = "_headscope_given"

MASK = "attention_mask"


@EDITS.register("map_groups")
@dataclass(frozen=True)
class MapGroups(Edit):
    """Let a module of transformers attend with the heads that are left, whatever its weights make.

    It gets a config of its own that names our attention function; the model's config, which makes masks and caches and
    names the function that does the work in the end, stays what it is.

    Attributes:
        kv_of_query: for each query head left, the place of its key head (and value head) among those that come; None
            where they are read as they come.
        value_of_query: the same of value heads, where it differs.
        queries: places of the heads left among the query heads that come; None where only they come.
        given: arguments of the attention function that have an axis of heads and come whole: name and axis.
        kept, heads: places of the heads left on these axes, and how long they are.
    """

    kv_of_query: tuple[int, ...] | None
    value_of_query: tuple[int, ...] | None = None
    queries: tuple[int, ...] | None = None
    given: tuple[tuple[str, int], ...] = ()
    kept: tuple[int, ...] = ()
    heads: int = 0

    def apply(self, module: nn.Module) -> None:
        config = own_config(module)
        # not by the property: its setter would reach into sub-configs that the copy shares with the model's config
        config.__dict__["_attn_implementation_internal"] = _IMPLEMENTATION
        module.__dict__[_KNOWN] = _Registered()
        module.__dict__[_GIVEN] = (self.given, self.heads)
        values = self.kv_of_query if self.value_of_query is None else self.value_of_query
        given = self.kept if self.given else None
        places = (self.kv_of_query, values, self.queries, given)
        for name, own in zip((KV_BUFFER, _VALUE_BUFFER, _QUERY_BUFFER, _GIVEN_BUFFER), places, strict=True):
            _put_index(module, name, own)


def _put_index(module: nn.Module, name: str, places: Sequence[int] | None) -> None:
    """As a buffer that is no weight, so that it moves with the module."""
    module._buffers.pop(name, None)
    if places is not None:
        device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
        index = torch.tensor(tuple(places), dtype=torch.long, device=device)
        module.register_buffer(name, index, persistent=False)


class _Registered:
    """Kept by a module whose config names our attention function: made, copied or unpickled, it makes the name known.

    Not done on import: only a process that holds such a model needs it.
    """

    def __init__(self) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(_IMPLEMENTATION, _attend)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


@passed_on
def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *args: Any, **kw: Any
) -> Any:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = module.__dict__[SHARED_CONFIG]._attn_implementation
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, _eager(module))
    of = module._buffers
    query, key, value = (
        _taken(tensor, of.get(index), 1)
        for tensor, index in ((query, _QUERY_BUFFER), (key, KV_BUFFER), (value, _VALUE_BUFFER))
    )
    given, heads = module.__dict__.get(_GIVEN, ((), 0))
    for argument, axis in given:
        own = attention_mask if argument == MASK else kw.get(argument)
        if isinstance(own, Tensor) and own.ndim > axis and own.shape[axis] == heads:
            own = _taken(own, of.get(_GIVEN_BUFFER), axis)
            if argument == MASK:
                attention_mask = own
            else:
                kw[argument] = own
    return attend(module, query, key, value, attention_mask, *args, **kw)


def _taken(tensor: Tensor, index: Tensor | None, axis: int) -> Tensor:
    return tensor if index is None else tensor.index_select(axis, index)


def _eager(module: nn.Module) -> Any:
    """The family's own function: it is in no registry, but stands beside the class that calls it."""
    for kind in type(module).__mro__:
        function = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if function is not None:
            return function
    return None
