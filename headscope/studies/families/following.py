"""What follows from sizes that were changed: widths, places of features, layers and rotary positions that agree."""

import copy
import math
from collections.abc import Sequence
from typing import Any

from headscope.studies.families.sizes import HEADS, INNER, PATCH, PICTURE, size_of

__all__ = ["TILES", "fit_grids", "fit_prompts", "follow_widths", "rope_sections", "shares", "shortened", "taps_of"]

_PATCHES = (PICTURE // PATCH) ** 2
# what says of a picture into what it is cut: in two, side by side or one above the other; and how many patches give how
# many pieces
TILES = {
    "image_grid_pinpoints": [[PICTURE, 2 * PICTURE], [2 * PICTURE, PICTURE]],
    "projector_patch_to_query_dict": {_PATCHES: 4},
}
"""Lists and tables that a config keeps of how a picture is cut, for tiny pictures."""


def follow_widths(value: Sequence[Any], before: Sequence[int], after: Sequence[int]) -> list[int] | None:
    """A list of one number, which is a width that was changed: the width that it is now; None for other lists.

    Args:
        value: the list.
        before: widths as the default has them.
        after: the same as they are now.

    >>> follow_widths([256, 256, 256], [768, 256], [64, 32])
    [32, 32, 32]
    """
    first = value[0] if value else None
    if type(first) is not int or any(one != first for one in value) or first not in before:
        return None
    return [after[before.index(first)]] * len(value)


def fit_grids(grids: Sequence[Sequence[int]], factor: float) -> list[list[int]]:
    """Places of features, down and across, as many as a smaller picture has.

    Args:
        grids: as the default has them.
        factor: by which each gets smaller.

    >>> fit_grids([[256, 256], [128, 128]], 1 / 32)
    [[8, 8], [4, 4]]
    """
    return [[max(1, math.floor(size * factor)) for size in grid] for grid in grids]


def fit_prompts(parts: Sequence[dict[str, Any]]) -> None:
    """Patches by which prompts are placed on a picture: as many as there are of its coarsest features.

    Args:
        parts: settings of configs within one config; changed in place.
    """
    grids = next((part["backbone_feature_sizes"] for part in parts if part.get("backbone_feature_sizes")), None)
    for part in parts:
        if grids and type(part.get("image_size")) is int and "patch_size" in part:
            part["patch_size"] = part["image_size"] // grids[-1][0]


def taps_of(count: int, layers: int) -> list[int]:
    """Layers whose output is taken, last and first in turns, so that a model of few has them all.

    >>> taps_of(3, 2)
    [1, 0, 1]
    """
    return [layers - 1 - place % layers for place in range(count)]


def rope_sections(parameters: dict[str, Any], half: int) -> dict[str, Any]:
    """Parameters of rotary positions whose sections and factors fit half a head's width.

    Args:
        parameters: as the config has them; by kind of layer or not.
        half: the sum of the sections.

    >>> rope_sections({"rope_theta": 1e4, "mrope_section": [16, 24, 24]}, 8)
    {'rope_theta': 10000.0, 'mrope_section': [4, 2, 2]}
    """
    fitted = copy.deepcopy(parameters)
    for name, value in fitted.items():
        if isinstance(value, dict):
            fitted[name] = rope_sections(value, half)
        elif name == "mrope_section" and isinstance(value, list | tuple):
            fitted[name] = shares(half, len(value))
        elif name in ("long_factor", "short_factor") and isinstance(value, list | tuple):
            fitted[name] = [1.0] * half
    return fitted


def shares(total: int, parts: int) -> list[int]:
    """A total in equal parts, the first with what is left over."""
    each = total // parts
    return [total - each * (parts - 1), *[each] * (parts - 1)]


def shortened(name: str, values: Sequence[Any], length: int) -> list[Any]:
    """A list by layer for so many layers: each kind that it names, or its first numbers, none too large.

    >>> shortened("layer_types", ["full", "full", "sliding"], 3), shortened("num_heads_by_layer", [12, 12, 16], 2)
    (['full', 'sliding', 'full'], [4, 4])
    """
    if all(type(value) is int for value in values):
        most = HEADS if "head" in name else (size_of(name, INNER) or INNER)
        return [min(value, most) for value in values][:length]
    first = {str(value): value for value in reversed(values)}
    each = [first[kind] for kind in dict.fromkeys(map(str, values))]
    return (each * length)[:length]
