"""What a cut model still does: saved and loaded, trained a step, asked for text, copied, exported."""

import copy
import inspect
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from headscope.errors import StorageError
from headscope.studies.families.generating import generated_text, with_head_for_text
from headscope.studies.families.outputs import apart, floats, outputs_of, same
from headscope.studies.families.results import NO, YES
from headscope.studies.families.telling import first_sentence
from headscope.surgery import load, save

__all__ = ["CHECKS", "InapplicableError", "check_afterwards"]

_STEP = 1e-3
Inputs = Mapping[str, Any]


class InapplicableError(Exception):
    """Nothing to check: the model has no such thing."""


def check_afterwards(
    model: nn.Module, pruned: nn.Module, inputs: Inputs, names: tuple[str, ...]
) -> dict[str, tuple[str, str]]:
    """Each check on a cut model. What the whole model cannot do either is no fault of the cut, and has no answer.

    Args:
        model: before the cut.
        pruned: after it.
        inputs: arguments of its forward.
        names: of `CHECKS`.

    Returns:
        By name: "yes", "no" or "", and the reason.
    """
    return {name: _answer(CHECKS[name], model, pruned, inputs) for name in names}


def _answer(
    check: Callable[[nn.Module, nn.Module, Inputs], str], model: nn.Module, pruned: nn.Module, inputs: Inputs
) -> tuple[str, str]:
    why = _tried(check, model, pruned, inputs)
    if why is None or not why:
        return ("", "") if why is None else (YES, "")
    before = _tried(check, model, model, inputs)
    return (NO, why) if before == "" else ("", f"the whole model cannot either: {before or why}")


def _tried(
    check: Callable[[nn.Module, nn.Module, Inputs], str], model: nn.Module, pruned: nn.Module, inputs: Inputs
) -> str | None:
    """Why it failed, "" where it did not, None where there is nothing to check."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return check(model, pruned, inputs)
    except InapplicableError:
        return None
    except Exception as error:
        return f"{type(error).__name__}: {first_sentence(str(error))}"


def _saved(model: nn.Module, pruned: nn.Module, inputs: Inputs) -> str:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "cut"
        save(pruned, place)
        try:
            loaded = load(place)
        except StorageError:  # a class that is not built by its name
            loaded = load(place, model=copy.deepcopy(model))
        return _unlike(pruned, loaded, inputs)


def _copied(_: nn.Module, pruned: nn.Module, inputs: Inputs) -> str:
    twin = copy.deepcopy(pruned)
    return _unlike(pruned, twin, inputs)


def _unlike(pruned: nn.Module, other: nn.Module, inputs: Inputs) -> str:
    """How far outputs are apart, which are to be the same to the last bit."""
    first, second = outputs_of(pruned, inputs), outputs_of(other, inputs)
    return "" if same(first, second) else f"outputs are {apart(first, second):.1e} apart"


def _trained(_: nn.Module, pruned: nn.Module, inputs: Inputs) -> str:
    twin = copy.deepcopy(pruned).train()
    weights = [weight for weight in twin.parameters() if weight.is_floating_point()]
    optimizer = torch.optim.SGD([weight.requires_grad_() for weight in weights], lr=_STEP)
    made = floats(twin(**inputs))
    loss = next(one for one in made if one.requires_grad).square().mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    if not bool(loss.isfinite()) or not all(bool(weight.isfinite().all()) for weight in weights):
        return "a step of training gives NaN or infinity"
    return "" if any(weight.grad is not None for weight in weights) else "no gradient reaches a weight"


def _generated(model: nn.Module, pruned: nn.Module, inputs: Inputs) -> str:
    if not isinstance(pruned, PreTrainedModel):
        raise InapplicableError
    if pruned.can_generate() and "input_ids" in inputs:
        made = generated_text(pruned, inputs)
        return "" if made.shape[0] == inputs["input_ids"].shape[0] else "rows are missing"
    told = with_head_for_text(model) if isinstance(model, PreTrainedModel) else None
    if told is None:
        raise InapplicableError
    return told


def _exported(_: nn.Module, pruned: nn.Module, inputs: Inputs) -> str:
    known = inspect.signature(pruned.forward).parameters
    taken = {name: value for name, value in inputs.items() if name in known}
    with torch.no_grad():
        program = torch.export.export(pruned, (), taken, strict=False)
        made = floats(program.module()(**taken))
    want = outputs_of(pruned, inputs)
    close = all(torch.allclose(a, b, atol=1e-4, equal_nan=True) for a, b in zip(made, want, strict=False))
    return "" if close else "what is exported gives something else"


CHECKS: Mapping[str, Callable[[nn.Module, nn.Module, Inputs], str]] = {
    "saved": _saved,
    "trained": _trained,
    "generated": _generated,
    "copied": _copied,
    "exported": _exported,
}
