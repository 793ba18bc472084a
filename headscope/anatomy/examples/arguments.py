"""Which arguments of a forward an example has: all that a model perceives first, then less of it."""

from collections.abc import Collection, Iterator, Mapping
from inspect import Parameter
from typing import Any

from torch import nn

from headscope._support.running import LABELS, arguments
from headscope.anatomy.called import may_listen
from headscope.anatomy.examples.facts import Facts
from headscope.anatomy.examples.values import CODEBOOKS, GOES_BESIDE

__all__ = [
    "added",
    "is_of_text_alone",
    "may_be_added",
    "may_be_dropped",
    "may_be_passed",
    "required",
    "selections",
]

# what models perceive beside text, and what goes with each where the forward takes it
_PERCEIVED: dict[str, tuple[str, ...]] = {
    "pixel_values": (
        "image_grid_thw", "grid_thw", "image_grid_hw", "target_sizes", "spatial_shapes", "image_position_ids",
        "pixel_position_ids", "images_per_sample", "aspect_ratio_ids", "aspect_ratio_mask", "mm_token_type_ids",
    ),
    "pixel_values_videos": ("video_grid_thw", "mm_token_type_ids"),
    "image_pixel_values": (),
    "image": (),
    "flattened_patches": ("image_embeds_position_mask",),
    "input_features": (),
    "audio_input_features": ("audio_embed_sizes",),
    "input_values": ("input_values_cutoffs",),
    "bbox": (),
    "visual_feats": ("visual_pos",),
    "visual_embeds": (),
    "states": ("actions", "rewards", "returns_to_go", "timesteps"),
    "past_values": ("static_categorical_features", "static_real_features"),
    "patch_embeds": (),
    "protein_input_ids": ("protein_attention_mask",),
}  # fmt: skip
_FIRST_ONLY = (("pixel_values", "pixel_values_videos"), ("pixel_values", "image"))  # both go through one tower
_NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
_MEMORY = "encoder_hidden_states"  # what another model made, for a decoder that is a model of its own
# what says of something else how it is to be read, or stands in the place of what a tower would make
_BESIDE = (*GOES_BESIDE, "labels", "logits", "embeds", "positions", "cutoffs", "to_keep")
_STREAMS = ("inputs_embeds", "hidden_states", "inputs")
_NEVER = frozenset(
    {
        *LABELS, "past_key_values", "cache", "use_cache", "cache_position", "cache_params", "return_dict",
        "return_loss", "head_mask", "encoder_outputs", "decoder_attention_mask", "mm_encoder_outputs", "inputs_embeds",
        "decoder_inputs_embeds", "encoder_cache", "decoder_cache", "padding_cache", "text_encoder_inputs_embeds",
    }
)  # fmt: skip


def required(model: nn.Module) -> tuple[str, ...]:
    """What the forward does not run without."""
    takes = arguments(model).values()
    return tuple(one.name for one in takes if one.default is one.empty and one.kind in _NAMED)


def is_of_text_alone(model: nn.Module, facts: Facts) -> bool:
    """Whether a model reads one row of tokens at a time, and nothing beside them.

    A decoder that is a model of its own reads what an encoder made, where it has parts for that; these are told by
    their names, for none of this runs the model.
    """
    takes = arguments(model)
    if _mains(model) != ("input_ids",) or "input_ids" not in takes or set(required(model)) - {"input_ids"}:
        return False
    if facts.number(CODEBOOKS, 1) != 1 or any(name in takes for name in _PERCEIVED):
        return False
    return _MEMORY not in takes or not may_listen(model)


def added(names: Collection[str], takes: Mapping[str, Parameter]) -> Iterator[tuple[str, ...]]:
    """What can be given beside some arguments, one thing at a time with what goes with it: what is perceived first.

    Args:
        names: what is given already.
        takes: what the forward takes.
    """
    perceived = [name for name in _PERCEIVED if name in takes and name not in names]
    memory = [_MEMORY] if _MEMORY in takes and _MEMORY not in names else []
    rest = [name for name in takes if name not in names and may_be_added(name, takes) and not name.endswith(_BESIDE)]
    for one in dict.fromkeys((*perceived, *memory, *rest)):
        beside = ("query_embeds",) if one == _MEMORY else _PERCEIVED.get(one, ())
        yield one, *(name for name in beside if name in takes and name not in names)


def may_be_added(name: str, takes: Mapping[str, Parameter]) -> bool:
    """Whether an argument that a model asks for can be given: no caches, labels and switches."""
    one = takes.get(name)
    if one is None or one.kind not in _NAMED:
        return False
    return name not in _NEVER and (one.annotation is one.empty or "ensor" in str(one.annotation))


def may_be_dropped(name: str, takes: Mapping[str, Parameter]) -> bool:
    """Whether an argument only goes with another one, so that a model may run without it, and not with it."""
    one = takes.get(name)
    beside = {part for parts in _PERCEIVED.values() for part in parts}
    return name in beside and one is not None and one.default is not one.empty


def may_be_passed(name: str, takes: Mapping[str, Parameter]) -> bool:
    """Whether a part of the model can be given an argument that the forward passes on without naming it."""
    return name not in _NEVER and any(one.kind is one.VAR_KEYWORD for one in takes.values())


def selections(model: nn.Module) -> Iterator[tuple[str, ...]]:
    """Names of arguments to try together, from the most that a model perceives to the least."""
    takes, needs = arguments(model), required(model)
    perceived = [name for name in _PERCEIVED if name in takes]
    perceived = [name for name in perceived if not any(name == b and a in perceived for a, b in _FIRST_ONLY)]
    text = [name for name in ("input_ids", "decoder_input_ids") if name in takes]
    mask = ["attention_mask"] if "input_ids" in text and "attention_mask" in takes else []
    answer = [name for name in text if name != "input_ids"]
    mains = [name for name in _mains(model) if name in takes]
    groups = [
        [*text, *mask, *_together(perceived, takes)],
        *([*text, *mask, *_together([one], takes)] for one in perceived),
        [*mains, *answer, *_together(mains, takes)],
        [*text, *mask],
        *([*_together([one], takes), *answer] for one in perceived),
        [],
        *([one] for one in _STREAMS if one in takes),
    ]
    seen = set()
    for group in groups:
        names = tuple(dict.fromkeys([*group[: len(text)], *needs, *group[len(text) :]]))
        if names and frozenset(names) not in seen:
            seen.add(frozenset(names))
            yield names


def _together(perceived: list[str], takes: Mapping[str, Any]) -> list[str]:
    """What a model perceives, with what goes with it."""
    return [name for one in perceived for name in (one, *_PERCEIVED.get(one, ())) if name in takes]


def _mains(model: nn.Module) -> tuple[str, ...]:
    """What a model of transformers says it reads: a name, or several."""
    name = getattr(model, "main_input_name", None)
    return () if name is None else (name,) if isinstance(name, str) else tuple(name)
