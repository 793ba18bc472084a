"""Whether an anatomy is that of a model: heads by another model's numbers would be taken for this one's."""

from typing import Any

from torch import nn

from headscope._support.running import unwrapped
from headscope.anatomy.discovery import discover
from headscope.anatomy.records import record_of
from headscope.errors import AnatomyError
from headscope.plans import Record
from headscope.sites import Anatomy, Site

__all__ = ["AGAIN", "anatomy_of"]

AGAIN = "call headscope.discover on this model, or leave anatomy= out"
"""What to do about an anatomy that is not the model's."""


def anatomy_of(model: nn.Module, example: Any = None, anatomy: Anatomy | None = None) -> Anatomy:
    """The anatomy that is given, where it may be the model's; else what `discover` finds.

    That each layer has as many heads as it says is seen where the model runs and is watched.

    Args:
        model: the model.
        example: for `discover`.
        anatomy: of the model as it is now.

    Raises:
        AnatomyError: it is of another model, or of this one before a cut.
    """
    if anatomy is None:
        return discover(model, example)
    inner = unwrapped(model)
    modules, record = dict(inner.named_modules()), record_of(inner)
    for site in anatomy.sites:
        parts = (*site.query, *site.key, *site.value, *((site.output,) if site.output else ()))
        lost = next(
            (name for name in (site.module_name, *(part.module for part in parts)) if name not in modules), None
        )
        if lost is not None:
            raise AnatomyError(
                f"anatomy= is of a {anatomy.model_class} with a module {lost}, and this {type(inner).__name__} has "
                f"none; {AGAIN}"
            )
        _check_numbers(site, record)
    return anatomy


def _check_numbers(site: Site, record: Record | None) -> None:
    """Heads that a site has in an anatomy, against those that are left there."""
    before = () if record is None else record.anatomy.sites
    cut = next((own for own in before if (own.layer, own.module_name) == (site.layer, site.module_name)), None)
    place = f"layer {site.layer} ({site.module_name})"
    theirs = ", ".join(map(str, site.head_ids))
    if record is None or cut is None:
        if site.head_ids != tuple(range(site.n_heads)):
            raise AnatomyError(
                f"anatomy= is of a model from which heads were cut: in it {place} has heads {theirs}; from this one "
                f"none were; {AGAIN}"
            )
        return
    left = tuple(head.head for head in cut.heads if head not in record.removed)
    if site.head_ids != left:
        here = f"has heads {', '.join(map(str, left))}" if left else "has no heads left"
        raise AnatomyError(
            f"anatomy= is of before heads were cut, or of another cut: in it {place} has heads {theirs}, and here it "
            f"{here}; {AGAIN}"
        )
