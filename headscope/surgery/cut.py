"""From a plan to a smaller model: heads physically removed from a copy, which is handed out only once proven exact."""

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from headscope._support.running import unwrapped
from headscope.anatomy import discover
from headscope.anatomy.examples import make_example
from headscope.anatomy.records import record_of
from headscope.anatomy.trials import corner_of
from headscope.anatomy.uncuttable import torn
from headscope.effects.ablation import ablate
from headscope.errors import PlanError, SurgeryError
from headscope.heads import HeadId, Heads
from headscope.plans import Plan, Record
from headscope.sites import Anatomy, Site
from headscope.surgery.by_head import BESIDE, beside_projections
from headscope.surgery.carried import take_record
from headscope.surgery.change import SiteChange
from headscope.surgery.edits import Edit, apply_edits
from headscope.surgery.forwards import copied
from headscope.surgery.search import find_edits
from headscope.surgery.verification import Seen, distance, in_precision, inputs_in, output_of, recording
from headscope.text.batches import Batch
from headscope.text.feeding import Batches, feed, feed_one

__all__ = ["prune"]

_MOST_BATCHES, _TOKENS = 2, 64


def prune(
    model: nn.Module,
    plan: Plan | Heads,
    *,
    batches: Batches | None = None,
    anatomy: Anatomy | None = None,
    example: Any = None,
    tolerance: float = 1e-5,
) -> nn.Module:
    """A smaller copy of a model without some of its heads; the model itself is untouched whatever happens.

    The heads' rows of q, k, v and columns of the output projection are cut out, key heads that no query head reads any
    more go with them, and a layer may lose all its heads. The copy computes what the model computes with these heads
    switched off (`headscope.ablate`, mode "zero"). This is proven on real input before the copy is returned, in float32
    or, where rounding alone exceeds the tolerance, in float64 (either takes a copy of a model with coarser weights).
    Heads keep their original numbers for good, so a pruned model can be pruned again by them.

    Args:
        model: the model to cut from.
        plan: a Plan, or any heads: "L3H7", (3, 7) or HeadId, one by one; {3: [7, 8]}; or a mask (layer, head) with 0
            for the heads that go. Layer -1 is the last.
        batches: real input to prove the cut on: the first rows and tokens of the first two batches. Without it, the
            example.
        anatomy: skips the probe.
        example: arguments of the model's forward, for the probe and for trials; made up for models of transformers.
        tolerance: largest difference allowed between outputs, in their unit.

    Returns:
        The smaller model, on the same device, in the same precision and mode. For a plan without heads: a plain copy.

    Raises:
        PlanError: made for another model; heads that do not exist or are gone; layers that share a module cut apart.
        SurgeryError: heads that cannot be told apart, or a cut that could not be proven exact.
        NumericalError: a layer returns nothing but NaN or infinity.
    """
    model = unwrapped(model)
    first = itertools.islice(feed(model, () if batches is None else batches, again=False), _MOST_BATCHES)
    given: list[Batch] = [corner_of(model, batch, _TOKENS) for batch in first]
    if example is None and given:
        example = given[0]
    example = make_example(model) if example is None else feed_one(model, example)
    anatomy = discover(model, example) if anatomy is None else anatomy
    record = record_of(model)
    plan = Plan.of(plan, anatomy)
    plan.check(anatomy, record)
    changes = _changes(model, plan, anatomy, record, example)
    exact = in_precision(model, torch.float32)
    edits = _edits(exact, plan, anatomy, changes, inputs_in(example, torch.float32), tolerance)
    pruned = _copy(model)
    apply_edits(edits, pruned)
    _verify(model, pruned, plan, anatomy, given or [example], tolerance)
    take_record(pruned, _extended(record, anatomy, plan, edits))
    return pruned


def _changes(model: nn.Module, plan: Plan, anatomy: Anatomy, record: Record | None, example: Batch) -> list[SiteChange]:
    """What goes from each site, checked everywhere before anything is touched."""
    gone = anatomy.find(plan.heads)
    first = {site.layer: site for site in (record.anatomy if record else anatomy).sites}
    changes = []
    for site in anatomy.sites:
        if site.layer in gone:
            _check_cuttable(model, site, example)
            changes.append(SiteChange(site, tuple(sorted(gone[site.layer])), first[site.layer]))
    if why := torn(anatomy, plan.heads):
        raise PlanError(why)
    return changes


def _check_cuttable(model: nn.Module, site: Site, example: Batch) -> None:
    if not site.uncuttable:
        return
    raise SurgeryError(
        f"layer {site.layer} ({site.module_name}): {site.uncuttable}, so a cut would change the heads that stay"
        f"{_beside(model, site, example) if site.biased else ''}; the model was left as it was. "
        + ("headscope.ablate can switch its heads off" if site.apart else "Nothing can be cut or switched off there")
    )


def _beside(model: nn.Module, site: Site, example: Batch) -> str:
    """What a site has for each head beside its projections, in words."""
    with recording(model, {site.unit}) as seen:
        output_of(model, example)
    call = seen.get(site.unit, Seen((), {}, None))
    named = beside_projections(model.get_submodule(site.unit), site.unit, [site], call)
    return f". {BESIDE}: {named}" if named else ""


def _edits(
    model: nn.Module,
    plan: Plan,
    anatomy: Anatomy,
    changes: Sequence[SiteChange],
    example: Batch,
    tolerance: float,
) -> tuple[Edit, ...]:
    units: dict[str, dict[str, SiteChange]] = {}
    for change in changes:
        units.setdefault(change.site.unit, {}).setdefault(change.site.module_name, change)
    emptied = [change.site.module_name for change in changes if change.empties]
    seen = _record(model, plan, anatomy, example, {"", *units, *emptied})
    edits: list[Edit] = []
    for unit, own in units.items():
        # a container whose forward is never called cannot be tried alone
        tried = unit if unit in seen else ""
        seen[tried].check_finite(f"layer {min(change.site.layer for change in own.values())} ({unit})")
        edits.extend(find_edits(model, tried, list(own.values()), seen, tolerance))
    return tuple(edits)


def _record(model: nn.Module, plan: Plan, anatomy: Anatomy, example: Batch, names: set[str]) -> dict[str, Seen]:
    with ablate(model, plan.heads, anatomy=anatomy), recording(model, names) as seen:
        output_of(model, example)
    return dict(seen)


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copied(model)
    except Exception as error:
        raise SurgeryError(f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}") from error


def _verify(
    model: nn.Module, pruned: nn.Module, plan: Plan, anatomy: Anatomy, inputs: Sequence[Batch], tolerance: float
) -> None:
    """Compare whole outputs with those of the model with the heads switched off, and the number of parameters."""
    if not plan.heads:
        return
    before, after = (sum(parameter.numel() for parameter in one.parameters()) for one in (model, pruned))
    if after >= before:
        raise SurgeryError(f"the cut left {after:,} of {before:,} parameters: weights are tied in a way not understood")

    def masking(whole: nn.Module) -> AbstractContextManager[None]:
        return ablate(whole, plan.heads, anatomy=anatomy)

    dtype = torch.float32
    for batch in inputs:
        gap = distance(model, pruned, batch, dtype, masking)
        if gap > tolerance and dtype != torch.float64:
            # deep models with large outputs differ by more than the tolerance by rounding alone: float64 decides
            dtype = torch.float64
            gap = distance(model, pruned, batch, dtype, masking)
        if gap > tolerance:
            raise SurgeryError(_unequal(model, plan, anatomy, gap, tolerance))


def _unequal(model: nn.Module, plan: Plan, anatomy: Anatomy, gap: float, tolerance: float) -> str:
    layers = sorted({head.layer for head in plan.heads})
    sites = [anatomy.site(layer) for layer in layers]
    return (
        f"{type(model).__name__}: outputs of the pruned and of the masked model differ by {gap:.2e} (allowed "
        f"{tolerance:.0e}), though each layer cut ({', '.join(map(str, layers))}) was right on its own; the model was "
        f"left as it was; route: {', '.join(sorted({site.route for site in sites}))}, entangled: "
        f"{', '.join(sorted({part for site in sites for part in site.entangled})) or 'nothing'}"
    )


def _extended(record: Record | None, anatomy: Anatomy, plan: Plan, edits: Sequence[Edit]) -> Record:
    new: tuple[dict[str, Any], ...] = tuple(edit.to_json() for edit in edits)
    if record is None:
        return Record(anatomy, plan.heads, new)
    removed: tuple[HeadId, ...] = tuple(sorted({*record.removed, *plan.heads}))
    return Record(record.anatomy, removed, (*record.edits, *new))
