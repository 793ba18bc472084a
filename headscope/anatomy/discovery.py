"""Discovery: one short probe forward with gradients tells which weights belong to which head.

Every linear layer's output becomes a leaf of its own small graph, so a gradient from one head's q (k, v) stops at the
nearest linear layers and is nonzero exactly on the rows that make that head. z becomes a leaf too: the first linear
layer whose input depends on it is the output projection, and the same gradient taken the other way gives the columns.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from headscope._support.running import evaluating, is_compiled, on_device, run_model, unwrapped
from headscope.anatomy.examples import make_example
from headscope.anatomy.fast_path import plainly
from headscope.anatomy.finite import check_weights
from headscope.anatomy.operations import tensors_in
from headscope.anatomy.probe import Layer, Probe, Sighting
from headscope.anatomy.route import ROUTES, Refusal, Scouted, key_of
from headscope.anatomy.weights import stored_weight
from headscope.errors import AnatomyError, InputError
from headscope.heads import Anatomy, Site, Slices
from headscope.plans import Record

__all__ = ["discover"]


def discover(model: nn.Module, example: Mapping[str, Any] | None = None) -> Anatomy:
    """Find every attention head of a model.

    The model is run once in evaluation mode on a few tokens and is bit-identical afterwards.

    Args:
        model: any model of transformers that dispatches its attention, or one with plainly hand-written attention.
        example: arguments of its forward: two rows, a few tokens, and on the two sides of an encoder-decoder different
            numbers of them; made up for models of transformers.

    Returns:
        The sites in execution order. In a pruned model layers and heads keep their original numbers.

    Raises:
        InputError: it is no model.
        AnatomyError: no attention was found; the message says what looked like it, or that an example is needed.
        ModelError: the probe forward failed.
        NumericalError: NaN or infinity in a weight, which is named.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"a model is a torch.nn.Module, and this is {model!r}; hs.load_model(name or folder).model loads one"
        )
    wrapper, model = model, unwrapped(model)
    sightings, refusals = _sight(model, example)
    if not sightings:
        raise AnatomyError(_nothing_found(model, refusals))
    names = {module: name for name, module in model.named_modules()}
    sites = [_site(index, sighting, names) for index, sighting in enumerate(sightings)]
    record = model.__dict__.get("_headscope")
    if isinstance(record, Record):
        sites = _with_original_numbers(sites, record)
    sites = _with_sharing(sites)
    return Anatomy(type(model).__name__, tuple(sites), _fingerprint(model, sites), _remarks(wrapper, sites))


def _sight(model: nn.Module, given: Mapping[str, Any] | None) -> tuple[list[Sighting], list[Refusal]]:
    probe = Probe(model)
    with ExitStack() as stack:
        for context in (plainly(model), evaluating(model), torch.inference_mode(False), torch.enable_grad()):
            stack.enter_context(context)
        # copies: tensors made under inference_mode cannot take part in gradients
        example = make_example(model) if given is None else {name: _copied(value) for name, value in given.items()}
        example = on_device(model, example)
        scouted: dict[str, Scouted] = {}
        for route in ROUTES.values():
            scouted[route.name] = route().scout(model, tensors_in(example), lambda: run_model(model, example))
        stack.enter_context(probe.watching())
        for route in ROUTES.values():
            receive = probe.receiver(route.name)
            stack.enter_context(route().listen(model, receive, scouted[route.name].places, probe))
        run_model(model, example)
    if not all(sighting.finite for sighting in probe.sightings):
        check_weights(model)
    return probe.sightings, [refusal for found in scouted.values() for refusal in found.refusals]


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


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
        spelling=json.loads(seen.spelled) if seen.spelled else None,
    )


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
    found = []
    for site in sites:
        if not left.get(site.module_name):
            raise AnatomyError(f"{site.module_name} holds attention that was not there when the model was pruned")
        original = left[site.module_name].pop(0)  # attentions of one module come in the order in which they came then
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


def _fingerprint(model: nn.Module, sites: list[Site]) -> str:
    # without the scaling: where it is read off a gradient, its last digits differ with the precision
    places = [
        {name: value for name, value in site.to_json().items() if name not in ("spelling", "rows", "output_call")}
        | {"scaling": None}
        for site in sites
    ]
    digest = hashlib.sha256(json.dumps([type(model).__name__, places]).encode())
    for site in sites:
        if site.output is not None:
            weight = stored_weight(model, site.output)
            rounded = weight.detach().to("cpu", torch.bfloat16).contiguous()
            digest.update(rounded.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def _remarks(wrapper: nn.Module, sites: list[Site]) -> tuple[str, ...]:
    remarks = []
    if is_compiled(wrapper):
        remarks.append("compiled by torch.compile: it runs uncompiled while it is watched, or heads are switched off")
    elif unwrapped(wrapper) is not wrapper:
        remarks.append(f"what is described is the model inside the {type(wrapper).__name__}")
    for site in sites:
        if site.output is None:
            remarks.append(f"layer {site.layer} ({site.module_name}): no linear layer consumes z; heads cannot be cut")
        elif site.entangled:
            mixed = ", ".join(site.entangled)
            remarks.append(f"layer {site.layer} ({site.module_name}): heads cannot be told apart in {mixed}")
    return tuple(remarks)


def _nothing_found(model: nn.Module, refusals: Sequence[Refusal]) -> str:
    names = {module: name for name, module in model.named_modules()}
    reasons = dict.fromkeys(f"{names[one.module] or type(model).__name__}: {one.reason}" for one in refusals)
    if reasons:
        some = "; ".join(list(reasons)[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
        return f"no attention was recognised in {type(model).__name__}, though there are softmaxes over scores: {some}"
    alike = [
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if re.search("attention|attn", type(module).__name__, re.IGNORECASE)
    ]
    if not alike:
        return f"no attention was found in {type(model).__name__}, and no module's name looks like it"
    some = ", ".join(alike[:3]) + (f" and {len(alike) - 3} more" if len(alike) > 3 else "")
    return (
        f"no attention was recognised in {type(model).__name__}, though these modules look like it: {some}. "
        "Recognised are models that dispatch through transformers' AttentionInterface, and softmax(q·kᵀ)·v as PyTorch "
        "operations write it; the example needs at least two rows of two tokens"
    )
