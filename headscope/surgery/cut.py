"""From a plan to a smaller model: heads physically removed from a copy, which is handed out only once proven exact."""

import functools
import itertools
import math
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from headscope._support.running import unwrapped
from headscope.anatomy import anatomy_of
from headscope.anatomy.examples import make_example
from headscope.anatomy.records import record_of
from headscope.anatomy.trials import corner_of
from headscope.anatomy.uncuttable import torn
from headscope.effects.ablation import silence
from headscope.errors import InputError, ModelError, PlanError, SurgeryError
from headscope.heads import HeadId, Heads
from headscope.plans import Plan, Record
from headscope.sites import Anatomy, Site
from headscope.surgery.alignment import check_alignment, renumber_alignment
from headscope.surgery.carried import take_record
from headscope.surgery.change import SiteChange, site_within
from headscope.surgery.edits.base import Edit, apply_edits, shared_names, untied
from headscope.surgery.forwards import copied
from headscope.surgery.search import WAYS, find_edits, runs_alone
from headscope.surgery.structure import heads_shown
from headscope.surgery.verification import Seen, distance, in_precision, inputs_in, output_of, recording
from headscope.text.batches import Batch
from headscope.text.feeding import Batches, feed, feed_one
from headscope.watching.hooks import counted

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
        InputError: a tolerance that is none.
        PlanError: made for another model; heads that do not exist or are gone; layers that share a module cut apart; a
            head that the model's settings call for (Whisper's `alignment_heads`; those that stay are renumbered).
        SurgeryError: heads that cannot be told apart, or a cut that could not be proven exact.
        NumericalError: a layer returns nothing but NaN or infinity.
    """
    tolerance, model = _allowed(tolerance), unwrapped(model)
    first = itertools.islice(feed(model, () if batches is None else batches, again=False), _MOST_BATCHES)
    given: list[Batch] = [corner_of(model, batch, _TOKENS) for batch in first]
    if example is None and given:
        example = given[0]
    example = make_example(model) if example is None else feed_one(model, example)
    known, anatomy = anatomy is not None, anatomy_of(model, example, anatomy)
    record = record_of(model)
    plan = Plan.of(plan, anatomy)
    plan.check(anatomy, record)
    changes = _sparing(model, _changes(plan, anatomy, record))
    check_alignment(model, anatomy, record, plan.heads)
    if known:
        with counted(model, [change.site for change in changes]):
            output_of(model, example)
    pruned, edits = _proven(model, plan, anatomy, changes, _Inputs(example, given or [example], tolerance))
    renumber_alignment(model, pruned, anatomy, record, plan.heads)
    take_record(pruned, _extended(record, anatomy, plan, edits))
    return pruned


def _allowed(tolerance: Any) -> float:
    try:
        number = math.nan if isinstance(tolerance, str) else float(tolerance)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise InputError(f"tolerance is the largest difference allowed, a number from 0 on; it was {tolerance!r}")
    return number


@dataclass(frozen=True)
class _Inputs:
    """What a cut is tried on, then proven on, and how exact it has to be."""

    example: Batch
    given: Sequence[Batch]
    tolerance: float


def _proven(
    model: nn.Module, plan: Plan, anatomy: Anatomy, changes: Sequence[SiteChange], inputs: _Inputs
) -> tuple[nn.Module, tuple[Edit, ...]]:
    """A cut copy that is right as a whole, and its edits: what units hand on to each other the whole alone can see."""
    exact = in_precision(model, torch.float32)
    tried: list[tuple[Edit, ...]] = []
    first: SurgeryError | None = None
    for way in WAYS:
        try:
            edits = _edits(exact, plan, anatomy, changes, inputs, way)
            if edits not in tried:
                tried.append(edits)
                return _made(model, plan, anatomy, edits, inputs), edits
        except SurgeryError as error:
            first = first or error
            if not tried:  # a unit that cannot be cut
                break
    assert first is not None
    raise first


def _made(model: nn.Module, plan: Plan, anatomy: Anatomy, edits: Sequence[Edit], inputs: _Inputs) -> nn.Module:
    """A copy with these edits, proven."""
    pruned = _copy(model)
    apply_edits(edits, pruned)
    _forget(pruned, model)
    if apart := untied(model, pruned):
        raise SurgeryError(
            torn(anatomy, plan.heads, model)
            or f"{' and '.join(apart[0])} are one parameter, and a cut would make several of it, which training moves "
            "apart; take the same heads from all layers that share it, or from none"
        )
    _verify(model, pruned, plan, anatomy, inputs, heads_shown(edits))
    return pruned


def _forget(pruned: nn.Module, model: nn.Module) -> None:
    """Let modules forget what they made by head to evaluate, as those of timm do when they are set to train."""
    pruned.train()
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in pruned.named_modules():
        module.training = modes.get(name, model.training)


def _changes(plan: Plan, anatomy: Anatomy, record: Record | None) -> list[SiteChange]:
    """What goes from each site, checked everywhere before anything is touched."""
    gone = anatomy.find(plan.heads)
    first = {site.layer: site for site in (record.anatomy if record else anatomy).sites}
    changes = []
    for site in anatomy.sites:
        if site.layer in gone:
            _check_cuttable(site)
            own = tuple(sorted(gone[site.layer]))
            changes.append(SiteChange(site, own, first.get(site.layer, site), _held(site, anatomy, gone)))
    if why := torn(anatomy, plan.heads):
        raise PlanError(why)
    return changes


def _sparing(model: nn.Module, changes: Sequence[SiteChange]) -> list[SiteChange]:
    """The same, with layers of q, k and v left whole of which something that is not cut holds the weight too (tied)."""
    makers = {change: {"q": change.site.query, "k": change.site.key, "v": change.site.value} for change in changes}
    names = {
        part: f"{part.module}.{part.parameter}".lstrip(".")
        for own in makers.values()
        for parts in own.values()
        for part in parts
    }
    cut = {*names.values()}
    tied = {name for group in shared_names(model) if not cut.issuperset(group) for name in group}
    return [
        replace(one, spared=tuple(kind for kind, parts in own.items() if any(names[part] in tied for part in parts)))
        for one, own in makers.items()
    ]


def _held(site: Site, anatomy: Anatomy, gone: Mapping[int, Sequence[int]]) -> frozenset[int]:
    """Key heads of a site that others, which read what the same layers make, go on reading.

    All of them where another numbers them in its own way, as it does once it was cut to read some of them: it would
    look for them in the wrong places.
    """
    own = {part.name: part.heads for part in (*site.key, *site.value)}
    held: set[int] = set()
    for other in anatomy.sites:
        theirs = {part.name: part.heads for part in (*other.key, *other.value)}
        left = [head for head in range(other.n_heads) if head not in gone.get(other.layer, ())]
        if other.layer == site.layer or not own.keys() & theirs.keys() or not left:
            continue
        if any(own[name] != theirs[name] for name in own.keys() & theirs.keys()):
            return frozenset(range(site.n_kv_heads))
        held |= {other.kv_of_query[head] for head in left}
    return frozenset(held)


def _check_cuttable(site: Site) -> None:
    if site.uncuttable:
        raise SurgeryError(
            f"layer {site.layer} ({site.module_name}): {site.uncuttable}, so a cut would change the heads that stay; "
            "the model was left as it was. "
            + (
                "headscope.ablate can switch its heads off"
                if site.apart
                else "Nothing can be cut or switched off there"
            )
        )


def _edits(
    model: nn.Module, plan: Plan, anatomy: Anatomy, changes: Sequence[SiteChange], inputs: _Inputs, way: str
) -> tuple[Edit, ...]:
    example = inputs_in(inputs.example, torch.float32)
    units = _units(changes)
    modules = [change.site.module_name for change in changes]
    seen = _record(model, plan.heads, anatomy, example, {"", *units, *modules})
    edits: list[Edit] = []
    for unit, own in units.items():
        # a container whose forward is never called cannot be tried alone, nor one that the model sets up as it runs
        alone = unit in seen and runs_alone(model.get_submodule(unit), seen[unit])
        tried, known = unit if alone else "", seen
        places = {change.site.module_name for change in own}
        heads = [head for head in plan.heads if anatomy.site(head.layer).module_name in places]
        if not alone and len(units) > 1:  # the whole model is tried, in which the other units are whole
            known = _record(model, heads, anatomy, example, {"", *units, *modules})
        known[tried].check_finite(f"layer {min(change.site.layer for change in own)} ({unit})")
        masking = functools.partial(_masked, heads=heads, anatomy=_anatomy_within(anatomy, tried))
        edits.extend(find_edits(model, tried, own, known, inputs.tolerance, masking, way))
    return tuple(edits)


def _masked(unit: nn.Module, heads: Sequence[HeadId], anatomy: Anatomy) -> AbstractContextManager[None]:
    return silence(unit, anatomy, anatomy.find(heads))


def _anatomy_within(anatomy: Anatomy, unit: str) -> Anatomy:
    """The sites in a unit, with names as seen from there."""

    def inside(module: str) -> bool:
        return not unit or f"{module}.".startswith(f"{unit}.")

    own = (one for one in anatomy.sites if one.output is not None and inside(one.module_name))
    return replace(anatomy, sites=tuple(site_within(one, unit) for one in own if inside(one.output.module)))  # type: ignore[union-attr]


def _units(changes: Sequence[SiteChange]) -> dict[str, list[SiteChange]]:
    """What goes, by the modules that are tried alone; those that hold others hold what goes there."""
    names = {change.unit for change in changes}
    outer = {name: min((o for o in names if not o or f"{name}.".startswith(f"{o}.")), key=len) for name in names}
    units: dict[str, dict[Hashable, SiteChange]] = {}
    for change in changes:
        site, own = change.site, units.setdefault(outer[change.unit], {})
        weights = (site.module_name, site.query, site.key, site.value, site.output)
        first = own.setdefault(weights, change)  # what runs again with the same weights is cut once
        if change.first.attention not in (first.first.attention, *first.alike):
            own[weights] = replace(first, alike=(*first.alike, change.first.attention))
    return {unit: list(own.values()) for unit, own in units.items()}


def _record(
    model: nn.Module, heads: Sequence[HeadId], anatomy: Anatomy, example: Batch, names: set[str]
) -> dict[str, Seen]:
    with _masked(model, heads, anatomy), recording(model, names) as seen:
        output_of(model, example)
    return dict(seen)


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copied(model)
    except Exception as error:
        raise SurgeryError(f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}") from error


def _verify(
    model: nn.Module, pruned: nn.Module, plan: Plan, anatomy: Anatomy, inputs: _Inputs, heads: Collection[int]
) -> None:
    """Compare whole outputs with those of the model with the heads switched off, and the number of parameters."""
    if not plan.heads:
        return
    before, after = (sum(parameter.numel() for parameter in one.parameters()) for one in (model, pruned))
    if after >= before:
        raise SurgeryError(
            torn(anatomy, plan.heads, model)
            or f"the cut left {after:,} of {before:,} parameters: modules that hold the same weights (tied) lose the "
            "same heads or none"
        )

    masking = functools.partial(_masked, heads=plan.heads, anatomy=anatomy)
    apart = functools.partial(distance, model, pruned, masking=masking, heads=heads)
    dtype, tolerance = torch.float32, inputs.tolerance
    for batch in (*inputs.given, *_alone(model, inputs.given[:1])):
        gap = apart(batch, dtype)
        if gap > tolerance and dtype != torch.float64:
            # deep models with large outputs differ by more than the tolerance by rounding alone: float64 decides
            dtype = torch.float64
            try:
                gap = apart(batch, dtype)
            except ModelError:  # it makes float32 by itself: what float32 rounds is told by its outputs' size
                dtype = torch.float32
                gap = apart(batch, dtype, relative=True)
        if gap > tolerance:
            raise SurgeryError(_unequal(model, plan, anatomy, gap, tolerance))


def _alone(model: nn.Module, given: Sequence[Batch]) -> Iterator[Batch]:
    """The first row by itself, or a row that is alone beside another, where the model runs on that: what was right for
    one number of rows may not be for two.
    """
    for batch in given:
        rows = {value.shape[0] for value in batch.values() if isinstance(value, Tensor) and value.ndim}
        change = _with_another if rows == {1} else _first
        if len(rows) == 1:
            other = {n: change(own) if isinstance(own, Tensor) and own.ndim else own for n, own in batch.items()}
            try:
                output_of(model, other)
            except ModelError:
                continue
            yield other


def _first(value: Tensor) -> Tensor:
    return value[:1]


def _with_another(value: Tensor) -> Tensor:
    """The row and the same turned by one place."""
    return torch.cat([value, value.roll(1, -1)])


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
