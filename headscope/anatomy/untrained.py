"""An untrained copy: the same model before it learnt anything, its weights drawn by its own initialisation."""

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from headscope._support.running import unwrapped
from headscope.errors import ModelError, UnknownNameError
from headscope.sites import Anatomy

__all__ = ["UNTRAINED", "check_null", "drawn_by", "untrained_copy"]

UNTRAINED = "untrained"
"""What `null=` is called for an untrained copy of the model."""

_DRAWS = ("reset_parameters", "_reset_parameters")  # as torch's own modules call it
_LOOKS = 15  # at a new weight, until a spectral norm has found its direction; torch's constructor takes as many
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


def untrained_copy(model: nn.Module, seed: int = 0, anatomy: Anatomy | None = None) -> nn.Module:
    """A copy of a model with the same configuration and weights that were never trained.

    Weights are drawn as the library or the model draws them: those of a transformers model, also one that lies inside
    another, by its `initialize_weights`; all others by `reset_parameters` of each module and then by the
    `_init_weights(module)` of the model that they are part of, where it has one. All parameters are made NaN before, so
    that none can stay as it was. See `drawn_by` for what that leaves out.

    Args:
        model: left as it was.
        seed: of the draw; the generators of torch are left as they were.
        anatomy: of heads whose weights have to be drawn anew; None where nobody asks for heads.

    Raises:
        ModelError: a parameter lies in no module that knows how to draw it; a weight is no parameter, as packed ones
            and buffers are not; there are adapters; or the model cannot be copied.
    """
    whole = unwrapped(model)
    if hasattr(whole, "peft_config"):
        raise ModelError(
            f"{type(whole).__name__} carries adapters, whose weights before training are those of another model; "
            "merge them first (merge_and_unload)"
        )
    _check_drawable(whole, anatomy)
    try:
        made = copy.deepcopy(whole).eval()
    except Exception as error:
        raise ModelError(
            f"there is no untrained copy of {type(whole).__name__}, since it cannot be copied ({error})"
        ) from error
    devices = sorted({own.device for own in made.parameters() if own.device.type == "cuda"}, key=str)
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for parameter in made.parameters():
            parameter.fill_(torch.nan)
        _draw(made)
    left = [name for name, own in made.named_parameters() if bool(torch.isnan(own).any())]
    if left:
        mend, other = "give that module a method reset_parameters()", "or the model a method _init_weights(module)"
        if ".parametrizations." in f".{left[0]}":
            mend = "remove the parametrization first (torch.nn.utils.parametrize.remove_parametrizations)"
            other = "or leave null out"
        raise ModelError(
            f"there is no untrained copy of {type(whole).__name__}: {_places(whole, left)}, which does not know how to "
            "draw it",
            python=f"{mend}, {other}",
            shell=f"{mend}, or leave --null untrained out",
        )
    return made


def _check_drawable(model: nn.Module, anatomy: Anatomy | None) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.is_meta:
            what = "on no device yet" if parameter.is_meta else f"of {parameter.dtype}".replace("torch.", "")
            raise _undrawable(model, f"{name} is {what}")
    for name, kept in model.state_dict(keep_vars=True).items():
        if not isinstance(kept, Tensor) or kept.is_quantized:
            raise _undrawable(model, f"{name} holds packed weights")
    for name in () if anatomy is None else _beside_parameters(model, anatomy):
        raise _undrawable(model, f"{name} keeps its weight outside of parameters")


def _undrawable(model: nn.Module, what: str) -> ModelError:
    return ModelError(
        f"there is no untrained copy of {type(model).__name__}: {what}, and no initialisation draws such weights; load "
        "the model whole, in a floating dtype, its weights as parameters"
    )


def _beside_parameters(model: nn.Module, anatomy: Anatomy) -> Iterator[str]:
    """Names of weights of heads that are no parameters; a bias that is one does not make up for it."""
    for site in anatomy.sites:
        for part in (*site.query, *site.key, *site.value, *(() if site.output is None else (site.output,))):
            own = dict(model.get_submodule(part.module).named_parameters())
            beneath = f"parametrizations.{part.parameter}."
            if part.is_module:
                held = any(parameter.ndim > 1 for parameter in own.values())
            else:
                held = any(name == part.parameter or name.startswith(beneath) for name in own)
            if not held:
                yield part.name


def drawn_by(model: nn.Module) -> str:
    """What draws the weights of an untrained copy, for a table's facts.

    A constructor cannot be run again: what it draws or scales beside its modules' own initialisation is not repeated.
    Buffers stay as they are; those that are saved and look like weights are named.

    Args:
        model: which `untrained_copy` would copy.

    >>> drawn_by(nn.Linear(2, 2))
    'reset_parameters of each module; what constructors draw or scale beside it is not repeated'
    """
    whole = unwrapped(model)
    libraries, rules = _outermost(whole, _WHOLE, 0), [*_outermost(whole, _RULE, 1), *_outermost(whole, _RULE, 0)]
    stay = _like_weights(whole)
    kept = f"; {', '.join(stay)} stay{'s' if len(stay) == 1 else ''} as in the model" if stay else ""
    if libraries == [whole]:
        return f"{type(whole).__name__}.{_WHOLE}{kept}"
    inside = _parts(libraries)
    named = [f"{type(one).__name__}.{_WHOLE}" for one in libraries]
    if any(id(one) not in inside and any(True for _ in one.parameters(recurse=False)) for one in whole.modules()):
        named.append("reset_parameters of each module")
    named += [f"{type(one).__name__}.{_RULE}" for one in rules if id(one) not in inside]
    return f"{', '.join(dict.fromkeys(named))}; what constructors draw or scale beside it is not repeated{kept}"


def _like_weights(model: nn.Module) -> list[str]:
    """Saved buffers of two dimensions or more, in a floating dtype."""
    saved = model.state_dict(keep_vars=True)
    return [name for name, own in model.named_buffers() if name in saved and own.is_floating_point() and own.ndim > 1]


def _draw(model: nn.Module) -> None:
    """Draw every weight that a module knows how to draw."""
    for part in [*model.modules(), *model.parameters(), *model.buffers()]:
        part.__dict__.pop("_is_hf_initialized", None)  # what was loaded from a file would be left as it is
    libraries = _outermost(model, _WHOLE, 0)
    inside = _parts(libraries)
    for one in libraries:
        _called(getattr(one, _WHOLE), one)
    for module in reversed([*model.modules()]):  # parts before what they are parts of, as constructors do
        if id(module) not in inside or _has_undrawn(module):
            for draw in _draws(module):
                _called(draw, module)
    for module in model.modules():
        if parametrize.is_parametrized(module) and _has_undrawn(module, recurse=True):
            _called(_draw_through, module, module)
    for one in _outermost(model, _RULE, 1):
        if id(one) not in inside:
            _called(one.apply, one, getattr(one, _RULE))
    for one in _outermost(model, _RULE, 0):
        if id(one) not in inside:
            _called(getattr(one, _RULE), one)


def _draw_through(module: Any) -> None:
    """Draw a weight that is made of others, as weight norms make it, and take apart what was drawn."""
    names = list(module.parametrizations)
    if not all(hasattr(part, "right_inverse") for name in names for part in module.parametrizations[name]):
        return  # nothing takes apart what would be drawn
    kind: Any = type(module).__bases__[0]  # torch made a class of its own from that
    plain = kind.__new__(kind)
    parts = {name: part for name, part in module._modules.items() if name != "parametrizations"}
    whole = {name: nn.Parameter(torch.full_like(getattr(module, name), torch.nan)) for name in names}
    own = {name: part if part is None else nn.Parameter(part.clone()) for name, part in module._parameters.items()}
    plain.__dict__ = {**module.__dict__, "_modules": parts, "_parameters": {**own, **whole}}
    for draw in _draws(plain):
        draw()
    for name in names:
        if not bool(torch.isnan(whole[name]).any()):
            setattr(module, name, whole[name].detach())
            module.parametrizations.train()
            for _ in range(_LOOKS):
                getattr(module, name)
            module.parametrizations.eval()


def _draws(module: nn.Module) -> list[Callable[[], object]]:
    """Methods that draw a module's own weights and ask for nothing."""
    return [getattr(module, name) for name in _DRAWS if _asks(getattr(module, name, None)) == 0]


def _asks(method: Any) -> int | None:
    """How many arguments a method has to be given; None for what cannot be called so."""
    if not callable(method):
        return None
    try:
        asked = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):
        return None
    needed = [
        own for own in asked if own.default is own.empty and own.kind not in (own.VAR_POSITIONAL, own.VAR_KEYWORD)
    ]
    return None if any(own.kind is own.KEYWORD_ONLY for own in needed) else len(needed)


def _called(method: Callable[..., object], module: nn.Module, *given: object) -> None:
    try:
        method(*given)
    except Exception as error:
        name, kind = getattr(method, "__name__", "its initialisation"), type(module).__name__
        raise ModelError(
            f"there is no untrained copy: {name} of {kind} failed ({type(error).__name__}: {error})"
        ) from error


def _outermost(model: nn.Module, name: str, arguments: int) -> list[nn.Module]:
    """Modules with a method of that name, which asks for so many arguments, that lie in no other such module."""
    if _asks(getattr(model, name, None)) == arguments:
        return [model]
    return [one for child in model.children() for one in _outermost(child, name, arguments)]


def _parts(models: list[nn.Module]) -> set[int]:
    return {id(part) for one in models for part in one.modules()}


def _has_undrawn(module: nn.Module, recurse: bool = False) -> bool:
    return any(bool(torch.isnan(own).any()) for own in module.parameters(recurse=recurse))


def _places(model: nn.Module, names: list[str]) -> str:
    name = names[0]
    owner = name.rpartition(".")[0]
    inside = f"{type(model.get_submodule(owner)).__name__} ({owner or 'the model itself'})"
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"the parameter {name}{more} lies in {inside}"
