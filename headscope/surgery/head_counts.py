"""Configs of transformers with other numbers of heads: which integers to change is found by building models of them."""

import copy
import itertools
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from headscope.plans import Record
from headscope.sites import Site

__all__ = ["Kept", "Rebuilding", "Shapes", "kept_by_layer", "shapes_of"]

Shapes = Mapping[str, tuple[int, ...]]
_MOST_TRIALS = 64
_NOT_A_COUNT = ("dim", "size", "width", "mask", "bias", "layer")


@dataclass(frozen=True)
class Kept:
    """What one layer had before its first cut, and what it has left.

    Attributes:
        site: as it was.
        query_heads: how many query heads are left.
        per_key_head: how many of them read each key head that is left.
    """

    site: Site
    query_heads: int
    per_key_head: tuple[int, ...]

    @property
    def cut(self) -> bool:
        return self.query_heads < self.site.n_heads

    @property
    def key_heads(self) -> int:
        return len(self.per_key_head)

    @property
    def even(self) -> bool:
        """Whether as many query heads read one key head as any other, as plain attention has them."""
        return len(set(self.per_key_head)) == 1


def kept_by_layer(record: Record) -> list[Kept]:
    """What every layer has left after all cuts, in order."""
    gone = set(record.removed)
    found = []
    for site in record.anatomy.sites:
        read = [kv for head, kv in zip(site.heads, site.kv_of_query, strict=True) if head not in gone]
        found.append(Kept(site, len(read), tuple(read.count(kv) for kv in sorted(set(read)))))
    return found


def shapes_of(model: PreTrainedModel) -> Shapes:
    """Shapes of all that a model saves, by name."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@dataclass(frozen=True)
class _Count:
    """An integer of a config, or of one inside it, that may count heads; what it may become, the likeliest first."""

    path: tuple[str, ...]
    name: str
    was: int
    options: tuple[int, ...]

    def __str__(self) -> str:
        return ".".join((*self.path, self.name))


class Rebuilding:
    """Models of one class, without memory, from its config with other numbers of heads.

    Args:
        model: the cut model, whose config still counts the heads of before.
        layers: what each of its layers has left.
        data: its config as JSON values.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[Kept], data: Mapping[str, Any]) -> None:
        self.kind, self.config_class = type(model), type(model.config)
        self.layers, self.data = layers, data
        self.counts = list(_counts(data, layers, ()))
        self.wanted = shapes_of(model)
        self.dim = max((one.site.head_dim for one in layers), default=0)

    def fitting(self) -> Iterator[dict[str, Any]]:
        """Configs whose models have the shapes of the cut one, those with the fewest integers changed first.

        What changes no shape stays as it is: it counts other heads, and their numbers are part of what is computed.
        """
        counts = [
            count if self._shapes_anything(count) else replace(count, options=(count.was,)) for count in self.counts
        ]
        choices = list(itertools.islice(itertools.product(*(count.options for count in counts)), _MOST_TRIALS))
        was = [count.was for count in counts]
        choices.sort(key=lambda values: sum(map(operator.ne, values, was)))
        for values in choices:
            tried = [self._changed(values, dim) for dim in (None, self.dim)]
            for data in tried[: 1 + (tried[0] != tried[1])]:
                if data != self.data and self._made(data) == self.wanted:
                    yield data

    def _shapes_anything(self, count: _Count) -> bool:
        values = [count.options[0] if one is count else one.was for one in self.counts]
        made = self._made(self._changed(values, self.dim))
        # refused by itself: another integer may have to change with it
        return made is None or made != self._whole

    @cached_property
    def _whole(self) -> Shapes | None:
        return self._made(self.data)

    def _made(self, data: Mapping[str, Any]) -> Shapes | None:
        """Shapes of a model of a config; None where it is refused."""
        try:
            return self._shapes(data)
        except Exception:  # with whatever error its authors chose
            return None

    @property
    def tells_layers_apart(self) -> bool:
        """Whether the config has as many integers as there are different numbers of heads in layers that were alike."""
        for heads in {one.site.n_heads for one in self.layers}:
            kept = {(one.query_heads, one.key_heads) for one in self.layers if one.site.n_heads == heads}
            if len(kept) > max(1, sum(count.was == heads and not _keys_only(count.name) for count in self.counts)):
                return False
        return True

    def objection(self) -> str:
        """Why no config fits, in words; "" where it is nothing but that layers kept different numbers of heads."""
        config = self.config_class.__name__
        if not self.counts:
            return f"no integer of {config} was found that counts its heads"
        if self._ignores_width:
            return (
                f"{config} has no head_dim: it works out the width of a head from that of the model and the number of "
                "heads, so with fewer heads it builds wider ones"
            )
        if len({(one.site.n_heads, one.site.n_kv_heads) for one in self.layers}) < len(
            {(one.site.n_heads, one.site.n_kv_heads, one.query_heads, one.key_heads) for one in self.layers}
        ):
            return ""
        values = [count.options[0] for count in self.counts]
        told = ", ".join(f"{count} {value}" for count, value in zip(self.counts, values, strict=True))
        try:
            self._config(data := self._changed(values, self.dim))
        except Exception as error:
            taken = ", ".join(map(str, self._accepted)) or "none"
            said = str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ").rstrip(".")
            return f"{config} refuses {told} ({said}); fewer heads that it takes: {taken}"
        return f"no numbers of heads in {config} build this model: with {told}, {self._misfit(data)}"

    def _misfit(self, data: Mapping[str, Any]) -> str:
        try:
            made = self._shapes(data)
        except Exception as error:
            return f"its model is refused ({error})"
        odd = sorted(made.keys() ^ self.wanted.keys())
        odd += [name for name in self.wanted.keys() & made.keys() if made[name] != self.wanted[name]]
        where = odd[0] if odd else "nothing"
        return f"{where} is {made.get(where, 'not there')}, and {self.wanted.get(where, 'not there')} in the cut model"

    @cached_property
    def _accepted(self) -> list[int]:
        """Numbers of query heads, fewer than there were, that the config takes."""
        return [
            heads for heads in range(1, max(count.was for count in self.counts)) if self._takes(self._scaled(heads))
        ]

    @property
    def _ignores_width(self) -> bool:
        """Whether outputs of all heads are as wide with fewer of them, though the config was told how wide one is."""
        cut = (one.site.output for one in self.layers if one.cut)
        names = {f"{part.module}.weight" for part in cut if part is not None}
        for heads in reversed(self._accepted):
            after = self._made(self._scaled(heads))
            if after is not None and self._whole is not None:  # a config may take what its model does not
                return any(self._whole.get(name) == after.get(name) for name in names)
        return False

    def _scaled(self, heads: int) -> dict[str, Any]:
        """The config with so many heads where there were most, and fewer in proportion elsewhere."""
        most = max(count.was for count in self.counts)
        return self._changed([max(1, count.was * heads // most) for count in self.counts], self.dim)

    def _takes(self, data: Mapping[str, Any]) -> bool:
        try:
            self._config(data)
        except Exception:
            return False
        return True

    def _changed(self, values: Sequence[int], dim: int | None) -> dict[str, Any]:
        data: dict[str, Any] = copy.deepcopy(dict(self.data))
        for count, value in zip(self.counts, values, strict=True):
            own = data
            for part in count.path:
                own = own[part]
            own[count.name] = value
            # otherwise it is worked out from the number of heads
            if value != count.was and (dim is not None or own.get("head_dim", 0) is None):
                own["head_dim"] = own.get("head_dim") or self._dim_of(count)
        return data

    def _dim_of(self, count: _Count) -> int:
        fitting = (one.site.head_dim for one in self.layers if count.was in (one.site.n_heads, one.site.n_kv_heads))
        return next(fitting, self.dim)

    def _config(self, data: Mapping[str, Any]) -> PreTrainedConfig:
        config = self.config_class.from_dict(copy.deepcopy(dict(data)))
        validate = getattr(config, "validate", None)
        if validate is not None:  # as save_pretrained does
            validate()
        return config

    def build(self, data: Mapping[str, Any], attention: Any = None) -> PreTrainedModel:
        """A model without memory.

        Args:
            data: a config as JSON values.
            attention: names of its attention functions; None for what the class prefers.
        """
        with torch.device("meta"):
            built: PreTrainedModel = self.kind._from_config(self._config(data), attn_implementation=attention)
        return built

    def _shapes(self, data: Mapping[str, Any]) -> Shapes:
        return shapes_of(self.build(data))


def _counts(data: Mapping[str, Any], layers: Sequence[Kept], path: tuple[str, ...]) -> Iterator[_Count]:
    for name, value in data.items():
        if isinstance(value, dict) and "model_type" in value:
            yield from _counts(value, layers, (*path, name))
        elif type(value) is int and "head" in name and not any(part in name for part in _NOT_A_COUNT):
            queries = [one.query_heads for one in layers if one.site.n_heads == value]
            keys = [one.key_heads for one in layers if one.site.n_kv_heads == value]
            ordered = (*keys, *queries, value) if _keys_only(name) else (*queries, *keys, value)
            options = tuple(dict.fromkeys(ordered))
            if len(options) > 1:
                yield _Count(path, name, value, options)


def _keys_only(name: str) -> bool:
    return "kv" in name or "key_value" in name
