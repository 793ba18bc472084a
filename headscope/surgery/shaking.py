"""A unit with other weights and other inputs, on which a cut has to be right as well.

What the model itself gives may say little: an output projection that starts at zero hides all that stands before it,
small numbers hide large errors, and positions that are all alike have one and the same mean whatever the map.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from headscope._support.holding import uncompiled
from headscope.anatomy.linear import stores_transposed
from headscope.anatomy.operations import tensors_in
from headscope.sites import Slices
from headscope.surgery.change import SiteChange
from headscope.surgery.forwards import copied
from headscope.surgery.verification import Seen, difference, drawing_alike, magnitude

__all__ = ["EXACT", "LEAST", "Shaken"]

EXACT, LEAST = 1e-5, 1e-6
"""How far two ways of computing the same may lie apart, of the largest number; or, if that is smaller, of this one."""

_SEEN, _WELL_SEEN = 1e-4, 1e-2  # what other queries change, of the largest number
_MOST = 1e4  # larger numbers are those of masks

Masking = Callable[[nn.Module], AbstractContextManager[None]]


class Shaken:
    """What a unit gives with heads switched off when its weights and what it is given are others.

    Args:
        unit: as it is; only read.
        call: what it was given.
        masking: switches the heads off in a copy of it.
        changes: what goes, with names as seen from the unit.

    Attributes:
        unit: the unit with other weights, in float64 where it runs so.
        call: what it was given, and gave; None where it gives nothing that can be compared.
        is_blind: whether other queries of the heads that stay change nothing of what it gives.
    """

    def __init__(self, unit: nn.Module, call: Seen, masking: Masking, changes: Sequence[SiteChange]) -> None:
        self.is_blind = False
        for dtype, least in itertools.product((torch.float64, torch.float32), (0.0, 1.0)):
            self.unit, self.call = _shaken(unit, call, masking, dtype, least)
            seen = math.inf if self.call is None else _map_seen(self.unit, self.call, masking, changes)
            self.is_blind = seen < _SEEN
            if self.call is not None and (seen >= _WELL_SEEN or least):
                return


def _map_seen(unit: nn.Module, call: Seen, masking: Masking, changes: Sequence[SiteChange]) -> float:
    """How much other queries of the heads that stay change, of the largest number; infinity where it is not known."""
    asked = [change for change in changes if not change.empties and change.site.query]
    other, generator = copied(unit), torch.Generator().manual_seed(1)
    try:
        for part, heads in ((part, change.kept) for change in asked for part in change.site.query):
            weight, rows = _rows_of(other.get_submodule(part.module), part, heads)
            apart = torch.zeros(weight.numel(), dtype=torch.bool).index_fill(0, rows.flatten(), True).view(weight.shape)
            weight += _noise(weight, generator) * apart.to(weight.device) / math.sqrt(rows.shape[1])
        made = _output(other, call, masking)
    except Exception:  # a weight that is none of the kinds that are known, say
        return math.inf
    return difference(call.output, made, relative=True, least=LEAST) if asked else math.inf


def _rows_of(module: nn.Module, part: Slices, heads: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The weight that makes something by head, and where in it the rows of some heads lie: (row, column)."""
    weight = module.get_parameter(part.parameter).data
    where = torch.arange(weight.numel()).view(weight.shape)
    if part.layout:
        where = rearrange(where, part.layout)
    elif part.is_module:
        where = where.T if stores_transposed(module) else where.flatten(1)
    return weight, where[[row for head in heads for row in part.heads[head]]]


def _shaken(
    unit: nn.Module, call: Seen, masking: Masking, dtype: torch.dtype, least: float
) -> tuple[nn.Module, Seen | None]:
    generator = torch.Generator().manual_seed(0)
    try:
        other = _with_others(copied(unit).to(dtype), generator)
        args, kwargs = _with_other_numbers((call.args, call.kwargs), dtype, least, generator)
        made = Seen(args, kwargs, None)
        made = replace(made, output=_output(other, made, masking))
    except Exception:  # not in this precision (on this device), or not with these numbers
        return unit, None
    return other, made if 0 < magnitude(made.output) < math.inf else None


def _output(unit: nn.Module, call: Seen, masking: Masking) -> Any:
    trial = copied(unit)
    trial.train(False)
    with masking(trial), torch.no_grad(), uncompiled(), drawing_alike(trial):
        return trial(*copy.deepcopy(call.args), **copy.deepcopy(call.kwargs))


def _with_others(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """The module, its weights changed by as much as such weights commonly are."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point() and parameter.element_size() > 1 and parameter.numel():
                fan_in = parameter.numel() // parameter.shape[0] if parameter.ndim > 1 else 10
                parameter.add_(_noise(parameter, generator), alpha=0.5 / math.sqrt(fan_in))
    return module


def _with_other_numbers(given: Any, dtype: torch.dtype, least: float, generator: torch.Generator) -> Any:
    """The same arguments in another precision, with other numbers wherever these are no mask."""
    others: dict[int, Tensor] = {}
    for tensor in _floats_in(given):
        other = tensor.detach().clone().to(dtype)
        if other.numel() and not _is_mask(other):
            spread = float(other.std(correction=0)) / 2 or 1.0
            other += _noise(other, generator) * max(spread, least)
        others[id(tensor)] = other
    return copy.deepcopy(given, others)


def _is_mask(tensor: Tensor) -> bool:
    """Whether its numbers say what counts: zeros and ones, or large ones; a long tensor of all the same is features."""
    alike = tensor.ndim > 2 and bool((tensor == tensor.flatten()[0]).all())
    flags = bool(((tensor == 0) | (tensor == 1)).all()) and not alike
    return flags or not bool((tensor.abs() < _MOST).all())


def _floats_in(given: Any) -> Iterator[Tensor]:
    return (tensor for tensor in tensors_in(given) if tensor.is_floating_point())


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like.device, like.dtype)
