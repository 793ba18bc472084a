"""Discovery: one short probe forward with gradients tells which weights belong to which head.

Every linear layer's output becomes a leaf of its own small graph, so a gradient from one head's q (k, v) stops at the
nearest linear layers and is nonzero exactly on the rows that make that head. z becomes a leaf too: the first linear
layer whose input depends on it is the output projection, and the same gradient taken the other way gives the columns.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from headscope._support.running import on_device, unwrapped
from headscope.anatomy.differentiable import not_inferring
from headscope.anatomy.examples import make_example
from headscope.anatomy.fast_path import plainly
from headscope.anatomy.linear import row_size
from headscope.anatomy.records import record_of
from headscope.anatomy.remarks import cut_before, nothing_found, unread, unsettled, wrapped
from headscope.anatomy.route import key_of
from headscope.anatomy.sightings import Layer, Sighting
from headscope.anatomy.trials import Findings, try_out
from headscope.anatomy.unfit import check_kind
from headscope.anatomy.weights import stored_weight
from headscope.errors import AnatomyError, ModelError
from headscope.plans import Record
from headscope.sites import Anatomy, Site, Slices
from headscope.text.feeding import feed_one

__all__ = ["discover"]


def discover(model: nn.Module, example: Any = None) -> Anatomy:
    """Find every attention head of a model.

    The model is run a few times in evaluation mode on a few tokens, and is bit-identical afterwards. What looks like
    attention and is not read, and what of a site cannot be had, stands in `Anatomy.remarks`.

    Args:
        model: any model of transformers, or one whose attention is softmax(q·kᵀ)·v in PyTorch's operations, or is
            described by `headscope.describe`.
        example: a batch as the model will be given, a dict of its forward's arguments, a tensor, or a tuple with the
            input first: at least two tokens, and on the two sides of an encoder-decoder different numbers of them; a
            corner of it is taken. Made up where a model of transformers says what it takes.

    Returns:
        The sites in execution order. In a pruned model layers and heads keep their original numbers.

    Raises:
        InputError: it is no model.
        AnatomyError: no attention was found; the message says what looked like it, or that an example is needed.
        ModelError: the probe forward failed.
        NumericalError: NaN or infinity in a weight, which is named.
    """
    wrapper, model = model, unwrapped(model)
    check_kind(model)
    if example is not None:
        example = feed_one(model, example)
    found = _sight(model, example)
    if not found.sightings:
        raise AnatomyError(nothing_found(model, found.refusals, record_of(model)))
    names = {module: name for name, module in model.named_modules()}
    sites = [_site(index, sighting, names) for index, sighting in enumerate(found.sightings)]
    record = record_of(model)
    if record is not None:
        sites = _with_original_numbers(sites, record)
    sites = _with_sharing(sites)
    remarks = (*wrapped(wrapper), *found.remarks, *cut_before(record), *unsettled(sites), *unread(model, sites, found))
    signed = _fingerprint(model, sites)
    return Anatomy(type(model).__name__, tuple(sites), signed, remarks, tuple(found.padding), tuple(found.masks))


def _sight(model: nn.Module, given: Mapping[str, Any] | None) -> Findings:
    with plainly(model), not_inferring():
        # copies: tensors made under inference_mode cannot take part in gradients
        example = make_example(model) if given is None else _copied(given)
        try:
            return try_out(model, on_device(model, example))
        except ModelError as failed:
            further = _further_example(model) if given is None else None
            if further is None:
                raise failed from failed.__cause__
        return try_out(model, on_device(model, further))


def _further_example(model: nn.Module) -> Any:
    """An example for a model that wants more than tokens; None where there is none."""
    try:
        return make_example(model, tried=True)
    except AnatomyError:
        return None


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {name: _copied(part) for name, part in value.items()}
    return type(value)(map(_copied, value)) if type(value) in (list, tuple) else value


def _site(layer: int, seen: Sighting, names: Mapping[nn.Module, str]) -> Site:
    module = names[seen.module]
    parts = {part: _named(getattr(seen, part), names) for part in ("query", "key", "value")}
    output = None if seen.output is None else _named(dict([seen.output]), names)[0]
    layers = [piece.module for pieces in parts.values() for piece in pieces]
    number = re.search(r"\d+", module)
    return Site(
        layer=layer,
        kind=seen.kind,
        block=int(number[0]) if number else None,
        module_name=module,
        call=seen.call,
        unit=_common_parent([module, *layers, *([output.module] if output else [])], names),
        route=seen.route,
        n_heads=seen.n_heads,
        n_kv_heads=seen.n_kv_heads,
        n_value_heads=seen.n_value_heads,
        head_dim=seen.head_dim,
        value_dim=seen.value_dim,
        scaling=seen.scaling,
        head_ids=tuple(range(seen.n_heads)),
        kv_of_query=seen.kv_of_query,
        query=parts["query"],
        key=parts["key"],
        value=parts["value"],
        output=output,
        gated=seen.gated,
        entangled=tuple(seen.entangled),
        rows=seen.rows,
        output_call=seen.output_call,
        output_runs=seen.output_runs,
        spelling=json.loads(seen.spelled) if seen.spelled else None,
        refused=dict(seen.refused),
        copied=seen.copied,
        batch=seen.batch,
        query_masks=() if seen.standing is None else seen.standing.queries,
        key_masks=() if seen.standing is None else seen.standing.keys,
        row_sizes=_row_sizes(seen, names),
    )


def _row_sizes(seen: Sighting, names: Mapping[nn.Module, str]) -> dict[str, int]:
    """Numbers in one row of each layer that makes q, k or v, and in one column of what reads z."""
    read = {} if seen.output is None else dict([seen.output])
    sizes = {}
    for pieces, column in ((seen.query | seen.key | seen.value, False), (read, True)):
        for layer, part in zip(pieces, _named(pieces, names), strict=True):
            sizes[part.name] = row_size(layer.module, layer.parameter, layer.layout, column=column)
    return {name: size for name, size in sizes.items() if size}


def _named(pieces: Mapping[Layer, Any], names: Mapping[nn.Module, str]) -> tuple[Slices, ...]:
    return tuple(Slices(names[layer.module], heads, layer.parameter, layer.layout) for layer, heads in pieces.items())


def _common_parent(paths: list[str], names: Mapping[nn.Module, str]) -> str:
    """Dotted name of the smallest module with a forward of its own that holds all of these."""
    split = [path.split(".") if path else [] for path in paths]
    shared: list[str] = []
    for level in zip(*split, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    by_name = {name: module for module, name in names.items()}
    while shared and isinstance(by_name[".".join(shared)], (nn.ModuleList, nn.ModuleDict)):
        shared.pop()
    return ".".join(shared)


def _with_original_numbers(sites: list[Site], record: Record) -> list[Site]:
    """The sites of a pruned model as they were numbered before; those that lost all their heads are not among them."""
    removed = set(record.removed)
    left: dict[str, list[Site]] = {}
    for original in record.anatomy.sites:
        kept = tuple(head.head for head in original.heads if head not in removed)
        if kept:
            left.setdefault(original.module_name, []).append(replace(original, head_ids=kept))
    found, beyond = [], 1 + max(site.layer for site in record.anatomy.sites)
    for site in sites:
        if not left.get(site.module_name):
            # attention of a wrapper around the pruned model: counted on
            found.append(replace(site, layer=beyond))
            beyond += 1
            continue
        original = left[site.module_name].pop(0)  # attentions of one module come in the order in which they came then
        if site.n_heads != len(original.head_ids):
            raise AnatomyError(
                f"{site.module_name or 'the model'} shows {site.n_heads} heads, and {len(original.head_ids)} of its "
                f"{original.n_heads} were left when it was cut: it was changed since, or runs in another way, so which "
                "of them are left cannot be told"
            )
        found.append(replace(site, layer=original.layer, head_ids=original.head_ids))
    return found


def _with_sharing(sites: list[Site]) -> list[Site]:
    by_module: dict[tuple[str, str], list[int]] = {}
    for site in sites:
        by_module.setdefault((site.module_name, key_of(site.spelling)), []).append(site.layer)
    shared = {
        site.layer: tuple(n for n in by_module[site.module_name, key_of(site.spelling)] if n != site.layer)
        for site in sites
    }
    return [replace(site, shares_module_with=shared[site.layer]) for site in sites]


# how heads are read, not which they are
_UNSIGNED = (
    "spelling", "rows", "output_call", "output_runs", "refused", "copied", "batch", "query_masks", "key_masks",
    "row_sizes",
)  # fmt: skip


def _fingerprint(model: nn.Module, sites: list[Site]) -> str:
    # without the scaling: where it is read off a gradient, its last digits differ with the precision
    own = [{name: value for name, value in site.to_json().items() if name not in _UNSIGNED} for site in sites]
    places = [site | {"scaling": None} for site in own]
    digest = hashlib.sha256(json.dumps([type(model).__name__, places]).encode())
    for site in sites:
        if site.output is not None and "contribution" not in site.refused:
            weight = stored_weight(model, site.output)
            rounded = weight.detach().to("cpu", torch.bfloat16).contiguous()
            digest.update(rounded.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
