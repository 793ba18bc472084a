"""A model's own maps, where it hands them out, as a second opinion on those that were read.

They count only if asking for them leaves what the model computes as it was (Falcon, asked for its maps, leaves the
causal mask out), and if they are maps: some models hand out scores, or averages over heads. Where there are more keys
than dimensions, several maps give the same z, and only the model can say which of them is its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headscope._support.running import accepts
from headscope.anatomy.check import for_each_head, gap_of, output_gap, rounding_of, tolerance
from headscope.anatomy.route import Call
from headscope.anatomy.sightings import Sighting
from headscope.errors import AnatomyError, ModelError

__all__ = ["compare_maps", "hands_out_maps", "maps_heard"]


@dataclass(frozen=True, eq=False)
class Mixing:
    """One call: the map as it was read, the values that it mixes for each head, and what comes of it."""

    pattern: Tensor
    v: Tensor
    z: Tensor


Read = Callable[[], tuple[Any, dict[int, Mixing]]]
"""Runs the model, asking for its maps; gives its output, and each sighting's call by its place in the list."""


def hands_out_maps(model: nn.Module, sightings: Sequence[Sighting]) -> bool:
    """Whether a model may give its maps if it is asked, without taking another kernel for it.

    Those that do not name the argument hang hooks on themselves to answer (transformers 5), and keep them.

    Args:
        model: the model.
        sightings: of its attention.
    """
    kernel = getattr(getattr(model, "config", None), "_attn_implementation", None)
    switches = kernel != "eager" and any(sighting.route == "registry" for sighting in sightings)
    return accepts(model, "output_attentions") and not switches


def compare_maps(sightings: Sequence[Sighting], read: Read, intact: Any) -> list[str]:
    """Refuse maps that the model itself gives otherwise; in words, where what it gives is no map.

    Args:
        sightings: of its attention.
        read: runs it.
        intact: its output when it is not asked for maps.
    """
    try:
        output, heard = read()
    except (ModelError, AnatomyError):
        return []
    own, rest = _apart(output)
    if not own or not output_gap(_apart(intact)[1], rest) <= rounding_of(rest):
        return []
    unlike = 0
    for place, mixing in heard.items():
        theirs = [one for one in own if one.shape == mixing.pattern.shape]
        gaps = [gap_of(mixing.pattern, one) for one in theirs]
        if all(not gap <= tolerance(mixing.z.dtype) for gap in gaps):
            maps = [gap for gap, one in zip(gaps, theirs, strict=True) if _is_map(one, mixing)]
            alike = sum(one.pattern.shape == mixing.pattern.shape for one in heard.values())
            unlike += len(theirs) == alike and not maps
            if maps:
                why = f"its map is {min(maps):.1e} away from the one that the model itself gives"
                sightings[place].refused["pattern"] = f"{why} (output_attentions=True)"
    told = "asked for its maps (output_attentions=True), it gives something else than what mixes its values"
    return [f"{told}, in {unlike} of {len(heard)} layers; here they are read"] if unlike else []


def _is_map(own: Tensor, mixing: Mixing) -> bool:
    """Whether what a model hands out as a map gives z."""
    return gap_of(own.to(mixing.v.dtype) @ mixing.v, mixing.z) <= tolerance(mixing.z.dtype)


def _apart(output: Any) -> tuple[list[Tensor], Any]:
    """The maps in an output, and the rest of it."""
    if not isinstance(output, Mapping):
        first = output[0] if isinstance(output, (tuple, list)) and output else output
        return [], first
    maps: list[Tensor] = []
    for name, value in output.items():
        if "attentions" in name and isinstance(value, (tuple, list)):
            maps += [one for one in value if isinstance(one, Tensor) and one.ndim == 4]
    return maps, {name: value for name, value in output.items() if "attentions" not in name}


def maps_heard(sightings: Sequence[Sighting]) -> tuple[dict[int, Mixing], Callable[[Call], None]]:
    """What takes the map of each sighting as it is heard, and where it puts it."""
    maps: dict[int, Mixing] = {}
    places = {(one.module, one.spelled, one.call): place for place, one in enumerate(sightings)}
    count: dict[tuple[nn.Module, str], int] = {}

    def receive(call: Call) -> None:
        own = (call.module, call.key)
        number = count[own] = count.get(own, -1) + 1
        place = places.get((*own, number))
        if place is not None and "pattern" not in sightings[place].refused:
            v = for_each_head(call.v, sightings[place].kv_of_query)
            with torch.no_grad():
                maps[place] = Mixing(call.pattern().clone(), v.clone(), call.z.clone())

    return maps, receive
