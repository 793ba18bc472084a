"""Repairs: what a config or a model says is wrong with its sizes, read from its own message, and put right."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig

from headscope.studies.families.configuring import field_names, parts_of, shares, walk
from headscope.studies.families.sizes import HEADS, PATCH, PICTURE, WIDTH

__all__ = ["Settings", "repair"]

_ABSENT = {
    "initializer_range": 0.02, "rope_theta": 10000.0, "layer_norm_eps": 1e-5, "rms_norm_eps": 1e-5,
    "num_key_value_heads": HEADS, "shared_expert_intermediate_size": 32, "moe_intermediate_size": 32,
    "hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": 96, "hidden_act": "gelu",
}  # fmt: skip
_LAYER_LISTS = ("block_types", "layers_block_type", "_block_types")


@dataclass
class Settings:
    """Arguments of a config's class, and what is put into configs that lack a field which their model reads.

    Attributes:
        default: the config without arguments.
        values: arguments, configs within as dicts.
        absent: values by the name of a config's class and a field.
    """

    default: PreTrainedConfig
    values: dict[str, Any]
    absent: dict[tuple[str, str], Any] = field(default_factory=dict)

    def config(self) -> PreTrainedConfig:
        """The config."""
        made = type(self.default)(**copy.deepcopy(self.values))
        for (kind, name), value in self.absent.items():
            for one in walk(made):
                if type(one).__name__ == kind and name not in one.__dict__:
                    one.__dict__[name] = value
        return made

    def put(self, name: str, value: Any) -> bool:
        """Change a field wherever it is set already; whether it was."""
        return _put(self.values, name, value)

    def put_anew(self, name: str, value: Any) -> bool:
        """Change a field wherever a config has it; whether one has."""
        return _put_anew(self.default, self.values, name, value)


def repair(complaint: str, settings: Settings) -> bool:
    """Change what a message complains of.

    Args:
        complaint: the message of the config, of the model's constructor, or of its forward.
        settings: changed in place.

    Returns:
        Whether anything was changed.
    """
    before = repr((settings.values, settings.absent))
    for pattern, change in _REPAIRS:
        found = re.search(pattern, complaint, re.DOTALL)
        if found is not None and change(found, settings) and repr((settings.values, settings.absent)) != before:
            return True
    return False


def _add_absent(found: re.Match[str], settings: Settings) -> bool:
    kind, name = found[1], found[2]
    if (kind, name) in settings.absent or name == "num_hidden_layers":
        return False
    settings.absent[kind, name] = _ABSENT.get(name, 0.0 if "drop" in name else None)
    return True


def _fit_sections(found: re.Match[str], settings: Settings) -> bool:
    return _put_sections(settings.default, settings.values, shares(int(found[1]), found[2].count(",") + 1))


def _put_sections(config: PreTrainedConfig, values: dict[str, Any], sections: list[int]) -> bool:
    put = False
    parameters = config.__dict__.get("rope_parameters")
    if isinstance(parameters, dict) and parameters:
        values["rope_parameters"] = {**copy.deepcopy(parameters), "mrope_section": sections}
        put = True
    for name in parts_of(config):
        part = config.__dict__.get(name)
        if isinstance(part, PreTrainedConfig) and isinstance(values.get(name), dict):
            put |= _put_sections(part, values[name], sections)
    return put


def _add_attention(_: re.Match[str], settings: Settings) -> bool:
    """A layer of attention beside those of the other kind."""
    known = settings.default.__dict__
    for name in _LAYER_LISTS:
        kinds = known.get(name)
        if isinstance(kinds, list | tuple) and name in field_names(settings.default):
            settings.values[name] = type(kinds)(list(dict.fromkeys(kinds))[::-1])
            return True
    kinds = known.get("layer_types")
    if not kinds:
        return False
    attention = "full_attention" if kinds[0] == "linear_attention" else "attention"
    settings.values.update(layer_types=[kinds[0], attention], num_hidden_layers=2)
    return True


def _make_equal(found: re.Match[str], settings: Settings) -> bool:
    name, value = found[1].split(".")[-1], int(found[4])
    if not settings.put(name, value):
        settings.values[name] = value
    return True


def _match_width(found: re.Match[str], settings: Settings) -> bool:
    return settings.put_anew(found[1], WIDTH)


def _divide(found: re.Match[str], settings: Settings) -> bool:
    return settings.put(found[1], int(found[4]))


def _multiply(found: re.Match[str], settings: Settings) -> bool:
    return settings.put(found[1], int(found[3]))


def _add_window(_: re.Match[str], settings: Settings) -> bool:
    settings.values["sliding_window"] = PATCH
    for part in settings.values.values():
        if isinstance(part, dict) and "num_hidden_layers" in part:
            part["sliding_window"] = PATCH
    return True


def _enlarge_picture(_: re.Match[str], settings: Settings) -> bool:
    enlarged = settings.put("image_size", 2 * PICTURE)
    return settings.put("patch_size", 4) or enlarged


_REPAIRS: tuple[tuple[str, Callable[[re.Match[str], Settings], bool]], ...] = (
    (r"'(\w+Config)' object has no attribute '(\w+)'", _add_absent),
    (r"sum exactly to (\d+).*split_sizes=\[([\d, ]+)\]", _fit_sections),
    (r"only contain LinearAttention", _add_attention),
    (
        r"`?([a-z_0-9.]+)`? \((\d+)\) must (?:be )?(?:equal|match)(?: to)? `?([a-z_0-9./ ]+)`?(?: \((\d+)\))",
        _make_equal,
    ),
    (r"(\w+) must match (\w+)", _match_width),
    (r"(\w+) \((\d+)\) must be divisible by (\w+) \((\d+)\)", _divide),
    (r"`?(\w+)`? \(?(\d+)?\)?.{0,30}multiple of.{0,40}\((\d+)\)", _multiply),
    (r"sliding_window` argument", _add_window),
    (r"image_size` has to be divisible by `num_windows`", _enlarge_picture),
)


def _put(values: dict[str, Any], name: str, value: Any) -> bool:
    put = False
    for key, part in values.items():
        if isinstance(part, dict) and key != "rope_parameters":
            put |= _put(part, name, value)
    if name in values:
        values[name] = value
        return True
    return put


def _put_anew(config: PreTrainedConfig, values: dict[str, Any], name: str, value: Any) -> bool:
    if name in field_names(config):
        values[name] = value
        return True
    for key in parts_of(config):
        part = config.__dict__.get(key)
        if isinstance(part, PreTrainedConfig) and _put_anew(part, values.setdefault(key, {}), name, value):
            return True
    return False
