"""Records of cuts: found on a model, or on one inside it, so that a wrapper around a pruned model knows of the cut."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import nn

from headscope._support.running import unwrapped
from headscope.heads import HeadId
from headscope.plans import Record
from headscope.sites import Anatomy, Site, Slices

__all__ = ["leave_record", "record_of", "record_within", "seen_from_above"]

_NAME = "_headscope"


def record_of(model: nn.Module) -> Record | None:
    """What was cut from a model before, or from a model inside it, with names as seen from here; None if it is whole.

    Args:
        model: whole or pruned, or a wrapper around one or several pruned ones.
    """
    records = [seen_from_above(record, name) for name, record in _records(unwrapped(model))]
    if not records:
        return None
    first, *others = records
    for other in others:
        beyond = 1 + max(site.layer for site in first.anatomy.sites)
        first = _joined(first, _further(other, beyond))
    return first


def leave_record(model: nn.Module, record: Record) -> None:
    """Put the one record of a model on it; those of models inside it are part of that now.

    Args:
        model: the pruned model.
        record: of all its cuts.
    """
    for module in model.modules():
        module.__dict__.pop(_NAME, None)
    model.__dict__[_NAME] = record


def _records(model: nn.Module) -> Iterator[tuple[str, Record]]:
    for name, module in model.named_modules():
        record = module.__dict__.get(_NAME)
        if isinstance(record, Record):
            yield name, record


def seen_from_above(record: Record, name: str) -> Record:
    """A record of a model inside another one, with the names that its modules have there.

    Args:
        record: of the model inside.
        name: its dotted name in the other; "" for the same model.
    """
    return _renamed(record, lambda inner: ".".join(part for part in (name, inner) if part))


def record_within(record: Record, name: str) -> Record:
    """What a record says of one model inside: names as that one has them, layers counted from 0.

    Args:
        record: of the model around it.
        name: dotted name of the model inside; "" for the same model.
    """
    if not name:
        return record

    def inside(module: str) -> bool:
        return f"{module}.".startswith(f"{name}.")

    sites = [site for site in record.anatomy.sites if inside(site.module_name) and inside(site.unit)]
    layers = {site.layer: number for number, site in enumerate(sites)}
    own = tuple(
        replace(
            site,
            layer=layers[site.layer],
            shares_module_with=tuple(layers[other] for other in site.shares_module_with if other in layers),
        )
        for site in sites
    )
    # it is another model than the one around it, whose plans count layers otherwise
    anatomy = replace(record.anatomy, sites=own, fingerprint=f"{record.anatomy.fingerprint}/{name}")
    removed = tuple(HeadId(layers[head.layer], head.head) for head in record.removed if head.layer in layers)
    edits = tuple(edit for edit in record.edits if inside(edit["module"]))
    return _renamed(Record(anatomy, removed, edits), lambda module: module[len(name) + 1 :])


def _renamed(record: Record, name: Callable[[str], str]) -> Record:
    def moved(part: Slices) -> Slices:
        return replace(part, module=name(part.module))

    def site(own: Site) -> Site:
        return replace(
            own,
            module_name=name(own.module_name),
            unit=name(own.unit),
            query=tuple(map(moved, own.query)),
            key=tuple(map(moved, own.key)),
            value=tuple(map(moved, own.value)),
            output=None if own.output is None else moved(own.output),
        )

    edits = tuple({**edit, "module": name(edit["module"])} for edit in record.edits)
    return Record(replace(record.anatomy, sites=tuple(map(site, record.anatomy.sites))), record.removed, edits)


def _further(record: Record, by: int) -> Record:
    """A record whose layers are counted on."""
    sites = tuple(
        replace(site, layer=site.layer + by, shares_module_with=tuple(n + by for n in site.shares_module_with))
        for site in record.anatomy.sites
    )
    removed = tuple(HeadId(head.layer + by, head.head) for head in record.removed)
    return Record(replace(record.anatomy, sites=sites), removed, record.edits)


def _joined(one: Record, other: Record) -> Record:
    anatomy: Anatomy = replace(one.anatomy, sites=(*one.anatomy.sites, *other.anatomy.sites))
    return Record(anatomy, (*one.removed, *other.removed), (*one.edits, *other.edits))
