"""Remarks: what a user has to know of a model's anatomy, in words: what is not read, and what cannot be had."""

from collections.abc import Iterable, Sequence

from torch import nn

from headscope._support.running import is_compiled, unwrapped
from headscope.anatomy.called import is_called_attention
from headscope.anatomy.route import Refusal
from headscope.anatomy.standing import ELSEWHERE
from headscope.anatomy.trials import Findings
from headscope.plans import Record
from headscope.sites import Site

__all__ = ["cut_before", "nothing_found", "unread", "unsettled", "wrapped"]

_TELL = "tell which modules make q, k and v and which reads the result: headscope.describe, or --describe"


def wrapped(model: nn.Module) -> list[str]:
    """What stands around the model that is described."""
    if is_compiled(model):
        return ["compiled by torch.compile: it runs uncompiled while it is watched, or heads are switched off"]
    if unwrapped(model) is not model:
        return [f"what is described is the model inside the {type(model).__name__}"]
    return []


def cut_before(record: Record | None) -> list[str]:
    """How layers of a cut model got smaller, where that is not in all their parts, layers alike together."""
    ways: dict[str, list[Site]] = {}
    for layer, told in (record.ways if record is not None else {}).items():
        assert record is not None
        ways.setdefault(told, []).append(record.anatomy.site(layer))
    return [f"{_layers(sites)}: cut, and {told}" for told, sites in ways.items()]


def unsettled(sites: Sequence[Site]) -> list[str]:
    """What of the sites that were found cannot be had, layers with the same lack together."""
    lacks: dict[str, list[Site]] = {}
    for site in sites:
        for lack in _lacks(site):
            lacks.setdefault(lack, []).append(site)
    return [f"{_layers(own)}: {lack}" for lack, own in lacks.items()]


def _lacks(site: Site) -> Iterable[str]:
    reasons: dict[str, list[str]] = {}
    for name, reason in site.refused.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        yield f"no {', '.join(names)}: {reason}"
    if site.uncuttable and (site.apart or "contribution" not in site.refused):
        yield f"heads cannot be cut: {site.uncuttable}"
    mixed = [part for part in ("q", "k", "v") if part in site.entangled]
    if mixed and site.prunable:
        yield f"heads cannot be told apart in {' and '.join(mixed)}, which a cut leaves whole"
    if ELSEWHERE in (*site.query_masks, *site.key_masks):
        yield "its positions stand in another order than those of the batch: which are padding cannot be told there"
    if not site.batch:
        yield (
            "its rows are not rows of the batch, and which belong to which cannot be told: all of a batch is one "
            "document there, every position counts, and no gradient is told by row"
        )


def _layers(sites: Sequence[Site]) -> str:
    first = f"layer {sites[0].layer} ({sites[0].module_name})"
    if len(sites) == 1:
        return first
    others = ", ".join(str(site.layer) for site in sites[1:])
    return f"layers {sites[0].layer} ({sites[0].module_name}), {others}"


def unread(model: nn.Module, sites: Sequence[Site], found: Findings) -> list[str]:
    """What looks like attention, by what it does or by its name, and is no site."""
    names = {module: name for name, module in model.named_modules()}
    told: dict[tuple[str, str], list[str]] = {}
    described = [site for site in sites if site.route == "described"]
    refusals = [one for one in found.refusals if not _is_within(names[one.module], described)]
    blamed = {refusal.module for refusal in refusals}
    for refusal in refusals:
        why = f"looks like attention, but {refusal.reason}" if refusal.seen else f"may be attention: {refusal.reason}"
        told.setdefault((type(refusal.module).__name__, why), []).append(names[refusal.module])
    read = {type(model.get_submodule(site.module_name)) for site in sites if site.module_name}
    # what never runs and has no weights cannot be told from a store of positions that is called by its methods
    named = {one for one in names if is_called_attention(one) and (one in found.ran or _has_weights(one))}
    for module, name in names.items():
        kind = type(module).__name__
        idle = type(module) in read and module not in found.ran
        if (idle or module in named) and not _is_covered(name, sites) and not _holds(module, blamed):
            inside = any(one in named for one in list(module.modules())[1:])
            if not inside:  # the innermost says it
                why = "it is not read" if module in found.ran else "it did not run on the example"
                told.setdefault((kind, f"looks like attention, but {why}"), []).append(name)
    return [_told(kind, why, list(dict.fromkeys(own))) for (kind, why), own in told.items()]


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _is_covered(name: str, sites: Sequence[Site]) -> bool:
    """Whether a module is a site's, holds one, or lies in one."""
    return _is_within(name, sites) or any(
        _lies_in(site.module_name, name) or (site.unit and _lies_in(name, site.unit))
        for site in sites
        if site.module_name or not name
    )


def _is_within(name: str, sites: Sequence[Site]) -> bool:
    """Whether a module is a site's or lies in one."""
    return any(_lies_in(name, site.module_name) for site in sites if site.module_name or not name)


def _lies_in(inner: str, outer: str) -> bool:
    return not outer or inner == outer or inner.startswith(f"{outer}.")


def _holds(module: nn.Module, others: set[nn.Module]) -> bool:
    return any(one in others for one in module.modules())


def _told(kind: str, why: str, names: Sequence[str]) -> str:
    many = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"not read: {names[0] or 'the model itself'}{many} ({kind}) {why}"


def nothing_found(model: nn.Module, refusals: Sequence[Refusal], record: Record | None = None) -> str:
    """Why a model has no anatomy: its record says that every head was cut, or none is recognised."""
    if record is not None and len(record.removed) == record.anatomy.n_heads:
        return f"all heads of {type(model).__name__} were cut, and none is left to look at"
    names = {module: name for name, module in model.named_modules()}
    reasons = dict.fromkeys(f"{names[one.module] or type(model).__name__}: {one.reason}" for one in refusals)
    if reasons:
        some = "; ".join(list(reasons)[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
        return (
            f"no attention was recognised in {type(model).__name__}, though something looks like it: {some}; if it "
            f"is attention, {_TELL}"
        )
    alike = [
        f"{name} ({type(module).__name__})" for name, module in model.named_modules() if is_called_attention(module)
    ]
    if not alike:
        return (
            f"no attention was found in {type(model).__name__}, and no module's name looks like it; if it has some, "
            f"{_TELL}"
        )
    some = ", ".join(alike[:3]) + (f" and {len(alike) - 3} more" if len(alike) > 3 else "")
    return (
        f"no attention was recognised in {type(model).__name__}, though these modules look like it: {some}. "
        f"Recognised are models that dispatch through transformers' AttentionInterface, and softmax(q·kᵀ)·v as PyTorch "
        f"operations write it; the example needs at least two rows of two tokens. For any other, {_TELL}"
    )
