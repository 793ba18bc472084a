"""What a cut does to one unit: which layers get smaller, and what else has to change that is known without trial."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils import parametrize

from headscope.anatomy.left import LEFT, Left
from headscope.anatomy.linear import is_plain, stores_transposed
from headscope.errors import SurgeryError
from headscope.sites import Site, Slices
from headscope.surgery.belongings import Belongings
from headscope.surgery.change import SiteChange, is_matrix
from headscope.surgery.edits.attributes import SetAttribute
from headscope.surgery.edits.base import Edit, runs
from headscope.surgery.edits.emptying import EmptyAttention
from headscope.surgery.edits.grouping import KV_BUFFER, MapGroups
from headscope.surgery.edits.padding import FrameFunctions, KeepHeads, PadOutput, PickInput, stands_for
from headscope.surgery.edits.pytorch import NarrowFunction
from headscope.surgery.edits.slicing import SliceInput, SliceOutput, SliceParameter
from headscope.surgery.verification import Seen, is_map

__all__ = ["KV_GROUPS", "by_function", "heads_shown", "is_framed", "padded", "sliced", "structure"]

KV_GROUPS = "num_key_value_groups"
"""Queries per key head, as the modules and functions of transformers call it."""


def sliced(model: nn.Module, changes: Sequence[SiteChange], beside: Sequence[Belongings]) -> Iterator[Edit]:
    """The edits by which layers get smaller, where what they make and read follows.

    Args:
        model: only read.
        changes: what goes from each site of a unit.
        beside: what else belongs to its heads.
    """
    found = {edit.full_name for one in beside for edit in one.edits() if isinstance(edit, SliceParameter)}
    for (layer, side), indices in _gone(changes, beside).items():
        module = model.get_submodule(layer.module)
        if not layer.is_module:
            if layer.name not in found:
                yield from _of_parameter(module, layer, side, indices)
            continue
        size = _width(layer.module, module, side)
        keep = runs(set(range(size)) - indices)
        make = SliceOutput if side == "output" else SliceInput
        yield make(layer.module, keep, size)


def padded(model: nn.Module, changes: Sequence[SiteChange]) -> Iterator[Edit]:
    """The edits by which layers get smaller and all that stands between them stays as it is.

    Raises:
        SurgeryError: a layer is no module, so that nothing can be put in the place of what it does not make.
    """
    for (layer, side), indices in _gone(changes, ()).items():
        module = model.get_submodule(layer.module)
        if not layer.is_module:
            raise SurgeryError(
                f"{layer.name} is a parameter that the forward uses by itself, in no layer of its own, and this "
                "forward does not run with fewer rows of it"
            )
        size = _width(layer.module, module, side)
        keep = runs(set(range(size)) - indices)
        yield PadOutput(layer.module, keep, size) if side == "output" else PickInput(layer.module, keep, size)
    for change in changes:
        inside = f"{change.site.module_name}." if change.site.module_name else ""
        layers = dict.fromkeys(part.module for part in _by_function(change) if part.module.startswith(inside))
        if layers:
            yield FrameFunctions(change.site.module_name, tuple(name.removeprefix(inside) for name in layers))
        before = model.get_submodule(change.site.module_name).__dict__.get(LEFT, {})
        for attention in (change.first.attention, *change.alike):
            # where zeros stood already the module runs with as many heads as then, else with those that it has now
            left = before.get(attention, Left(tuple(range(change.site.n_heads)), change.site.n_heads))
            kept = tuple(left.keep[head] for head in change.kept)
            yield KeepHeads(change.site.module_name, kept, left.heads, change.whole, attention)


def by_function(change: SiteChange) -> Iterator[Edit]:
    """The edit of a module that hands its layers' weights to PyTorch's function of attention, and runs no layer."""
    made = {part.name for part in (*change.site.query, *change.site.key, *change.site.value)}
    if any(part.name in made for part in _by_function(change)):
        yield NarrowFunction(change.site.module_name, change.kept_first, change.first.n_heads)


def _by_function(change: SiteChange) -> Iterator[Slices]:
    """Layers of a site whose weights its module hands to functions of PyTorch."""
    site = change.site
    read = {one["parameter"] for one in (site.spelling or {}).get("weightings", ())}
    for part in (*site.query, *site.key, *site.value, *((site.output,) if site.output else ())):
        if part.is_module and f"{part.name}.weight" in read:
            yield part


def heads_shown(edits: Iterable[Edit]) -> frozenset[int]:
    """How many heads cut modules still show that return something for heads that are gone: their maps, say."""
    return frozenset(edit.heads for edit in edits if isinstance(edit, KeepHeads | NarrowFunction))


def is_framed(model: nn.Module, change: SiteChange) -> bool:
    """Whether a site was cut before in a way in which all sizes stayed; it can be cut further in that way alone."""
    return LEFT in model.get_submodule(change.site.module_name).__dict__


def _gone(changes: Sequence[SiteChange], beside: Sequence[Belongings]) -> dict[tuple[Slices, str], set[int]]:
    """For each layer and side, the rows or columns that go."""
    named: dict[tuple[str, str], Slices] = {}
    gone: dict[tuple[str, str], set[int]] = {}
    for change in changes:
        for part, side, own in change.slices():
            named.setdefault((part.name, side), part)
            gone.setdefault((part.name, side), set()).update(own)
    for one in beside:
        for name, side, rows in one.slices():
            named.setdefault((name, side), Slices(name, ()))
            gone.setdefault((name, side), set()).update(rows)
    return {(named[key], key[1]): indices for key, indices in gone.items() if indices}


def _of_parameter(module: nn.Module, layer: Slices, side: str, indices: set[int]) -> Iterator[Edit]:
    """The edit of a weight that is no module's: along the one axis on which all that goes lies, and its bias."""
    weight: Tensor = getattr(module, layer.parameter)
    if not is_matrix(module, layer):
        raise SurgeryError(f"how heads lie in {layer.name} {tuple(weight.shape)} is not known")
    where = torch.arange(weight.numel()).view(weight.shape)
    matrix: Tensor = rearrange(where, layer.layout) if layer.layout else where
    lines = matrix if side == "output" else matrix.T
    one, gone = (_along_axes(lines[sorted(own)], weight) for own in (layer.heads[0], indices))
    axes = [
        axis for axis, (own, all_gone) in enumerate(zip(one, gone, strict=True)) if _whole(own) and _whole(all_gone)
    ]
    if not axes:
        raise SurgeryError(f"the heads' parts of {layer.name} {tuple(weight.shape)} lie on no one axis of it")
    # where all goes, every axis would do: one head tells which is that of heads
    axis = next((axis for axis in axes if not bool(one[axis].all())), axes[0])
    keep = {index for index, own in enumerate(gone[axis].tolist()) if not own}
    yield SliceParameter(layer.module, layer.parameter, axis, runs(keep), weight.shape[axis])
    bias = layer.parameter.replace("weight", "bias")
    own = module._parameters.get(bias) if bias != layer.parameter else None
    if side == "output" and own is not None and own.shape == matrix.shape[:1]:
        yield SliceParameter(layer.module, bias, 0, runs(set(range(len(own))) - indices), len(own))


def _along_axes(places: Tensor, weight: Tensor) -> list[Tensor]:
    """By axis of a weight, which share of each place on it some of its numbers are."""
    own = torch.zeros(weight.numel())
    own[places.flatten()] = 1
    axes = range(weight.ndim)
    return [own.view(weight.shape).mean([other for other in axes if other != axis]) for axis in axes]


def _whole(along: Tensor) -> bool:
    return bool(((along == 0) | (along == 1)).all())


def _width(name: str, module: nn.Module, side: str) -> int:
    """How many features a layer puts out, or takes in."""
    weight = module._parameters.get("weight")
    whole = stands_for(module)
    if side in whole:
        return whole[side]
    if weight is None or not (is_plain(module) or whole):
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


def structure(
    model: nn.Module, changes: Sequence[SiteChange], seen: Mapping[str, Seen], *, given: bool
) -> Iterator[Edit]:
    """What must change beside weights.

    Args:
        model: only read.
        changes: what goes from each site of a unit.
        seen: a call of each attention module that loses heads.
        given: whether attention functions are to take of what they are given by head what is for the heads left.

    Raises:
        SurgeryError: a layer loses all its heads, and what it returns cannot be made up.
    """
    for change in changes:
        name = change.site.module_name
        module = model.get_submodule(name)
        if change.empties:
            yield _emptied(change.site, module, seen)
        elif change.site.route == "registry":
            mapping = _mapping(change, module, _by_head(change, seen) if given else ())
            yield from () if mapping is None else (mapping,)
            # the map repeats keys already; and some kernels never look at this integer, so no trial could tell it
            repeats = mapping is not None and mapping.kv_of_query is not None
            was = getattr(module, KV_GROUPS, None)
            each = 1 if repeats else len(change.kept) // max(len(change.kept_kv), 1)
            if was not in (None, each) and (change.grouped or repeats):
                yield SetAttribute(name, KV_GROUPS, each, was)


def _mapping(change: SiteChange, module: nn.Module, given: tuple[tuple[str, int], ...]) -> MapGroups | None:
    """Which heads attend where they are not, in their order, what weights make; None where they are."""
    kept, whole = change.kept_first, change.whole
    mapped = KV_BUFFER in module._buffers or (change.grouped and not change.even)
    if not (mapped or whole or given):
        return None
    keys: tuple[int, ...] | None = change.kv_of_query if mapped else None
    if "k" in whole:
        keys = tuple(change.first.kv_of_query[head] for head in kept)
    values = None
    if keys is not None and change.site.n_value_heads != change.site.n_kv_heads:
        values = tuple(range(len(kept)))  # one for each query head, as they come
    if "v" in whole:
        same = change.first.n_value_heads == change.first.n_kv_heads
        values = tuple(change.first.kv_of_query[head] for head in kept) if same else kept
    elif "k" in whole:
        values = change.kv_of_query if values is None else values
    queries = kept if "q" in whole else None
    heads = change.first.n_heads if given else 0
    return MapGroups(change.site.module_name, keys, values, queries, given, kept if given else (), heads)


def _by_head(change: SiteChange, seen: Mapping[str, Seen]) -> tuple[tuple[str, int], ...]:
    """What the attention function was given whole, with an axis of heads: the third from behind, or the only one."""
    counts, found = {change.first.n_heads, change.site.n_heads} - {1}, []  # whole, or of what an earlier cut left
    call = seen.get(change.site.module_name)
    for name, own in ({} if call is None else call.handed).items():
        axis = 0 if own.ndim == 1 else own.ndim - 3
        numbers = own.is_floating_point() or (own.dtype == torch.bool and own.ndim > 1)
        rows = call is not None and own.ndim == 3 and _is_of_rows(own, call)
        if numbers and axis >= 0 and own.shape[axis] in counts and not rows:
            found.append((name, axis))
    return tuple(found)


def _is_of_rows(own: Tensor, call: Seen) -> bool:
    """Whether the first axis of something may be that of the batch's rows."""
    values = (one for one in (*call.args, *call.kwargs.values()) if isinstance(one, Tensor) and one.ndim > 1)
    return bool(own.shape[0] == next((one.shape[0] for one in values), 0))


def _emptied(site: Site, module: nn.Module, seen: Mapping[str, Seen]) -> EmptyAttention:
    assert site.output is not None
    inside = site.output.module.startswith(f"{site.module_name}." if site.module_name else "")
    prefix = len(site.module_name) + 1 if site.module_name else 0
    projection = site.output.module[prefix:] if inside else None
    output = seen[site.module_name].output
    returns = None if isinstance(output, Tensor) else _entries(site, output)
    return EmptyAttention(site.module_name, projection, returns, keeps_cache=True)


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
    by_head = isinstance(value, Tensor) and value.ndim == 4 and value.shape[1] == site.n_heads
    return "map" if by_head and is_map(value) else "unknown"
