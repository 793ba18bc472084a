"""Repairs: what a config or a model says is wrong with its sizes, read from its own message, and put right."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig

from headscope.studies.families.configuring import field_names, parts_of, walk
from headscope.studies.families.following import shares
from headscope.studies.families.sizes import HEAD_DIM, HEADS, INNER, PATCH, PICTURE, VOCABULARY, WIDTH

__all__ = ["Settings", "repair"]

_ABSENT = {
    "initializer_range": 0.02, "rope_theta": 10000.0, "layer_norm_eps": 1e-5, "rms_norm_eps": 1e-5,
    "num_key_value_heads": HEADS, "shared_expert_intermediate_size": 32, "moe_intermediate_size": 32,
    "hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": 96, "hidden_act": "gelu",
    "model_args": {"embed_dim": 96},
}  # fmt: skip
# what stands for fields whose default is None, though the model reads them
_NONE = {
    "layer_types": ["conv", "full_attention"], "mlp_layer_types": ["dense", "sparse"],
    # of a table's codes, the last and one more have tokens: IMGIMG and the letters of its digits, or its digits
    "vocabulary_map": {
        "<image>": 110, "<|extra_200|>": 101, "IMGIMGJJZ": 102, "IMGIMGBZ": 103, "<|visual token 000127|>": 104,
        "<|visual token 000001|>": 105,
    },
    "n_shared_experts": 1,
    "top_k_experts": 2, "clip_qkv": 8.0, "indexer_n_heads": HEADS, "indexer_kv_heads": 1, "indexer_head_dim": HEAD_DIM,
    "indexer_budget": 8, "indexer_compress_ratio": 2, "deepstack_layer_map": [[0, 0]], "spatial_target_layers": [1],
    "downsample_rate": "1/2",
}  # fmt: skip
_MOST_LAYERS = 16
_PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
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
    return settings.put(name, value) or settings.put_anew(name, value)


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
    enlarged = settings.put("image_size", 2 * PICTURE) | settings.put("max_img_size", 2 * PICTURE)
    return settings.put("patch_size", 4) or enlarged


def _fill_none(_: re.Match[str], settings: Settings) -> bool:
    """What is None everywhere, and is read all the same."""
    filled = [_fill(settings.default, settings.values, name, value) for name, value in _NONE.items()]
    return any(filled)


def _fill(config: PreTrainedConfig, values: dict[str, Any], name: str, value: Any) -> bool:
    filled = False
    known = config.__dict__.get(name)
    if name in field_names(config) and (known is None or known == {}) and values.get(name) is None:
        values[name] = copy.deepcopy(value)
        filled = True
    for key in parts_of(config):
        part = config.__dict__.get(key)
        if isinstance(part, PreTrainedConfig) and isinstance(values.get(key), dict):
            filled |= _fill(part, values[key], name, value)
    return filled


def _add_rope(found: re.Match[str], settings: Settings) -> bool:
    """Rotary positions by kind of layer, of which the default has none."""
    return _fill(settings.default, settings.values, "rope_parameters", {found[1]: dict(_PLAIN_ROPE)})


def _agree(found: re.Match[str], settings: Settings) -> bool:
    """A field of a config within that is to be what the outer one's is."""
    part, name, value = found[1], found[2], int(found[3])
    inner = settings.values.get(part)
    if isinstance(inner, dict):
        inner[name] = value
    return isinstance(inner, dict)


def _add_padding(_: re.Match[str], settings: Settings) -> bool:
    """A token for padding, by which positions are counted."""
    return settings.put_anew("pad_token_id", 0)


def _set_only(found: re.Match[str], settings: Settings) -> bool:
    return settings.put(found[1], int(found[2]))


def _make_lists(_: re.Match[str], settings: Settings) -> bool:
    for name in field_names(settings.default):
        value = settings.default.__dict__.get(name)
        if isinstance(value, tuple):
            settings.values.setdefault(name, list(value))
    return True


def _double_layers(_: re.Match[str], settings: Settings) -> bool:
    """Twice the layers, for those that share something with an earlier one of their kind."""
    return _double(settings.default, settings.values)


def _double(config: PreTrainedConfig, values: dict[str, Any]) -> bool:
    count = values.get("num_hidden_layers")
    doubled = isinstance(count, int) and count < _MOST_LAYERS
    if isinstance(count, int) and doubled:
        for name, value in values.items():
            if isinstance(value, list | tuple) and len(value) == count:
                values[name] = value * 2
        values["num_hidden_layers"] = 2 * count
        if config.__dict__.get("num_kv_shared_layers"):
            values["num_kv_shared_layers"] = count
    for key in parts_of(config):
        part = config.__dict__.get(key)
        if isinstance(part, PreTrainedConfig) and isinstance(values.get(key), dict):
            doubled |= _double(part, values[key])
    return doubled


def _add_up(found: re.Match[str], settings: Settings) -> bool:
    """Parts of a sum: one layer each, and kinds of layers for as many."""
    parts = re.findall(r"\w+", found[1])
    settings.values.update(dict.fromkeys(parts, 1) | {found[2]: len(parts)})
    kinds = settings.values.get("layer_types")
    if kinds:
        settings.values["layer_types"] = (kinds * len(parts))[: len(parts)]
    return True


def _split_rope(found: re.Match[str], settings: Settings) -> bool:
    return _put_sections(settings.default, settings.values, shares(int(found[1]), 3)[::-1])


def _share_rope(_: re.Match[str], settings: Settings) -> bool:
    """Sections of rotary positions where the default has none."""
    return _put_sections(settings.default, settings.values, shares(HEAD_DIM // 2, 3))


def _widen_heads(found: re.Match[str], settings: Settings) -> bool:
    """Fewer heads, so that each is as wide as what it meets."""
    width = int(found[1])
    return width > HEAD_DIM and WIDTH % width == 0 and settings.put("num_attention_heads", WIDTH // width)


def _widen_inner(found: re.Match[str], settings: Settings) -> bool:
    """An inner width that is worked out elsewhere: no other size is like it."""
    return settings.put("intermediate_size", int(found[1]))


def _widen_projection(found: re.Match[str], settings: Settings) -> bool:
    """Rows against rows, of two towers: one projects to the width of the other."""
    return settings.put("projection_dim", int(found[2]))


def _enlarge_vocabulary(found: re.Match[str], settings: Settings) -> bool:
    return settings.put("vocab_size", int(found[1]) + 1)


def _restore_patches(_: re.Match[str], settings: Settings) -> bool:
    """Patches as large as they were, where what is laid beside them keeps the size that goes with these."""
    return _restore(settings.default, settings.values, "patch_size")


def _restore(config: PreTrainedConfig, values: dict[str, Any], name: str) -> bool:
    restored = name in values and values[name] != (before := config.__dict__.get(name))
    if restored:
        values[name] = before
    for key in parts_of(config):
        part = config.__dict__.get(key)
        if isinstance(part, PreTrainedConfig) and isinstance(values.get(key), dict):
            restored |= _restore(part, values[key], name)
    return restored


_REPAIRS: tuple[tuple[str, Callable[[re.Match[str], Settings], bool]], ...] = (
    (r"'(\w+Config)' object has no attribute '(\w+)'", _add_absent),
    (r"sum exactly to (\d+).*split_sizes=\[([\d, ]+)\]", _fit_sections),
    (r"only contain LinearAttention", _add_attention),
    (
        r"`?([a-z_0-9.]+)`? \((\d+)\) must (?:be )?(?:equal|match)(?: to)? `?([a-z_0-9./ ]+)`?(?: \((\d+)\))",
        _make_equal,
    ),
    (r"(\w+) should be equal to .{0,80}= \d+, \w+ = (\d+)", _set_only),
    (r"(\w+) must match (\w+)", _match_width),
    (r"(\w+) \((\d+)\) must be divisible by (\w+) \((\d+)\)", _divide),
    (r"`?(\w+)`? \(?(\d+)?\)?.{0,30}multiple of.{0,40}\((\d+)\)", _multiply),
    (r"sliding_window` argument", _add_window),
    (r"expanded size of the tensor \((\d+)\) must match the existing size \(0\)", _split_rope),
    (
        r"NoneType' object (?:is not subscriptable|has no attribute '(?:get|split)')|not NoneType"
        r"|'(?:int|NoneType)' and 'NoneType'|torch\.clamp: At least",
        _fill_none,
    ),
    (r"KeyError: '(\w+_attention)'", _add_rope),
    (r"`(\w+)\.(\w+)` \(None\) and `\w+` \((\d+)\) must be equal", _agree),
    (r"`(\w+)=(\d+)` only", _set_only),
    (r"\bne\(\) received an invalid", _add_padding),
    (r'can only concatenate list \(not "tuple"\)', _make_lists),
    (r"tie_weights_keys|set of layer types producing a cache", _double_layers),
    (r"(\w+(?: \+ \w+)+) must equal (num_hidden_layers)", _add_up),
    (r"of type 'NoneType' has no len", _fill_none),
    (r"multimodal RoPE axes|of type 'NoneType' has no len", _share_rope),
    (r"Output size is too small", _enlarge_picture),
    (rf"tensor a \({HEAD_DIM}\) must match the size of tensor b \((\d+)\)", _widen_heads),
    (rf"\(\d+x(\d+) and {INNER}x\d+\)", _widen_inner),
    (r"\((\d+)x\d+ and (\d+)x\1\)", _widen_projection),
    (rf"index (\d+) is out of bounds for dimension \d with size {VOCABULARY}", _enlarge_vocabulary),
    (r"Sizes of tensors must match except", _restore_patches),
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
