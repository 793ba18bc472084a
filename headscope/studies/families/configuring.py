"""Tiny configurations: what a model type's default config is changed to so that its model has a few thousand weights.

One layer of each kind stays, lists by layer get as short as the model, and what depends on a width follows it.
"""

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig

from headscope.studies.families.following import (
    TILES,
    fit_grids,
    fit_prompts,
    follow_widths,
    rope_sections,
    shares,
    shortened,
    taps_of,
)
from headscope.studies.families.sizes import HEAD_DIM, HEADS, INNER, LAYERS, PATCH, PICTURE, WIDTH, kind_of, size_of

__all__ = ["VARIANTS", "Variant", "field_names", "parts_of", "tiny_settings", "walk"]


@dataclass(frozen=True)
class Variant:
    """What is done otherwise where a model cannot be built the usual way.

    Attributes:
        attention_first: of several kinds of layers, those with attention come first.
        head_dim: whether the width of a head is set; without it, it follows from the model's.
        grouped: whether several heads share keys and values.
        heads: how many there are.
        layer_kinds: whether there is a layer of each kind.
        lists: whether lists by layer are shortened.
        width: of the model.
        sizes: whether widths are made small at all.
    """

    attention_first: bool = False
    head_dim: bool = True
    grouped: bool = True
    heads: int = HEADS
    layer_kinds: bool = True
    lists: bool = True
    width: int = WIDTH
    sizes: bool = True


VARIANTS = (
    Variant(),
    Variant(attention_first=True),
    Variant(head_dim=False),
    Variant(grouped=False),
    Variant(head_dim=False, grouped=False),
    Variant(heads=2 * HEADS),
    Variant(heads=2 * HEADS, head_dim=False),
    Variant(layer_kinds=False),
    Variant(layer_kinds=False, lists=False),
    Variant(head_dim=False, grouped=False, lists=False),
    Variant(width=INNER),
    Variant(sizes=False),
    Variant(sizes=False, head_dim=False, grouped=False, layer_kinds=False, lists=False),
)
_LAYER_COUNTS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_HEAD_WIDTHS = ("head_dim", "d_kv", "kv_channels", "global_head_dim")
_MODEL_WIDTHS = ("embed_dim", "hidden_size", "hidden_dim", "embedding_size")
_BY_STAGE = ("embed_dim_per_stage", "num_attention_heads_per_stage")
_DEPTHS = ("depths", "num_blocks_per_stage", "num_block_repeats")
_MARKS = {"vision_start_token_id": 109, "vision_end_token_id": 113}
_WIDTHS = re.compile(r"_dim$|_size$")
_CHANNEL_LISTS = re.compile(r"channels|_dims$|_sizes$")
_CHANNELS = ("conv_dim", "tdnn_dim")
_FEATURES = ("vision_feature_layer", "vision_feature_layers", "feature_layers", "vision_feature_select_layers")
_TAPS = ("intermediate_hook_ids", "intermediate_layers_indices")
_SOME_LAYERS = (
    "global_attn_indexes", "deepstack_visual_indexes", "fullatt_block_indexes", "out_indices",
    "window_attention_layers", "full_attn_idxs", "intermediate_layers_indices",
)  # fmt: skip
_BACKBONES_ELSEWHERE = ("timm_backbone", "timm_wrapper")  # from a package that need not be there
_BACKBONE: dict[str, Any] = {
    "model_type": "resnet", "embedding_size": 16, "hidden_sizes": [32, 48, 64, 96], "depths": [1, 1, 1, 1],
}  # fmt: skip


@dataclass
class _Draft:
    """A default config and what it is changed to."""

    known: dict[str, Any]
    names: tuple[str, ...]
    parts: tuple[str, ...]
    variant: Variant
    derived: frozenset[str] = frozenset()
    made: dict[str, Any] = field(default_factory=dict)

    def now(self, name: str, default: Any = None) -> Any:
        return self.made.get(name, self.known.get(name, default))


def tiny_settings(default: PreTrainedConfig, variant: Variant = VARIANTS[0]) -> dict[str, Any]:
    """Arguments of a config's class that make a tiny model.

    Args:
        default: the config with no argument.
        variant: what is done otherwise.

    Returns:
        By field; configs within the config as dicts.
    """
    draft = _Draft(_known(default), field_names(default), parts_of(default), variant, _derived(default))
    for step in _STEPS:
        step(draft)
    for name in draft.parts:
        part = default.__dict__.get(name)
        if isinstance(part, PreTrainedConfig):
            draft.made[name] = _part_settings(draft, name, part)
    fit_prompts([draft.made[name] for name in draft.parts if isinstance(draft.made.get(name), dict)])
    return draft.made


def field_names(config: PreTrainedConfig) -> tuple[str, ...]:
    """What a config can be given, in its own order."""
    if dataclasses.is_dataclass(config):
        return tuple(one.name for one in dataclasses.fields(config))
    return tuple(name for name in config.__dict__ if not name.startswith("_"))


def parts_of(config: PreTrainedConfig) -> tuple[str, ...]:
    """Names of the configs within a config."""
    return tuple(getattr(type(config), "sub_configs", {}))


def _known(config: PreTrainedConfig) -> dict[str, Any]:
    """What a config holds, by the names of its fields, too, where it keeps them under others."""
    held = config.__dict__
    others = {name: held[other] for name, other in config.attribute_map.items() if other in held}
    return others | held


def _derived(config: PreTrainedConfig) -> frozenset[str]:
    """Widths that a config works out from others where they are not given, and that are known by no name of theirs."""
    if not dataclasses.is_dataclass(config):
        return frozenset()
    unset = [one.name for one in dataclasses.fields(config) if one.default is None]
    return frozenset(name for name in unset if not kind_of(name) and _WIDTHS.search(name))


def _set_sizes(draft: _Draft) -> None:
    for name in draft.names:
        size = None if name in draft.parts or name in draft.derived else size_of(name, draft.known.get(name))
        if size is not None:
            draft.made[name] = size


def _set_lists(draft: _Draft) -> None:
    """Lists whose length means something else than layers."""
    for name in draft.names:
        value = draft.known.get(name)
        if name == "vision_feature_layer" and type(value) is int:
            draft.made[name] = -1
        elif name in TILES and value:
            draft.made[name] = copy.deepcopy(TILES[name])
        elif name == "downsample_channels" and value:  # the last is as wide as the tower behind it
            draft.made[name] = type(value)([WIDTH] * len(value))
        elif name == "attn_layer_indices":  # of layers with attention among others; None is none
            draft.made[name] = [1]
        elif name == "image_size" and isinstance(value, dict):
            draft.made[name] = dict.fromkeys(value, PICTURE)
        elif isinstance(value, list | tuple):
            kind = type(value)
            if name in _DEPTHS:
                draft.made[name] = kind([1] * len(value))
            elif name == "attention_types":
                draft.made[name] = [[["global", "local"], 1]]
            elif name in _TAPS:
                draft.made[name] = kind(taps_of(len(value), LAYERS))
            elif name in _FEATURES:
                draft.made[name] = kind([1, 0, -1, -2][: len(value)])
            elif name == "image_size":  # about as high for its width as it was
                draft.made[name] = kind([PICTURE * round(size / min(value)) for size in value])
            elif name in _CHANNELS:
                draft.made[name] = kind([32] * len(value))


def _fit_towers(draft: _Draft) -> None:
    """Widths that several others make up: of stages, of layers side by side, of patches that are merged."""
    base, stages = draft.now("base_channels"), draft.known.get("channel_multiplier")
    if base and isinstance(stages, list | tuple) and "hidden_size" in draft.names:
        draft.made["hidden_size"] = base * stages[-1]
    if "intermediate_layers_indices" in draft.names and "vision_output_dim" in draft.names:
        draft.made["vision_output_dim"] = 2 * WIDTH  # the last layer's, and those of one more
    for name in draft.parts:
        seen = getattr(draft.known.get(name), "hidden_size", None)
        merged = draft.known.get("out_hidden_size")
        if "vision" in name and type(seen) is int and type(merged) is int and "out_hidden_size" in draft.names:
            draft.made["out_hidden_size"] = max(merged // seen, 1) * WIDTH


def _add_marks(draft: _Draft) -> None:
    """Tokens around a picture, which checkpoints tell beside those around a sound, and their configs do not name."""
    if {"audio_start_token_id", "image_token_index"} <= {*draft.names}:
        draft.made.update({name: token for name, token in _MARKS.items() if name not in draft.names})


def _leave_pyramids(draft: _Draft) -> None:
    """Widths that grow with the stages follow the lists of heads, and are left."""
    if any(isinstance(draft.known.get(name), list | tuple) for name in ("num_heads", "num_attention_heads")):
        for name in _MODEL_WIDTHS:
            draft.made.pop(name, None)
    if any(isinstance(draft.known.get(name), list | tuple) for name in _BY_STAGE):
        draft.made.pop("hidden_size", None)
    if "width_coefficient" in draft.names:
        draft.made.pop("hidden_dim", None)


def _follow_sizes(draft: _Draft) -> None:
    """Lists of a width that was changed, and of how many features a picture has."""
    widths = [name for name in draft.made if kind_of(name) == "width" and type(draft.known.get(name)) is int]
    before, after = [draft.known[name] for name in widths], [draft.made[name] for name in widths]
    for name in draft.names:
        value = draft.known.get(name)
        if not isinstance(value, list | tuple) or name in draft.made:
            continue
        if name == "backbone_feature_sizes" and (factor := _shrinkage(draft)):
            draft.made[name] = fit_grids(value, factor)
        elif _CHANNEL_LISTS.search(name) and (now := follow_widths(value, before, after)):
            draft.made[name] = type(value)(now)
    tapped = draft.made.get("intermediate_layers_indices")
    if tapped and "vision_output_dim" in draft.made:  # of all that is tapped, and the last
        draft.made["vision_output_dim"] = draft.now("hidden_size") * (len(tapped) + 1)


def _shrinkage(draft: _Draft) -> float | None:
    """How much fewer features a smaller picture has along each side; None where no config tells pictures' sizes."""
    seen = [part for name in draft.parts if isinstance(part := draft.known.get(name), PreTrainedConfig)]
    for known in (draft.known, *(part.__dict__ for part in seen)):
        size, patch = known.get("image_size"), known.get("patch_size")
        size = size[0] if isinstance(size, list | tuple) else size
        if type(size) is int:
            return PICTURE / size * (patch / PATCH if type(patch) is int else 1)
    return None


def _fit_windows(draft: _Draft) -> None:
    """Attention in windows of stages that halve the picture: smaller windows and patches, a larger picture."""
    if not {"depths", "window_size"} <= {*draft.names}:
        return
    if not any(isinstance(draft.known.get(name), list | tuple) for name in ("window_size", "patch_size")):
        draft.made.update(window_size=2, patch_size=min(4, draft.known.get("patch_size") or 4))
    if type(draft.known.get("image_size")) is int:
        draft.made["image_size"] = 2 * PICTURE * min(4, draft.now("patch_size", 4)) // 4


def _fit_latents(draft: _Draft) -> None:
    """Keys and values from a latent: a head's width is put together, and there are as many keys as queries."""
    if not draft.known.get("kv_lora_rank") or "qk_rope_head_dim" not in draft.names:
        return
    draft.made.pop("head_dim", None)
    if draft.known.get("head_dim") and draft.known["head_dim"] == draft.known.get("qk_rope_head_dim"):
        draft.made["head_dim"] = draft.made.get("qk_rope_head_dim", 8)
    if "qk_head_dim" in draft.made:
        draft.made["qk_head_dim"] = draft.now("qk_nope_head_dim") + draft.now("qk_rope_head_dim")
    if "num_key_value_heads" in draft.made:
        draft.made["num_key_value_heads"] = draft.made.get("num_attention_heads", HEADS)


def _vary(draft: _Draft) -> None:
    """What the variant does otherwise."""
    variant, made = draft.variant, draft.made
    for name, value in [*made.items()]:
        kind = kind_of(name)
        if kind == "heads" and value == HEADS:
            made[name] = variant.heads
        elif kind == "kv heads" and not variant.grouped:
            made[name] = made.get("num_attention_heads", variant.heads)
        elif kind == "width" and value == WIDTH:
            made[name] = variant.width
        elif name in _HEAD_WIDTHS and value == HEAD_DIM:
            made[name] = HEAD_DIM * variant.width // WIDTH
        if (not variant.head_dim and name in _HEAD_WIDTHS) or (not variant.sizes and kind in ("width", "inner width")):
            del made[name]


def _mix_layers(draft: _Draft) -> None:
    """One layer of each kind."""
    kinds, count = draft.known.get("layer_types"), _layer_count(draft)
    if not isinstance(kinds, list | tuple) or count is None or not draft.variant.layer_kinds:
        return
    each = list(dict.fromkeys(kinds))
    if len(each) > 1:
        mixed = (each * LAYERS)[: max(LAYERS, len(each))]
        if draft.variant.attention_first:
            mixed.sort(key=lambda kind: "attention" not in kind or "linear" in kind)
        draft.made[count] = len(mixed)
        if "layer_types" in draft.names:
            draft.made["layer_types"] = mixed


def _shorten_lists(draft: _Draft) -> None:
    """Every list that is as long as the default model: as long as the tiny one, with one entry of each kind."""
    count = _layer_count(draft)
    before = draft.known.get(count) if count else None
    if count is None or type(before) is not int or before <= LAYERS or not draft.variant.lists:
        return
    for name in draft.names:
        value = draft.made.get(name, draft.known.get(name))
        if isinstance(value, list | tuple) and len(value) == before and name != "eos_token_id":
            draft.made[name] = type(value)(shortened(name, value, draft.made[count]))


def _name_layers(draft: _Draft) -> None:
    """Lists of layers that are treated apart: the second."""
    for name in _SOME_LAYERS:
        value = draft.known.get(name)
        if isinstance(value, list | tuple) and name in draft.names:
            draft.made[name] = type(value)([1])


def _fit_rope(draft: _Draft) -> None:
    heads, width = draft.made.get("num_attention_heads", HEADS), draft.made.get("hidden_size", WIDTH)
    if type(heads) is not int or type(width) is not int:  # lists by stage
        return
    half = (draft.made.get("head_dim") or width // heads) // 2
    for name in ("rope_parameters", "rope_scaling"):
        value = draft.known.get(name)
        if name in draft.names and isinstance(value, dict) and (fitted := rope_sections(value, half)) != value:
            draft.made[name] = fitted
    sections = draft.known.get("mrope_section")
    if isinstance(sections, list | tuple) and "mrope_section" in draft.names:
        draft.made["mrope_section"] = shares(half, len(sections))


_STEPS: tuple[Callable[[_Draft], None], ...] = (
    _set_sizes, _set_lists, _add_marks, _leave_pyramids, _follow_sizes, _fit_windows, _fit_latents, _vary, _fit_towers,
    _mix_layers,
    _shorten_lists, _name_layers, _fit_rope,
)  # fmt: skip


def _layer_count(draft: _Draft) -> str | None:
    """The field that says how many layers there are."""
    return next((name for name in _LAYER_COUNTS if name in draft.made), None)


def _part_settings(draft: _Draft, name: str, part: PreTrainedConfig) -> dict[str, Any]:
    """A config within the config."""
    if part.model_type in _BACKBONES_ELSEWHERE:
        if "use_timm_backbone" in draft.names:
            draft.made["use_timm_backbone"] = False
        taps = len(_indices(part) or [0])
        if isinstance(draft.known.get("encoder_in_channels"), list | tuple):
            draft.made["encoder_in_channels"] = _BACKBONE["hidden_sizes"][-taps:]
        if "apply_layernorm_after_vision_backbone" in draft.names:  # its features come with channels second
            draft.made["apply_layernorm_after_vision_backbone"] = False
        return {**_BACKBONE, "out_features": [f"stage{stage}" for stage in range(1, 5)][-taps:]}
    own = _told_apart(part) | tiny_settings(part, draft.variant)
    if "audio" in name and own.get("intermediate_size") == INNER:
        own["intermediate_size"] = 2 * WIDTH  # frames are put side by side until they are as wide
    features, indices = part.__dict__.get("_out_features"), _indices(part)
    if features and "depths" in field_names(part):
        own["out_features"] = list(features)
        own.pop("out_indices", None)
    if "backbone" in name and indices and len(indices) > 1 and own.get("num_hidden_layers") == LAYERS:
        # as many layers as outputs are taken of
        own |= {"num_hidden_layers": len(indices), "out_indices": list(range(1, len(indices) + 1))}
        own.pop("out_features", None)
    return own | ({"model_type": part.model_type} if part.model_type else {})


def _told_apart(part: PreTrainedConfig) -> dict[str, Any]:
    """What the outer config sets within it, apart from the defaults of its own class."""
    try:
        own = type(part)().__dict__
    except Exception:  # a class that needs arguments
        return {}
    names = [name for name in field_names(part) if name in own and name not in parts_of(part) and name[0] != "_"]
    told = {name: part.__dict__.get(name) for name in names}
    return {name: copy.deepcopy(value) for name, value in told.items() if value != own[name]}


def _indices(part: PreTrainedConfig) -> list[int] | None:
    found = part.__dict__.get("_out_indices") or part.__dict__.get("out_indices")
    return list(found) if isinstance(found, list | tuple) else None


def walk(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A config and all within it."""
    yield config
    for name in parts_of(config):
        part = config.__dict__.get(name)
        if isinstance(part, PreTrainedConfig):
            yield from walk(part)
