"""An example made up for a model of transformers: text, pictures, sound and more, as much as the model perceives."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from headscope._support.objects import OWN_BATCHES
from headscope._support.running import arguments, is_two_sided, spelled_inputs
from headscope.anatomy.examples.arguments import is_of_text_alone, selections
from headscope.anatomy.examples.drafts import Draft, Maker
from headscope.anatomy.examples.facts import Facts, placeholders
from headscope.anatomy.examples.fitting import Fitted, fit
from headscope.anatomy.examples.widening import widened
from headscope.errors import AnatomyError

__all__ = ["make_example"]


def make_example(model: nn.Module, *, tried: bool = False) -> dict[str, Tensor]:
    """Two rows of seeded random numbers for a model of transformers, as much as it perceives.

    A model of text alone gets tokens, and is not run. Another one is run on at most 30 drafts, without gradients and in
    evaluation mode, until one suits it, and is bit-identical afterwards: where it reads text and pictures, or sound,
    the example has both, so that every tower runs. Where attention is left that does not run on that, as many drafts
    more are tried with what the forward takes besides.

    Args:
        model: a model of transformers.
        tried: whether a model of text alone is run too, for it may want more than tokens.

    Raises:
        AnatomyError: the model does not say what it takes, or runs on nothing that was tried; the message tells to
            pass `example=`.
    """
    name, config = getattr(model, "main_input_name", None), getattr(model, "config", None)
    if name is None or config is None:
        raise AnatomyError(
            f"{type(model).__name__} does not say what it takes",
            python="pass example= (or batches=, or anatomy= from discover with an example): a dict of tensors, as its "
            f"forward takes them, {spelled_inputs(model)}, with two rows and a few tokens",
            shell=f"{OWN_BATCHES}, dicts like {spelled_inputs(model)}",
        )
    facts = Facts(config)
    maker = Maker(facts, arguments(model), placeholders(model), _dtype_of(model))
    todo = [*selections(model)]
    if is_of_text_alone(model, facts):
        tokens = ("input_ids", "attention_mask", *(["decoder_input_ids"] if is_two_sided(model) else []))
        if not tried:
            return maker.make(Draft(tokens))
        todo = [tokens, *(names for names in todo if {*names} != {*tokens})]
    found = fit(model, todo, maker, facts)
    if found.example is not None:
        found = widened(model, found, maker, facts)
    if found.example is None:
        refused = AnatomyError(
            f"{type(model).__name__} takes {name!r}, which cannot be made up: {_told(found)}",
            python=f"pass example= (or batches=): a dict like {spelled_inputs(model)}, as its processor makes it",
            shell=f"{OWN_BATCHES}, dicts like {spelled_inputs(model)}",
        )
        for other in found.others:
            refused.add_note(f"with less, the model said at best: {other}")
        raise refused
    return found.example


def _told(found: Fitted) -> str:
    """What was tried, and what the model said."""
    if not found.tried:
        return "it has no forward pass of its own that names what it reads; its parts may"
    return f"it was run {found.tries} times on {_listed(found.tried[0])} or less, and said at best: {found.complaint}"


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _dtype_of(model: nn.Module) -> torch.dtype:
    """What a model takes numbers in: half, if that is what its weights are in."""
    first = next((one.dtype for one in model.parameters() if one.is_floating_point()), torch.float32)
    return first if first in (torch.float16, torch.bfloat16, torch.float64) else torch.float32
