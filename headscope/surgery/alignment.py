"""Heads that a model's settings call by number: Whisper reads when words are spoken off the maps of some of them."""

from collections.abc import Sequence

from torch import nn

from headscope.anatomy.left import LEFT
from headscope.errors import PlanError
from headscope.heads import HeadId
from headscope.plans import Record
from headscope.sites import Anatomy, Site

__all__ = ["check_alignment", "renumber_alignment"]

_NAMED = "alignment_heads"


def check_alignment(model: nn.Module, anatomy: Anatomy, record: Record | None, gone: Sequence[HeadId]) -> None:
    """Refuse a plan by which a head goes that the model's settings call for.

    Args:
        model: as it is before the cut.
        anatomy: its sites.
        record: what was cut before.
        gone: the heads that are to go.

    Raises:
        PlanError: such a head is among them.
    """
    for _, head in _named(model, anatomy, record):
        if head in gone:
            raise PlanError(
                f"{head} is one of generation_config.alignment_heads: times of words are read off its map; take it out "
                "of the plan, or, if no times are wanted, set model.generation_config.alignment_heads = None first"
            )


def renumber_alignment(
    model: nn.Module, pruned: nn.Module, anatomy: Anatomy, record: Record | None, gone: Sequence[HeadId]
) -> None:
    """Let a cut model's settings call the same heads by the places that they have now.

    Args:
        model, anatomy, record, gone: as in `check_alignment`.
        pruned: the cut copy; changed in place.
    """
    named = _named(model, anatomy, record)
    if named:
        removed = {*(record.removed if record else ()), *gone}
        cross = _cross(anatomy, record)
        now = [[layer, _shown(pruned, cross[layer], removed).index(head)] for layer, head in named]
        setattr(pruned.generation_config, _NAMED, now)


def _named(model: nn.Module, anatomy: Anatomy, record: Record | None) -> list[tuple[int, HeadId]]:
    """The heads that are called for, each with the number of its layer among those that look at the encoder."""
    pairs = getattr(getattr(model, "generation_config", None), _NAMED, None) or ()
    cross, removed = _cross(anatomy, record), set(record.removed if record else ())
    found = []
    for layer, place in pairs:
        shown = _shown(model, cross[layer], removed) if 0 <= layer < len(cross) else []
        if not 0 <= place < len(shown):
            return []  # it calls for heads that are not there
        found.append((layer, shown[place]))
    return found


def _cross(anatomy: Anatomy, record: Record | None) -> list[Site]:
    return [site for site in (record.anatomy if record else anatomy).sites if site.kind == "cross"]


def _shown(model: nn.Module, site: Site, removed: set[HeadId]) -> list[HeadId]:
    """The heads of which a layer returns maps, in order: zeros stand for those that are gone, or nothing does."""
    framed = LEFT in vars(model.get_submodule(site.module_name))
    return [head for head in site.heads if framed or head not in removed]
