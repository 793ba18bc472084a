"""A unit with other weights and other inputs, on which a cut has to be right as well.

What the model itself gives may say little: an output projection that starts at zero hides all that stands before it,
small numbers hide large errors, and positions that are all alike have one and the same mean whatever the map.
"""

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from headscope._support.holding import uncompiled
from headscope.anatomy.check import for_each_head, gap_of
from headscope.anatomy.entering import at_output
from headscope.anatomy.features import features_last
from headscope.anatomy.linear import stores_transposed
from headscope.anatomy.operations import tensors_in
from headscope.anatomy.registry import RegistryRoute
from headscope.anatomy.route import Call
from headscope.errors import AnatomyError
from headscope.sites import Slices
from headscope.surgery.change import SiteChange
from headscope.surgery.edits.base import Edit, apply_edits
from headscope.surgery.forwards import copied
from headscope.surgery.verification import Seen, cast, difference, drawing_alike, magnitude

__all__ = ["EXACT", "LEAST", "Shaken"]

EXACT, LEAST = 1e-5, 1e-6
"""How far two ways of computing the same may lie apart, of the largest number; or, if that is smaller, of this one."""

_SEEN, _WELL_SEEN = 1e-4, 1e-2  # what other queries change, of the largest number
_MOST = 1e4  # larger numbers are those of masks


class _Noise(NamedTuple):
    """What is added to what the unit is given.

    Attributes:
        share: of the spread of its numbers.
        least: so much at least.
        where_alike: also where all numbers are alike, as in a mask of nothing.
    """

    share: float
    least: float
    where_alike: bool


_NOISES = (_Noise(0.5, 0, True), _Noise(0.5, 1, True), _Noise(0.5, 1, False), _Noise(0, 0, False))

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
        self.unit, self.call, most = unit, None, -1.0
        for dtype, noise in itertools.product((torch.float64, torch.float32), _NOISES):
            if noise is _NOISES[0] and self.call is not None:  # it runs in the finer precision
                break
            other, made = _shaken(unit, call, masking, dtype, noise)
            seen = -1.0 if made is None else _map_seen(other, made, masking, changes)
            if seen > most:
                self.unit, self.call, most = other, made, seen
            if most >= _WELL_SEEN:
                break
        self.is_blind = self.call is not None and most < _SEEN
        self._masking, self._changes = masking, changes

    def enters_alike(self, edits: Sequence[Edit]) -> bool:
        """Whether what enters output projections is what it was, of the heads that stay; True where it is not seen.

        Args:
            edits: of the unit, with names as seen from it.
        """
        assert self.call is not None
        cut = copied(self.unit)
        apply_edits(edits, cut)
        before = _ran(copied(self.unit), self.call, self._masking, self._changes)
        after = _ran(cut, self.call, lambda _: nullcontext(), self._changes)
        for name, calls in before.entering.items():
            for was, now in zip(calls, after.entering.get(name, ()), strict=False):
                kept = _columns_kept(name, was.shape[-1], self._changes)
                if gap_of(now[..., kept] if now.shape == was.shape else now, was[..., kept]) > EXACT:
                    return False
        return True

    def scores_agree(self, edits: Sequence[Edit]) -> bool:
        """Whether the heads that stay have the scores that they had: the same queries, keys, scale and bias.

        That is seen where the unit hands these to a function of transformers; elsewhere it is not known, and False.

        Args:
            edits: of the unit, with names as seen from it.
        """
        assert self.call is not None
        cut = copied(self.unit)
        apply_edits(edits, cut)
        try:
            before = _heard(self.unit, self.call, self._masking)
            after = _heard(cut, self.call, lambda _: nullcontext())
            pairs = [(one, before[one.site.module_name], after.get(one.site.module_name)) for one in self._changes]
            return all(one.empties or (now is not None and _alike(one, was, now)) for one, was, now in pairs)
        except (KeyError, AnatomyError, RuntimeError):
            return False


def _heard(unit: nn.Module, call: Seen, masking: Masking) -> dict[str, Call]:
    """The first call that each module in a unit makes of a function of attention."""
    trial, heard = copied(unit), dict[nn.Module, Call]()

    def hear(call: Call) -> None:
        heard.setdefault(call.module, call)

    with RegistryRoute().listen(trial, hear):
        _ran(trial, call, masking, ())
    names = {module: name for name, module in trial.named_modules()}
    return {names[module]: call for module, call in heard.items()}


def _alike(change: SiteChange, before: Call, after: Call) -> bool:
    kept, site = list(change.kept), change.site
    k, own_k = for_each_head(before.k, site.kv_of_query)[:, kept], for_each_head(after.k, change.kv_of_query)
    bias, own_bias = before.bias(before.scaling), after.bias(after.scaling)
    if bias.ndim == 4 and bias.shape[1] == site.n_heads > 1:
        bias = bias[:, kept]
    pairs = ((before.q[:, kept], after.q), (k, own_k), torch.broadcast_tensors(bias, own_bias))
    return before.scaling == after.scaling and all(gap_of(one, other) <= EXACT for one, other in pairs)


@dataclass(frozen=True, eq=False)
class _Ran:
    """What a unit gave, and what entered output projections that are modules, call by call, with features last."""

    output: Any
    entering: dict[str, list[Tensor]]


def _ran(trial: nn.Module, call: Seen, masking: Masking, changes: Sequence[SiteChange]) -> _Ran:
    entering: dict[str, list[Tensor]] = {}

    def note(tensor: Tensor, axes: tuple[int, ...], *, name: str) -> None:
        entering.setdefault(name, []).append(features_last(tensor, axes).detach().clone())

    trial.train(False)
    with ExitStack() as stack:
        stack.enter_context(masking(trial))
        for name, site in {one.site.output.module: one.site for one in changes if one.site.output}.items():
            if not site.reads_by_operation:
                stack.enter_context(at_output(trial, site, functools.partial(note, name=name)))
        for one in (torch.no_grad(), uncompiled(), drawing_alike(trial)):
            stack.enter_context(one)
        return _Ran(trial(*copy.deepcopy(call.args), **copy.deepcopy(call.kwargs)), entering)


def _columns_kept(name: str, width: int, changes: Sequence[SiteChange]) -> list[int]:
    own = [(one, one.site.output) for one in changes if one.site.output and one.site.output.module == name]
    gone = {column for one, output in own for head in one.gone for column in output.heads[head]}
    return [column for column in range(width) if column not in gone]


def _map_seen(unit: nn.Module, made: Seen, masking: Masking, changes: Sequence[SiteChange]) -> float:
    """How much other queries of the heads that stay change, of the largest number; infinity where it is not known.

    It is told by what enters the output projection, where that is seen: much may be added to what leaves it.
    """
    asked = [change for change in changes if not change.empties and change.site.query]
    other, generator = copied(unit), torch.Generator().manual_seed(1)
    try:
        for part, heads in ((part, change.kept) for change in asked for part in change.site.query):
            weight, rows = _rows_of(other.get_submodule(part.module), part, heads)
            apart = torch.zeros(weight.numel(), dtype=torch.bool).index_fill(0, rows.flatten(), True).view(weight.shape)
            weight += _noise(weight, generator) * apart.to(weight.device) / math.sqrt(rows.shape[1])
        before, after = (_ran(one, made, masking, changes) for one in (copied(unit), other))
    except Exception:  # a weight that is none of the kinds that are known, say
        return math.inf
    if not asked:
        return math.inf
    gaps = [
        max(map(gap_of, after.entering[name], before.entering[name]))
        for name in dict.fromkeys(one.site.output.module for one in asked if one.site.output)
        if name in before.entering and name in after.entering
    ]
    return min(gaps) if gaps else difference(before.output, after.output, relative=True, least=LEAST)


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
    unit: nn.Module, call: Seen, masking: Masking, dtype: torch.dtype, noise: _Noise
) -> tuple[nn.Module, Seen | None]:
    generator = torch.Generator().manual_seed(0)
    try:
        other = _with_others(cast(copied(unit), dtype), generator)
        args, kwargs = _with_other_numbers((call.args, call.kwargs), dtype, noise, generator)
        made = Seen(args, kwargs, None)
        made = replace(made, output=_ran(copied(other), made, masking, ()).output)
    except Exception:  # not in this precision (on this device), or not with these numbers
        return unit, None
    return other, made if 0 < magnitude(made.output) < math.inf else None


def _with_others(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """The module, its weights changed by as much as such weights commonly are."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point() and parameter.element_size() > 1 and parameter.numel():
                fan_in = parameter.numel() // parameter.shape[0] if parameter.ndim > 1 else 10
                parameter.add_(_noise(parameter, generator), alpha=0.5 / math.sqrt(fan_in))
    return module


def _with_other_numbers(given: Any, dtype: torch.dtype, noise: _Noise, generator: torch.Generator) -> Any:
    """The same arguments in another precision, with other numbers wherever these are no mask."""
    others: dict[int, Tensor] = {}
    for tensor in _floats_in(given):
        other = tensor.detach().clone().to(dtype)
        if other.numel() and not _is_mask(other, noise.where_alike):
            spread = noise.share * (float(other.std(correction=0)) or 2.0)
            other += _noise(other, generator) * max(spread, noise.least)
        others[id(tensor)] = other
    return copy.deepcopy(given, others)


def _is_mask(tensor: Tensor, unlike: bool) -> bool:
    """Whether its numbers say what counts: large ones, or zeros and ones; with several axes these have to be unlike."""
    if unlike and tensor.ndim > 2 and bool((tensor == tensor.flatten()[0]).all()):
        return False
    return bool(((tensor == 0) | (tensor == 1)).all()) or not bool((tensor.abs() < _MOST).all())


def _floats_in(given: Any) -> Iterator[Tensor]:
    return (tensor for tensor in tensors_in(given) if tensor.is_floating_point())


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like.device, like.dtype)
