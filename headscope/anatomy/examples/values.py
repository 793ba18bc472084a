"""The table: what an argument of a forward may look like, by its name; and how long its axes are, by fields of configs.

A shape is spelled "kind: axis axis …", as in "noise: row channel height width". An axis is a whole number or a word of
`AXES`. The most likely shape comes first. A new argument is one more line.
"""

import functools
import math
from collections.abc import Callable, Collection, Sequence
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor

from headscope.anatomy.examples.facts import Facts

__all__ = ["CODEBOOKS", "GOES_BESIDE", "GRIDS", "ROWS", "Shape", "shapes_of", "size_of"]

ROWS, _LENGTH, _DECODER_LENGTH = 2, 7, 5  # all different, and unlike usual head counts: no two axes look alike

_IMAGE = ("image_size", "img_size", "pretrain_image_size", "input_image_size", "crop_size", "max_img_size")
_MERGE = ("spatial_merge_size", "merge_size", "pooling_kernel_size", "downsample_factor", "merge_kernel_size")
_MEL = (
    "num_mel_bins", "n_mels", "mel_bins", "num_mels", "input_feat_per_channel", "feature_size", "mel_dim", "input_dim",
    "audio_input_feature_size", "feature_projection_input_dim", "input_feat_size", "model_in_dim",
)  # fmt: skip
CODEBOOKS = ("num_codebooks", "num_quantizers", "n_codebooks", "audio_num_codebooks", "num_channels")
"""How configs of models of codes tell how many of them are heard at a time."""
_WIDTH = ("hidden_size", "d_model", "embed_dim", "n_embd", "dim", "width", "hidden_dim")

# by word: fields of a config that tell the length, what it is where none does, and the tower that is asked first
AXES: dict[str, tuple[Sequence[str], int, str]] = {
    "channel": (("num_channels", "in_channels", "in_chans", "num_input_channels"), 3, "sight"),
    "frame": (("num_frames", "frames", "max_num_frames", "n_frames"), 3, "sight"),
    "tile": (("max_num_tiles",), 3, "sight"),
    "one side": (("patch_size", "spatial_patch_size"), 8, "sight"),
    "moment": (("temporal_patch_size", "video_temporal_patch_size"), 1, "sight"),
    "merge": (_MERGE, 2, "sight"),
    "mel": (_MEL, 80, "sound"),
    "half": (("max_source_positions", "max_position_embeddings"), 60, "sound"),
    "width": (_WIDTH, 64, "text"),
    "seen_width": (_WIDTH, 64, "sight"),
    "heard_width": (_WIDTH, 64, "sound"),
    "memory_width": (("encoder_hidden_size", "cross_attention_hidden_size", "cross_attention_dim", *_WIDTH), 64, ""),
    "codebook": (CODEBOOKS, 4, "text"),
    "past": (("context_length",), 32, ""),
    "series": (("num_input_channels", "input_size"), 1, ""),
    "clock": (("num_time_features",), 0, ""),
    "static_kind": (("num_static_categorical_features",), 0, ""),
    "static_number": (("num_static_real_features",), 0, ""),
    "feature": (("visual_feat_dim", "visual_embedding_dim"), 64, "sight"),
    "state": (("state_dim", "max_state_dim"), 17, ""),
    "act": (("act_dim", "max_action_dim", "action_dim"), 4, ""),
    "horizon": (("chunk_size", "n_action_steps"), 7, ""),
    "latent": (("latent_dim", "codebook_dim", "hidden_size"), 64, "sound"),
    "speaker": (("speaker_embedding_dim", "enc_emb_dim", "xvector_output_dim"), 64, "sound"),
    "depth": (("max_depth", "max_xpath_depth"), 50, ""),
    "hop": (("hop_length", "frame_size"), 320, "sound"),
}


def _side(facts: Facts, across: bool) -> int:
    size = facts.read(_IMAGE, "sight")
    if isinstance(size, dict):
        size = [size.get("height", 32), size.get("width", 32)] if "height" in size else list(size.values())
    if isinstance(size, (list, tuple)) and size:
        size = size[-1 if across else 0]
    return size if isinstance(size, int) and size > 0 else 64


def _grid(facts: Facts) -> tuple[int, int]:
    """Patches of a picture, down and across: unlike each other, and such as are merged without a rest."""
    merge = size_of("merge", facts)
    if facts.read(("insert_layer_id",), "sight") is not None:  # neighbours are merged within the tower already
        return 2 * merge, 4 * merge
    return 2 * merge, 3 * merge


def _lags(facts: Facts) -> int:
    lags = facts.read(("lags_sequence",))
    return max(lags) if isinstance(lags, (list, tuple)) and lags else 0


_MADE: dict[str, Callable[[Facts], int]] = {
    "row": lambda facts: ROWS,
    "heard": lambda facts: 90,  # where there is a sound, as long as that
    "position": lambda facts: _LENGTH,
    "answer": lambda facts: _DECODER_LENGTH,
    "height": functools.partial(_side, across=False),
    "across": functools.partial(_side, across=True),
    "grid": lambda facts: math.prod(_grid(facts)),
    "patches": lambda facts: ROWS * math.prod(_grid(facts)),
    "side": lambda facts: size_of("one side", facts),
    "patch": lambda facts: size_of("channel", facts) * size_of("side", facts) ** 2,
    "film_patch": lambda facts: size_of("patch", facts) * size_of("moment", facts),
    "coded_patch": lambda facts: facts.number(("patch_embed_hidden_size",), size_of("patch", facts), "sight") + 2,
    "films": lambda facts: ROWS * size_of("frame", facts),
    "merged": lambda facts: size_of("patches", facts) // size_of("merge", facts) ** 2,
    "block": lambda facts: size_of("merge", facts) * size_of("side", facts),
    "down": lambda facts: max(_side(facts, across=False) // size_of("side", facts), 1),
    "pieces": lambda facts: math.prod(_side(facts, across=way) // size_of("side", facts) for way in (False, True)),
    "tubes": lambda facts: (
        size_of("frame", facts) // facts.number(("tubelet_size",), 2, "sight") * size_of("pieces", facts)
    ),
    "strip": lambda facts: size_of("patches", facts) * size_of("side", facts),
    "long": lambda facts: 2 * size_of("half", facts),
    "lagged": lambda facts: size_of("past", facts) + _lags(facts),
    "voices": lambda facts: ROWS * size_of("codebook", facts),
    "sound": lambda facts: 16 * size_of("hop", facts),
}


def size_of(axis: str, facts: Facts) -> int:
    """How long an axis is, which is a whole number or a word of the table."""
    if axis.isdecimal():
        return int(axis)
    if axis in _MADE:
        return _MADE[axis](facts)
    names, default, sense = AXES[axis]
    return facts.number(names, default, sense)


Fill = Callable[[list[int], Facts, torch.Generator], Any]


def _grids(sizes: list[int], facts: Facts, generator: torch.Generator) -> Tensor:
    """Rows of (frames, patches down, patches across), or of the last two."""
    return torch.tensor([1, *_grid(facts)][-sizes[-1] :]).repeat(sizes[0], 1)


def _places(sizes: list[int], facts: Facts, generator: torch.Generator) -> Tensor:
    """Where each patch of a picture stands: (across, down)."""
    down, across = _grid(facts)
    place = torch.arange(sizes[-2])
    return torch.stack([place % across, (place // across) % down], -1).expand(*sizes[:-2], -1, -1).contiguous()


def _placed(sizes: list[int], facts: Facts, generator: torch.Generator) -> Tensor:
    """Patches of a picture, each behind the row and the column where it stands, counted from 1."""
    patches = torch.randn(sizes, generator=generator)
    patches[..., :2] = 1.0 + _places([*sizes[:-1], 2], facts, generator).flip(-1)
    return patches


def _boxes(sizes: list[int], facts: Facts, generator: torch.Generator) -> Tensor:
    """Boxes (left, top, right, bottom), each at another place."""
    step = torch.arange(math.prod(sizes[:-1])).reshape(*sizes[:-1], 1) % 11
    return torch.tensor([1, 2, 10, 13]) + step


def _sizes(sizes: list[int], facts: Facts, generator: torch.Generator) -> Tensor:
    return torch.tensor([_side(facts, across=False), _side(facts, across=True)]).repeat(sizes[0], 1)


def _drawn(sizes: list[int], facts: Facts, generator: torch.Generator) -> Tensor:
    return torch.randint(0, max(min(facts.number(("vocab_size",), 90), 90), 1), sizes, generator=generator)


_FILLS: dict[str, Fill] = {
    "noise": lambda sizes, facts, generator: torch.randn(sizes, generator=generator),
    "share": lambda sizes, facts, generator: torch.rand(sizes, generator=generator),
    "none": lambda sizes, facts, generator: torch.zeros(sizes),
    "all": lambda sizes, facts, generator: torch.ones(sizes, dtype=torch.long),
    "one": lambda sizes, facts, generator: torch.ones(sizes, dtype=torch.int),
    "true": lambda sizes, facts, generator: torch.ones(sizes, dtype=torch.bool),
    "false": lambda sizes, facts, generator: torch.zeros(sizes, dtype=torch.bool),
    "full": lambda sizes, facts, generator: torch.ones(sizes),
    "half": lambda sizes, facts, generator: (torch.arange(sizes[-1]) % 2 == 0).expand(sizes).contiguous(),
    "zero": lambda sizes, facts, generator: torch.zeros(sizes, dtype=torch.long),
    "count": lambda sizes, facts, generator: torch.arange(sizes[-1]).expand(sizes).contiguous(),
    "token": _drawn,
    "placed": _placed,
    "grid": _grids,
    "place": _places,
    "box": _boxes,
    "size": _sizes,
    "span": lambda sizes, facts, generator: torch.full([*sizes[:-1], 1], sizes[-1], dtype=torch.long),
    "length": lambda sizes, facts, generator: torch.full(sizes[:-1], sizes[-1], dtype=torch.long),
    "number": lambda sizes, facts, generator: sizes[-1],
    "crops": lambda sizes, facts, generator: torch.tensor([2, 3, 0, 0]).repeat(sizes[0], 1),
    "pairs": lambda sizes, facts, generator: [tuple(_grid(facts))] * sizes[0],
    "off": lambda sizes, facts, generator: False,
}


class Shape:
    """What an argument may look like.

    Args:
        spelled: "kind: axis axis …".

    Attributes:
        axes: words of the table, or whole numbers.
        fill: makes it, of given sizes.
        is_of_truth: whether it holds truth values.
        is_of_numbers: whether its axes may have other lengths: not where their length says what they hold.
    """

    def __init__(self, spelled: str) -> None:
        kind, axes = spelled.split(":")
        self.is_of_numbers = kind not in ("grid", "place", "box", "size", "number", "crops", "pairs", "off")
        self.is_of_truth = kind in ("true", "false")
        self.fill, self.axes = _FILLS[kind], tuple(axes.split())


_PICTURE = "noise: row channel height across"
_PICTURES = (
    _PICTURE, "noise: row frame channel height across", "noise: row 1 channel height across",
    "noise: row 1 tile channel height across", "noise: row grid patch", "noise: row channel 64 96",
    "noise: row channel 224 224", "noise: row 2 channel height across", "noise: row channel frame height across",
    "noise: patches film_patch", "noise: row channel 256 256", "noise: row 3 64 96",
    "noise: films channel height across",
)  # fmt: skip
_PATCHES = (
    "noise: patches film_patch", "noise: row grid patch", "noise: patches channel side side",
    "noise: merged block block channel", _PICTURE, "noise: row grid film_patch", "noise: 1 channel side strip",
    "noise: patches seen_width", "noise: 1 patches channel side side",
)  # fmt: skip
_SPECTRA = (
    "noise: row mel long", "noise: row 90 mel", "noise: row mel 90", "noise: row 1 90 mel", "noise: row 90 80",
    "noise: row 80 90", "noise: row 128 64", "noise: row 64 128", "noise: row 90 160", "noise: mel 180",
)  # fmt: skip
_STREAM = (
    "noise: row position width", "noise: row grid width", "noise: row width 6 8", "noise: row channel 64 96",
    "noise: row channel 224 224", "noise: patches width", "noise: row 90 mel",
)  # fmt: skip
_WAVES = (
    "noise: row 4000", "noise: row position width", "noise: row 1 sound", "noise: row sound", "noise: row 16000",
    "noise: row 1024 mel", "noise: row 90 mel",
)  # fmt: skip

VALUES: dict[str, tuple[str, ...]] = {
    "input_ids": (
        "token: row position", "token: voices position", "token: row position codebook", "token: row codebook position",
    ),
    "decoder_input_ids": ("token: row answer", "token: voices answer", "token: row answer codebook"),
    "attention_mask": ("all: row position",),
    "encoder_attention_mask": ("all: row position",),
    "token_type_ids": ("zero: row position",),
    "mm_token_type_ids": ("zero: row position",),
    "position_ids": ("count: row position",),
    "bbox": ("box: row position 4",),
    "pixel_values": _PICTURES,
    "pixel_values_videos": (
        "noise: row frame channel height across", "noise: row channel frame height across",
        "noise: patches film_patch",
    ),
    "image": (_PICTURE, "noise: row 3 224 224"),
    "image_pixel_values": ("noise: row 2 channel height across",),
    "prompt_pixel_values": (_PICTURE,),
    "prompt_masks": (_PICTURE,),
    "prompt_depth": ("noise: row 1 height across",),
    "bool_masked_pos": ("half: row tubes", "half: row pieces"),
    "pixel_mask": ("all: row height across",),
    "pixel_attention_mask": ("all: row grid", "all: row frame height across", "true: row frame"),
    "image_token_pooling": ("count: 12 4",),
    "image_grids": ("crops: row 4",),
    "flattened_patches": ("placed: row grid coded_patch",),
    "image_grid_thw": ("grid: row 3",),
    "video_grid_thw": ("grid: row 3",),
    "grid_thw": ("grid: row 3", "grid: row 2", "pairs: row"),
    "image_grid_hw": ("grid: row 2",),
    "grid_hws": ("grid: row 2",),
    "spatial_shapes": ("grid: row 2",),
    "target_sizes": ("grid: row 2",),
    "image_sizes": ("size: row",),
    "merge_sizes": ("all: row",),
    "images_per_sample": ("length: row 2",),
    "pixel_position_ids": ("place: row grid 2",),
    "image_position_ids": ("place: row grid 2",),
    "video_position_ids": ("place: row frame grid 2",),
    "aspect_ratio_ids": ("all: row 1",),
    "aspect_ratio_mask": ("all: row 1 tile",),
    "input_features": _SPECTRA,
    "audio_features": _SPECTRA,
    "audio_input_features": _SPECTRA,
    "audio_mel": ("noise: row 90 mel", *_SPECTRA),
    "mel_spectrogram": ("noise: row mel 90", "noise: row 80 90"),
    "reference_mel": ("noise: row 90 mel", "noise: row 90 80"),
    "spectrogram": ("noise: row 90 mel", "noise: row 90 80"),
    "input_features_mask": ("all: row heard", "all: row 90"),
    "audio_mel_mask": ("false: row 90",),
    "feature_attention_mask": ("all: row heard", "all: row 90"),
    "audio_attention_mask": ("all: row heard",),
    "input_values_cutoffs": ("span: row heard",),
    "input_values": _WAVES,
    "audio_values": _WAVES,
    "waveform": _WAVES,
    "decoder_input_values": ("noise: row answer width", "noise: row answer 80"),
    "speaker_embeddings": ("noise: row speaker",),
    "latents": ("noise: row latent 16", "noise: row 16 latent"),
    "code": ("token: row 16",),
    "audio_codes": ("token: row codebook 16", "token: 1 row codebook 16"),
    "audio_input_ids": ("token: row position codebook", "token: row position"),
    "feature_lens": ("length: row 90",),
    "audio_feature_lengths": ("length: row 90",),
    "audio_embed_sizes": ("length: row 12",),
    "lengths": ("length: row position",),
    "past_values": ("noise: row lagged", "noise: row lagged series", "noise: row past series", "noise: row past"),
    "past_time_features": ("noise: row lagged clock",),
    "past_observed_mask": ("full: row lagged", "full: row lagged series", "full: row past series"),
    "static_categorical_features": ("zero: row static_kind",),
    "static_real_features": ("noise: row static_number",),
    "past_values_padding": ("none: row past",),
    "freq": ("zero: row 1", "zero: row"),
    "observed_mask": ("full: row past series",),
    "input_points": ("share: row 1 3 2",),
    "input_labels": ("all: row 1 3",),
    "input_boxes": ("share: row 1 4",),
    "protein_input_ids": ("token: row position",),
    "visual_feats": ("noise: row 6 feature",),
    "visual_pos": ("share: row 6 4",),
    "visual_embeds": ("noise: row 6 feature",),
    "image_attention_mask": ("all: row position frame", "true: row frame down down"),
    "classes_structure": ("one: row",),
    "image_embeds_position_mask": ("all: row position",),
    "xpath_tags_seq": ("zero: row position depth",),
    "xpath_subs_seq": ("zero: row position depth",),
    "encoder_hidden_states": ("noise: row 6 memory_width", "noise: row 6 width"),
    "states": ("noise: row position state",),
    "state": ("noise: row state",),
    "actions": ("noise: row position act", "noise: row horizon act"),
    "patch_embeds": ("noise: row position width", "noise: row 6 8 width"),
    "action_embeds": ("noise: row horizon width",),
    "rewards": ("noise: row position 1",),
    "returns_to_go": ("noise: row position 1",),
    "timesteps": ("count: row position",),
    "time_step": ("share: row",),
    "aatype": ("zero: row position",),
    "dataset_index": ("zero: row",),
    "speaker_ids": ("zero: row",),
    "task_inputs": ("token: row position", "zero: row"),
    "query_embeds": ("noise: row position width",),
    "image_features": ("noise: row 2 grid seen_width",),
}  # fmt: skip
"""By argument: what it may look like."""

GOES_BESIDE = ("mask", "sizes", "ids", "thw", "hw", "lengths", "lens")
"""How arguments end that say of something else how it is to be read."""
GRIDS = frozenset({"image_grid_thw", "grid_thw", "spatial_shapes", "image_grid_hw", "grid_hws", "target_sizes"})
"""Arguments that tell how patches stand, where pictures come as patches in a row."""
_BESIDE_GRIDS = {"pixel_values": _PATCHES, "hidden_states": _PATCHES}
_BESIDE_PLACES = {
    "pixel_values": ("noise: row grid patch", "noise: row 1 grid patch", "noise: patches patch"),
}
_ENDINGS = (
    ("attention_mask", ("all: row position",)),
    ("masks", ("all: row position",)),
    ("mask", ("true: row position", "all: row position")),
    ("input_ids", ("token: row position",)),
    ("_ids", ("zero: row position", "zero: row")),
    ("_idx", ("zero: row position",)),
    ("merge_sizes", ("all: row",)),
    ("lengths", ("length: row position",)),
    ("lens", ("length: row position",)),
    ("pixel_values", _PICTURES),
    ("values", ("noise: row position width",)),
)


def shapes_of(name: str, beside: Collection[str], parameter: Parameter | None) -> tuple[Shape, ...]:
    """Shapes that an argument may have, most likely first.

    Args:
        name: of the argument.
        beside: the arguments that are there.
        parameter: how the forward declares it.
    """
    annotation = str(getattr(parameter, "annotation", "")).removeprefix("<class '").removesuffix("'>")
    if name == "pixel_values" and "target_sizes" in beside:  # patches of all pictures side by side, in one strip
        return _spelled(("noise: 1 channel side strip", *_PATCHES))
    if name in _BESIDE_GRIDS and GRIDS.intersection(beside):
        return _spelled(_BESIDE_GRIDS[name])
    if name in _BESIDE_PLACES and {"pixel_position_ids", "image_position_ids"}.intersection(beside):
        return _spelled(_BESIDE_PLACES[name])
    if name == "image_grid_thw" and "images_per_sample" in beside:
        return _spelled(("grid: 4 3",))  # of each row a picture that is given, and one that is to be drawn
    if name in VALUES:
        # where a forward tells that it takes truth values, these come first
        return tuple(sorted(_spelled(VALUES[name]), key=lambda one: "BoolTensor" in annotation and not one.is_of_truth))
    if annotation in ("bool", "int"):
        return _spelled(("off:",) if annotation == "bool" else ("number: 1",))
    return _spelled(next((spelled for ending, spelled in _ENDINGS if name.endswith(ending)), _STREAM))


@functools.cache
def _spelled(shapes: tuple[str, ...]) -> tuple[Shape, ...]:
    return tuple(map(Shape, shapes))
