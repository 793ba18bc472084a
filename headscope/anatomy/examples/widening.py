"""Widening an example: where parts called attention did not run, what the forward takes besides is given to it too.

What was added stays where the model runs with it and more of these parts run: a tower that reads sound, or the cross
attention of a decoder, that an example without it leaves idle.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from inspect import Parameter

from torch import nn

from headscope._support.running import arguments, in_python
from headscope.anatomy.called import is_called_attention
from headscope.anatomy.examples.arguments import added
from headscope.anatomy.examples.drafts import Draft, Maker
from headscope.anatomy.examples.facts import Facts
from headscope.anatomy.examples.fitting import Fitted, fit_one
from headscope.anatomy.examples.repairs import with_a_few

__all__ = ["widened"]

_MOST_TRIES, _MOST_EACH = 30, 12


def widened(model: nn.Module, found: Fitted, maker: Maker, facts: Facts) -> Fitted:
    """What was found, with further arguments that let more of the model run; the same where all of it runs.

    Args:
        model: it is left as it was.
        found: an example that it runs on, and what it was made from.
        maker: makes examples of drafts.
        facts: of the model's configs.
    """
    own = {one for one in in_python(model) if is_called_attention(one) and next(one.parameters(), None) is not None}
    left, refused = _MOST_TRIES, set()
    while found.draft is not None and own - found.ran and left > 0:
        further = next(
            (one for one in _further(found.draft, arguments(model), facts) if one.key() not in refused), None
        )
        if further is None:
            break
        refused.add(further.key())
        tried = fit_one(model, further, maker, facts, min(left, _MOST_EACH))
        left -= tried.tries
        if tried.example is not None and own & tried.ran > own & found.ran:
            found = replace(tried, tries=found.tries, tried=found.tried)
    return replace(found, tries=found.tries + _MOST_TRIES - left)


def _further(draft: Draft, takes: Mapping[str, Parameter], facts: Facts) -> Iterator[Draft]:
    """Drafts with more than one that runs: places in the text for what is given, then what is not given yet."""
    yield from with_a_few(draft, facts)
    yield from (draft.having(*names) for names in added(draft.names, takes))
