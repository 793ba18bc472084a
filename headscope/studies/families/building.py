"""Tiny random models of every model type: the class of a config, weights, and the variants that are tried."""

import copy
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from headscope.errors import InputError, ModelError
from headscope.studies.families.configuring import VARIANTS, tiny_settings
from headscope.studies.families.repairing import Settings, repair

__all__ = ["Built", "build", "model_class", "shake", "tiny_model"]

_MOST_PARAMETERS = 130_000_000
_MOST_REPAIRS = 4  # of one variant
_MOST_MODELS = 3  # that were built, and did not run
_HOPELESS = "not found in your environment"  # a package that is not installed
_LONGEST = 2000  # characters of a message
_LEFT_OUT = "PreTrainedModel"


@dataclass(frozen=True, eq=False)
class Built:
    """What came of building a model type.

    Attributes:
        model: the first that nothing was held against; else the first that was built, or None.
        complaints: what was said against all that was tried, in order.
        against: of these, what was said against models that were built.
        runs: whether nothing was held against it.
    """

    model: nn.Module | None
    complaints: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    runs: bool = False


def tiny_model(model_type: str, seed: int = 0) -> nn.Module:
    """A tiny random model of a model type, in evaluation mode; the same for the same seed.

    Args:
        model_type: as transformers calls it, as "llama".
        seed: of the weights.

    Raises:
        InputError: there is no such type.
        ModelError: none could be built; the message says why.
    """
    built = build(model_type, seed)
    if built.model is None:
        raise ModelError(f"no tiny {model_type} could be built: {'; '.join(built.complaints[:2])}")
    return built.model


def build(model_type: str, seed: int = 0, complain: Callable[[nn.Module], str] = lambda _: "") -> Built:
    """Try variants of a tiny config, and what repairs their complaints, until nothing is held against the model.

    Args:
        model_type: as transformers calls it.
        seed: of the weights.
        complain: what is wrong with a model that was built, as that it does not run; "" for nothing.

    Raises:
        InputError: there is no such type.
    """
    if model_type not in CONFIG_MAPPING:
        raise InputError(f"transformers {transformers.__version__} knows no model type {model_type!r}")
    try:
        default = CONFIG_MAPPING[model_type]()
        kind = model_class(model_type)
    except Exception as error:
        return Built(None, (_told(error),))
    complaints: list[str] = []
    against: list[str] = []
    first: nn.Module | None = None
    for settings in _to_try(default):
        for _ in range(_MOST_REPAIRS):
            model, complaint = _attempt(kind, settings, seed)
            if model is not None:
                complaint = complain(model)
                first = model if first is None else first
                if not complaint:
                    return Built(model, tuple(complaints), tuple(against), runs=True)
                against.append(complaint)
            complaints.append(complaint)
            if len(against) >= _MOST_MODELS or _HOPELESS in complaint:
                return Built(first, tuple(complaints), tuple(against))
            if not repair(complaint, settings):
                break
    return Built(first, tuple(complaints), tuple(against))


def _to_try(default: PreTrainedConfig) -> Iterator[Settings]:
    """Different settings, in the order of the variants."""
    seen = set()
    for variant in VARIANTS:
        values = tiny_settings(default, variant)
        if repr(values) not in seen:
            seen.add(repr(values))
            yield Settings(default, values)


def _attempt(kind: type[PreTrainedModel], settings: Settings, seed: int) -> tuple[nn.Module | None, str]:
    """A model, or why there is none."""
    try:
        config = settings.config()
    except Exception as error:
        return None, f"its config is refused: {_told(error)}"
    too_large = _too_large(kind, config)
    if too_large:
        return None, too_large
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = kind._from_config(config).eval().float()
        except Exception as error:
            return None, f"it cannot be built: {_told(error)}"
    shake(model, seed)
    return model, ""


def _too_large(kind: type[PreTrainedModel], config: PreTrainedConfig) -> str:
    """What is wrong with the sizes, before a weight is made; "" for nothing, or where that cannot be told."""
    try:
        with torch.device("meta"):
            model = kind._from_config(copy.deepcopy(config))
    except Exception as error:
        return "" if "meta" in str(error).lower() else f"it cannot be built: {_told(error)}"
    sizes = sorted(((one.numel(), name) for name, one in model.named_parameters()), reverse=True)
    many = sum(size for size, _ in sizes)
    if many <= _MOST_PARAMETERS:
        return ""
    return f"too large: {many / 1e6:.0f} million parameters, {sizes[0][0] / 1e6:.0f} million of them in {sizes[0][1]}"


def shake(model: nn.Module, seed: int) -> None:
    """Random values everywhere, so that no gate that begins at zero, and no norm of ones, hides a path.

    Args:
        model: changed in place.
        seed: of what is added.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.is_floating_point():
                weight.add_(torch.randn(weight.shape, generator=generator) * _spread(weight))


def _spread(weight: Tensor) -> float:
    """Standard deviation of what is added: activations stay of order one."""
    if weight.ndim < 2:
        return 0.05
    inputs = max(1, min(weight.shape[1:].numel(), max(weight.shape)))
    return min(0.1, 0.7 / inputs**0.5)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[-_LONGEST:]}"


def model_class(model_type: str) -> type[PreTrainedModel]:
    """The class of a model type: the bare model where transformers maps it, else the one of its own file.

    Args:
        model_type: as transformers calls it.

    Raises:
        ModelError: it has a config and no model.
    """
    config = CONFIG_MAPPING[model_type]
    mapped: Any = MODEL_MAPPING_NAMES.get(model_type)
    name = mapped[0] if isinstance(mapped, list | tuple) else mapped
    known = getattr(transformers, name, None) if name else None
    if known is not None and _fits(known, config):
        return known
    for module in _modelling(config):
        own = [*_own_models(module)]
        for takes in (_constructor_takes, _class_takes, _is_named_so):
            if found := [one for one in own if takes(one, config)]:
                return min(found, key=_preference)
    if known is not None:
        return known
    raise ModelError(f"{config.__name__} is a config without a model of its own")


def _fits(kind: type[PreTrainedModel], config: type[PreTrainedConfig]) -> bool:
    """Whether a class that is mapped to a config is built of it: some are of a config within it."""
    try:
        own = kind.config_class
    except ImportError:  # a package that is not installed
        return True
    return own is None or issubclass(config, own)


def _modelling(config: type[PreTrainedConfig]) -> Iterator[ModuleType]:
    """Files of models beside a config's file; the one of the same name first."""
    package = importlib.import_module(config.__module__.rpartition(".")[0])
    names = [one.name for one in pkgutil.iter_modules(package.__path__) if one.name.startswith("modeling_")]
    own = config.__module__.rpartition(".")[2].replace("configuration_", "modeling_")
    for name in sorted(names, key=lambda name: name != own):
        yield importlib.import_module(f"{package.__name__}.{name}")


def _own_models(module: ModuleType) -> Iterator[type[PreTrainedModel]]:
    for one in vars(module).values():
        own = inspect.isclass(one) and issubclass(one, PreTrainedModel) and one.__module__ == module.__name__
        if own and not one.__name__.endswith(_LEFT_OUT):
            yield one


def _constructor_takes(kind: type[PreTrainedModel], config: type[PreTrainedConfig]) -> bool:
    given = inspect.signature(kind.__init__).parameters.get("config")
    return given is not None and config.__name__ in re.findall(r"\w+", str(given.annotation))


def _class_takes(kind: type[PreTrainedModel], config: type[PreTrainedConfig]) -> bool:
    return getattr(kind, "config_class", None) is config


def _is_named_so(kind: type[PreTrainedModel], config: type[PreTrainedConfig]) -> bool:
    return kind.__name__.replace("Model", "") == config.__name__.replace("Config", "")


def _preference(kind: type[PreTrainedModel]) -> tuple[bool, bool, bool, int]:
    """Bare models first, then those with a head for text, then shorter names."""
    name = kind.__name__
    generates = "ForConditional" in name or "ForCausal" in name
    return not name.endswith("Model"), not generates, not name.endswith("Backbone"), len(name)
