"""Widening an example: where parts called attention did not run, what the forward takes besides is given to it too.

What was added stays where the model runs with it and more of these parts run: a tower that reads sound, or the cross
attention of a decoder, that an example without it leaves idle.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from inspect import Parameter

import torch
from torch import Tensor, nn

from headscope._support.running import arguments, in_python
from headscope.anatomy.called import is_called_attention
from headscope.anatomy.examples.arguments import added
from headscope.anatomy.examples.drafts import Draft, Maker, kind_of
from headscope.anatomy.examples.facts import Facts
from headscope.anatomy.examples.fitting import Fitted, fit_one, try_once
from headscope.anatomy.examples.repairs import silent, with_a_few
from headscope.anatomy.examples.values import size_of

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
    return _placed(model, replace(found, tries=found.tries + _MOST_TRIES - left), maker, facts)


def _placed(model: nn.Module, found: Fitted, maker: Maker, facts: Facts) -> Fitted:
    """What was found, with places in the text for pictures and sounds that are not read without: some models do not
    count these.
    """
    draft = found.draft
    unread = [kind for kind in silent(draft, facts) if not _is_heard(model, found, kind)] if draft is not None else []
    patches, moments = size_of("grid", facts), [size_of("long", facts) // 2**times for times in range(1, 6)]
    counts = {"audio": moments, "image": (patches, patches // size_of("merge", facts) ** 2)}
    for kind, count in [(one, count) for one in unread for count in (*counts.get(one, ()), 2)]:
        # too many are complained of, too few are not
        if draft is None or kind in draft.pieces:
            continue
        tried = fit_one(model, draft.standing(kind, count), maker, facts, 1)
        found = replace(found, tries=found.tries + 1)
        if tried.example is not None and _is_heard(model, tried, kind):
            found, draft = replace(tried, tries=found.tries, tried=found.tried), tried.draft
    return found


def _is_heard(model: nn.Module, found: Fitted, kind: str) -> bool:
    """Whether what comes out depends on what is given of a kind."""
    assert found.example is not None
    other = {
        name: value.flip(-1) if kind_of(name) == kind and isinstance(value, Tensor) else value
        for name, value in found.example.items()
    }
    given = try_once(model, other).given
    return any(not torch.equal(one, before) for one, before in zip(given, found.given, strict=False))


def _further(draft: Draft, takes: Mapping[str, Parameter], facts: Facts) -> Iterator[Draft]:
    """Drafts with more than one that runs: places in the text for what is given, then what is not given yet."""
    yield from with_a_few(draft, facts)
    yield from (draft.having(*names) for names in added(draft.names, takes))
