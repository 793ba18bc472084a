"""An untrained copy: the same model before it learnt anything, its weights drawn by its own initialisation."""

import copy
from typing import Any

import torch
from torch import nn

from headscope._support.running import unwrapped
from headscope.errors import ModelError, UnknownNameError

__all__ = ["UNTRAINED", "check_null", "drawn_by", "untrained_copy"]

UNTRAINED = "untrained"
"""What `null=` is called for an untrained copy of the model."""

_DRAWS = ("reset_parameters", "_reset_parameters")  # as torch's own modules call it
_WHOLE, _RULE = "initialize_weights", "_init_weights"  # as transformers' models call it, and many that are hand-written


def check_null(null: str) -> None:
    """Refuse what no null is called.

    Raises:
        UnknownNameError: it is neither "" nor "untrained".
    """
    if null not in ("", UNTRAINED):
        raise UnknownNameError(
            f"there is no null {null!r} to ask for; {UNTRAINED!r} is an untrained copy of the model. Chance, and "
            "random tokens for maps, stand beside numbers unasked"
        )


def untrained_copy(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy of a model with the same configuration and weights that were never trained.

    Weights are drawn as the library or the model draws them: those of a transformers model, also one that lies inside
    another, by its `initialize_weights`; all others by `reset_parameters` of each module and then by the
    `_init_weights(module)` of the model that they are part of, where it has one. All of them are made NaN before, so
    that none can stay as it was. See `drawn_by` for what that leaves out.

    Args:
        model: left as it was.
        seed: of the draw; the generators of torch are left as they were.

    Raises:
        ModelError: a parameter lies in no module that knows how to draw it; or there are adapters.
    """
    whole = unwrapped(model)
    if hasattr(whole, "peft_config"):
        raise ModelError(
            f"{type(whole).__name__} carries adapters, whose weights before training are those of another model; "
            "merge them first (merge_and_unload)"
        )
    _check_drawable(whole)
    made = copy.deepcopy(whole)
    devices = sorted({own.device for own in made.parameters() if own.device.type == "cuda"}, key=str)
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for parameter in made.parameters():
            parameter.fill_(torch.nan)
        _draw(made)
    left = [name for name, own in made.named_parameters() if bool(torch.isnan(own).any())]
    if left:
        raise ModelError(
            f"there is no untrained copy of {type(whole).__name__}: {_places(whole, left)}, which does not know how to "
            "draw it",
            python="give that module a method reset_parameters(), or the model a method _init_weights(module)",
            shell="give that module a method reset_parameters(), or leave --null untrained out",
        )
    return made.eval()


def _check_drawable(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.is_meta:
            what = "on no device yet" if parameter.is_meta else f"of {parameter.dtype}".replace("torch.", "")
            raise ModelError(
                f"there is no untrained copy of {type(model).__name__}: {name} is {what}, and no initialisation draws "
                "such weights; load the model whole, in a floating dtype"
            )


def drawn_by(model: nn.Module) -> str:
    """What draws the weights of an untrained copy, for a table's facts.

    A constructor cannot be run again: what it draws or scales beside its modules' own initialisation is not repeated.

    Args:
        model: which `untrained_copy` would copy.

    >>> drawn_by(nn.Linear(2, 2))
    'reset_parameters of each module; what constructors draw or scale beside it is not repeated'
    """
    whole = unwrapped(model)
    libraries, rules = _outermost(whole, _WHOLE), _outermost(whole, _RULE)
    if libraries == [whole]:
        return f"{type(whole).__name__}.{_WHOLE}"
    inside = _parts(libraries)
    named = [f"{type(one).__name__}.{_WHOLE}" for one in libraries]
    if any(id(one) not in inside and any(True for _ in one.parameters(recurse=False)) for one in whole.modules()):
        named.append("reset_parameters of each module")
    named += [f"{type(one).__name__}.{_RULE}" for one in rules if id(one) not in inside]
    return f"{', '.join(dict.fromkeys(named))}; what constructors draw or scale beside it is not repeated"


def _draw(model: nn.Module) -> None:
    """Draw every weight that a module knows how to draw."""
    for part in [*model.modules(), *model.parameters(), *model.buffers()]:
        part.__dict__.pop("_is_hf_initialized", None)  # what was loaded from a file would be left as it is
    libraries = _outermost(model, _WHOLE)
    inside = _parts(libraries)
    for one in libraries:
        getattr(one, _WHOLE)()
    for module in reversed([*model.modules()]):  # parts before what they are parts of, as constructors do
        if id(module) not in inside or _has_undrawn(module):
            for name in _DRAWS:
                if callable(draw := getattr(module, name, None)):
                    _tried(draw)
    for one in _outermost(model, _RULE):
        if id(one) not in inside:
            one.apply(getattr(one, _RULE))


def _outermost(model: nn.Module, name: str) -> list[nn.Module]:
    """Modules with a method of that name that lie in no other such module."""
    if callable(getattr(model, name, None)):
        return [model]
    return [one for child in model.children() for one in _outermost(child, name)]


def _parts(models: list[nn.Module]) -> set[int]:
    return {id(part) for one in models for part in one.modules()}


def _has_undrawn(module: nn.Module) -> bool:
    return any(bool(torch.isnan(own).any()) for own in module.parameters(recurse=False))


def _tried(draw: Any) -> None:
    try:
        draw()
    except TypeError:  # it takes arguments of its own: what it would have drawn stays NaN, and is told
        return


def _places(model: nn.Module, names: list[str]) -> str:
    name = names[0]
    owner = name.rpartition(".")[0]
    inside = f"{type(model.get_submodule(owner)).__name__} ({owner or 'the model itself'})"
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"the parameter {name}{more} lies in {inside}"
