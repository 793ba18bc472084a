"""What enters an output projection: looked at, or replaced, whether a module reads it or an operation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from headscope._support.around import around
from headscope.anatomy.features import feature_axis
from headscope.anatomy.picking import entering_operation
from headscope.anatomy.route import claiming, is_claimed
from headscope.anatomy.spelling import Spelling
from headscope.sites import Site

__all__ = ["Change", "at_output"]

Change = Callable[[Tensor, tuple[int, ...]], Tensor | None]
"""Given what enters and its axes of features, tells what is to enter instead, or None."""


@contextmanager
def at_output(model: nn.Module, site: Site, change: Change, *, first: bool = False) -> Iterator[None]:
    """While open, what enters a site's output projection on this thread goes through `change`.

    Args:
        model: the model.
        site: with an output projection.
        change: called each time that the projection is reached, by whatever site.
        first: ahead of all others there, whichever was opened first.
    """
    assert site.output is not None
    if site.reads_by_operation:
        assert site.spelling is not None
        spelling = Spelling.from_json(site.spelling)
        module = model.get_submodule(site.module_name)
        with entering_operation(model, module, spelling, change, first=first):
            yield
        return
    projection = model.get_submodule(site.output.module)

    def before(args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if is_claimed() or not args:
            return None
        with claiming():  # what is done here is no operation of the model
            other = change(args[0], (feature_axis(projection, args[0]),))
        return None if other is None else (other, *args[1:])

    with around(projection, before, first=first):
        yield
