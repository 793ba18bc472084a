"""Which edits make one unit right: slices follow from the anatomy, integer attributes are found by trial.

A unit is the smallest module that holds an attention call and the linear layers around it. Each trial changes a copy of
the unit alone and runs it on what it was given in one forward pass with the heads switched off; its output must be the
one recorded there.
"""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from headscope._support.holding import uncompiled
from headscope.anatomy.linear import is_plain, stores_transposed
from headscope.errors import SurgeryError
from headscope.sites import Site
from headscope.surgery.by_head import BESIDE, beside_projections
from headscope.surgery.change import SiteChange, Stale
from headscope.surgery.edits import (
    Edit,
    EmptyAttention,
    MapGroups,
    NarrowAttention,
    PackByHand,
    RepairSizes,
    SetAttribute,
    SliceInput,
    SliceOutput,
    apply_edits,
    runs,
)
from headscope.surgery.forwards import copied
from headscope.surgery.replacements import KV_BUFFER
from headscope.surgery.verification import Seen, difference, magnitude

__all__ = ["find_edits"]

_GROUPS = "num_key_value_groups"  # queries per key head, as the modules and functions of transformers call it
_MOST_TRIALS = 48
_MOST_REPAIRS = 12  # of those: with sizes put right as the forward runs


@dataclass(frozen=True)
class _Failure:
    """What went wrong in one trial: a gap, or what the forward raised."""

    gap: float
    error: str = ""


def find_edits(
    model: nn.Module,
    unit: str,
    changes: Sequence[SiteChange],
    seen: Mapping[str, Seen],
    tolerance: float,
) -> tuple[Edit, ...]:
    """The edits that cut one unit, tried on a copy of it.

    Args:
        model: the model; it is only read.
        unit: dotted name of the unit.
        changes: what goes from each of its attention modules.
        seen: a call of the unit, and of each attention module that loses all its heads, with the heads switched off.
        tolerance: largest difference allowed between outputs.

    Raises:
        SurgeryError: no edits were found under which the unit does what it did with the heads switched off.
    """
    call = seen[unit]
    if isinstance(model.get_submodule(changes[0].site.module_name), nn.MultiheadAttention):
        return _narrowed(model, unit, changes, call, tolerance)
    fixed = (*_slices(model, changes), *_structure(model, changes, seen))
    failures = []
    for extra in _ladder(model.get_submodule(unit), unit, changes, fixed):
        edits = (*fixed, *extra)
        failure = _try(model.get_submodule(unit), [edit.within(unit) for edit in edits], call, tolerance)
        if failure is None:
            return edits
        failures.append(failure)
    raise SurgeryError(_explain(unit, model.get_submodule(unit), changes, failures, tolerance, call))


def _narrowed(
    model: nn.Module, unit: str, changes: Sequence[SiteChange], call: Seen, tolerance: float
) -> tuple[Edit, ...]:
    """The edits that cut PyTorch's own attention, which are known; tried all the same."""
    name = changes[0].site.module_name
    edits: list[Edit] = [NarrowAttention(name, changes[0].kept, changes[0].site.n_heads)]
    # its second result is a map of the heads left, and rightly another one
    first = replace(call, output=call.output[0]) if unit == name else call
    failure = _try(model.get_submodule(unit), [edit.within(unit) for edit in edits], first, tolerance)
    if failure is not None:
        raise SurgeryError(_explain(unit, model.get_submodule(unit), changes, [failure], tolerance, first))
    parents = [name[:place] for place, letter in enumerate(name) if letter == "."]
    packing = [one for one in ("", *parents) if isinstance(model.get_submodule(one), nn.TransformerEncoder)]
    return (*edits, *map(PackByHand, packing))


def _slices(model: nn.Module, changes: Sequence[SiteChange]) -> Iterator[Edit]:
    gone: dict[tuple[str, str], set[int]] = {}
    for change in changes:
        for name, side, own in change.slices():
            gone.setdefault((name, side), set()).update(own)
    for (name, side), indices in gone.items():
        module = model.get_submodule(name)
        size = _width(name, module, side)
        keep = runs(set(range(size)) - indices)
        if indices:
            yield SliceOutput(name, keep, size) if side == "output" else SliceInput(name, keep, size)


def _width(name: str, module: nn.Module, side: str) -> int:
    """How many features a layer puts out, or takes in."""
    weight = module._parameters.get("weight")
    if weight is None or not is_plain(module):
        raise SurgeryError(
            f"{name} ({type(module).__name__}) cannot be sliced: {_why_not(module)}; headscope.ablate switches heads "
            "off as it is"
        )
    return int(weight.shape[0 if stores_transposed(module) == (side == "input") else 1])


def _why_not(module: nn.Module) -> str:
    """Why a layer is not its weight, and what to do about it."""
    if any(parameter.is_meta for parameter in module.parameters()):
        return "its weight is offloaded (device_map); load the model whole to cut it"
    if parametrize.is_parametrized(module) or "weight_orig" in module._parameters:
        return "its weight is computed (a parametrisation or a mask); make it a plain one first"
    whole = all(one.is_floating_point() for one in (*module.parameters(), *module.buffers()))
    if not hasattr(module, "base_layer") and (not whole or "quantized" in type(module).__module__):
        return "its weight is quantised; dequantise the model first"
    if next(module.children(), None) is not None:
        return (
            "it is more than its weight, as adapters are; merge them into plain layers first (PEFT: merge_and_unload)"
        )
    return "its weight alone does not tell what it does"


def _structure(model: nn.Module, changes: Sequence[SiteChange], seen: Mapping[str, Seen]) -> Iterator[Edit]:
    """What must change beside weights, and is known without trial."""
    for change in changes:
        name = change.site.module_name
        module = model.get_submodule(name)
        if change.empties:
            yield _emptied(change.site, module, seen)
        elif change.site.route == "registry" and change.grouped:
            mapped = KV_BUFFER in module._buffers or not change.even
            if mapped:
                yield MapGroups(name, change.kv_of_query)
            # the map repeats keys already; and some kernels never look at this integer, so no trial could tell it
            was, each = getattr(module, _GROUPS, None), 1 if mapped else len(change.kept) // len(change.kept_kv)
            if was not in (None, each):
                yield SetAttribute(name, _GROUPS, each, was)


def _emptied(site: Site, module: nn.Module, seen: Mapping[str, Seen]) -> EmptyAttention:
    assert site.output is not None
    inside = site.output.module.startswith(f"{site.module_name}." if site.module_name else "")
    prefix = len(site.module_name) + 1 if site.module_name else 0
    projection = site.output.module[prefix:] if inside else None
    output = seen[site.module_name].output
    returns = None if isinstance(output, Tensor) else _entries(site, output)
    return EmptyAttention(site.module_name, projection, returns, keeps_cache=site.kind != "cross")


def _entries(site: Site, output: Any) -> tuple[str, ...]:
    """What each entry of an attention module's output is, for one that has to be made up without heads."""
    if type(output) in (tuple, list) and isinstance(output[0], Tensor):
        kinds = ["output", *(_entry(site, place, value) for place, value in enumerate(output[1:], 1))]
        if "unknown" not in kinds:
            return tuple(kinds)
    raise SurgeryError(
        f"layer {site.layer} ({site.module_name}) would lose all its heads, and it returns more than its output and "
        "its map, which cannot be made up; leave one head in it"
    )


def _entry(site: Site, place: int, value: Any) -> str:
    if value is None:
        return "map" if place == 1 and site.route == "registry" else "nothing"
    is_map = isinstance(value, Tensor) and value.ndim == 4 and value.shape[1] == site.n_heads
    return "map" if is_map else "unknown"


def _ladder(
    unit: nn.Module, name: str, changes: Sequence[SiteChange], fixed: Sequence[Edit]
) -> Iterator[tuple[Edit, ...]]:
    """What to try beside slicing, in order of cost: numbers of heads, then widths, then sizes put right as it runs.

    Numbers of heads come before no change at all: where both work the module should not say that it has heads which it
    lost. Widths come last and few at a time: one that equals heads × dimensions by chance must not be touched.
    """
    left = [change for change in changes if not change.empties]
    settled = {(edit.module, edit.name) for edit in fixed if isinstance(edit, SetAttribute)}
    settled |= {(edit.module, _GROUPS) for edit in fixed if isinstance(edit, MapGroups)}
    stale = [one for change in left for one in change.stale(unit, name) if (one.module, one.name) not in settled]
    plain = [
        tuple(SetAttribute(one.module, one.name, one.value, one.was) for one in choice)
        for choice in itertools.islice(_choices(list(dict.fromkeys(stale))), _MOST_TRIALS)
    ]
    yield from plain[: _MOST_TRIALS - _MOST_REPAIRS]
    repairs = tuple(RepairSizes(change.site.module_name, change.stale_sizes()) for change in left)
    if repairs:
        yield from ((*edits, *repairs) for edits in plain[:_MOST_REPAIRS])


def _choices(stale: list[Stale]) -> Iterator[tuple[Stale, ...]]:
    """Sets of attributes to change together; those of one name stand or fall together."""
    counts = tuple(one for one in stale if one.counts_heads)
    widths: dict[str, list[Stale]] = {}
    for one in stale:
        if not one.counts_heads:
            widths.setdefault(one.name, []).append(one)
    yield counts
    if counts:
        yield ()
    for many in range(1, len(widths) + 1):
        for names in itertools.combinations(widths, many):
            yield (*counts, *(one for name in names for one in widths[name]))
    if counts:
        yield from (tuple(same) for same in widths.values())
    kinds = dict.fromkeys(one.name for one in counts)
    if len(kinds) > 1:
        yield from (tuple(one for one in counts if one.name == kind) for kind in kinds)


def _try(unit: nn.Module, edits: Sequence[Edit], call: Seen, tolerance: float) -> _Failure | None:
    trial = copied(unit)
    trial.eval()  # not in one line: some modules' own train() forgets to return the module
    apply_edits(edits, trial)
    try:
        with torch.no_grad(), uncompiled():
            output = trial(*copy.deepcopy(call.args), **copy.deepcopy(call.kwargs))
    except Exception as error:
        return _Failure(float("inf"), f"{type(error).__name__}: {error}")
    if isinstance(call.output, Tensor) and isinstance(output, tuple):
        output = output[0]  # where a map of the heads left comes with it
    gap = difference(call.output, output)
    # against the output's size: float32 rounds it by as much, and the whole model is compared strictly in the end
    return None if gap <= tolerance * max(1.0, magnitude(call.output)) else _Failure(gap)


def _explain(
    unit: str,
    module: nn.Module,
    changes: Sequence[SiteChange],
    failures: Sequence[_Failure],
    tolerance: float,
    call: Seen,
) -> str:
    best = min(failures, key=lambda failure: failure.gap)
    why = best.error or (f"it is {best.gap:.2e} away" if best.gap < float("inf") else "shapes differ")
    places = "; ".join(_place(change.site) for change in changes)
    beside = beside_projections(module, unit, [change.site for change in changes], call)
    told = f"{BESIDE}: {beside}. " if beside else ""
    return (
        f"cutting {', '.join(_heads(changes))} was given up: {type(module).__name__} ({unit or 'the whole model'}) "
        f"does not return what it returned with these heads switched off, up to {tolerance:.0e}; {len(failures)} ways "
        f"were tried, in the best {why}. {told}The model was left as it was; {places}. {_advice(changes)}"
    )


def _place(site: Site) -> str:
    return f"layer {site.layer}: route {site.route}, entangled {', '.join(site.entangled) or 'nothing'}"


def _heads(changes: Sequence[SiteChange]) -> list[str]:
    return [str(change.site.heads[position]) for change in changes for position in change.gone]


def _advice(changes: Sequence[SiteChange]) -> str:
    if any(change.empties for change in changes):
        return "Possible: leave at least one head in the layer"
    if any(change.grouped and not change.even for change in changes):
        return "Possible: as many query heads from each group that shares a key head, or whole groups"
    return "Possible: headscope.ablate switches the heads off and leaves the weights whole"
