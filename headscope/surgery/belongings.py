"""What belongs to single heads beside their q, k, v and o: gates, sinks, norms and tables by head, biases handed in.

A unit runs once on what it was given, and gradients from each head's part of what enters the output projection tell:
where they reach other places of a parameter (or of an argument) for each head, along one axis, that axis is of heads.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from headscope._support.holding import uncompiled
from headscope.anatomy.differentiable import differentiable
from headscope.anatomy.entering import at_output
from headscope.anatomy.fast_path import plainly
from headscope.anatomy.features import features_last
from headscope.anatomy.linear import is_linear, is_plain, stores_transposed
from headscope.anatomy.operations import tensors_in
from headscope.sites import Site
from headscope.surgery.change import SiteChange, is_matrix, site_within
from headscope.surgery.edits.arguments import TakeHeads, Taken
from headscope.surgery.edits.base import Edit, runs
from headscope.surgery.edits.slicing import DropItems, SliceParameter
from headscope.surgery.forwards import copied, parameters_of
from headscope.surgery.verification import Seen

__all__ = ["Belongings", "belongings"]

_Gradients = dict[str, list[Tensor | None]]
Owned = tuple[frozenset[int], ...]  # for each head, its places on an axis


@dataclass(frozen=True)
class Belongings:
    """What of one unit belongs to the heads of one site.

    Attributes:
        change: what goes there.
        unit: dotted name of the unit.
        parameters: by name in the unit, the axis of heads and each head's places on it.
        rows: of linear layers that make something for each head (a gate): by name in the unit, each head's rows.
        lists: module lists with an item for each head: by name in the unit, each head's items.
        arguments: of the unit, that have an axis of heads.
        guessed: as `parameters`, of vectors as long as queries or keys of all heads on which nothing depends, as on a
            bias of keys before a softmax: they go with these if the unit runs so.
        unread: those of `parameters` that nothing reads here, and that are as long as there are heads: what they do on
            other inputs is not known.
    """

    change: SiteChange
    unit: str
    parameters: Mapping[str, tuple[int, int, Owned]]
    rows: Mapping[str, Owned]
    lists: Mapping[str, tuple[int, Owned]]
    arguments: tuple[Taken, ...]
    guessed: Mapping[str, tuple[int, int, Owned]] = field(default_factory=dict)
    unread: frozenset[str] = frozenset()

    def guessing(self) -> "Belongings":
        """The same where what is guessed is right."""
        return replace(self, parameters={**self.parameters, **self.guessed}, guessed={})

    def gone(self, owned: Owned) -> set[int]:
        """The places that no head left has."""
        kept = {place for head in self.change.kept for place in owned[head]}
        return {place for head in self.change.gone for place in owned[head]} - kept

    def slices(self) -> Iterator[tuple[str, str, frozenset[int]]]:
        """As `SiteChange.slices`: rows of layers that go."""
        for name, owned in self.rows.items():
            yield self._full(name), "output", frozenset(self.gone(owned))

    def edits(self) -> Iterator[Edit]:
        """What else gets smaller."""
        for name, (axis, size, owned) in self.parameters.items():
            owner, _, own = name.rpartition(".")
            keep = runs(set(range(size)) - self.gone(owned))
            yield SliceParameter(self._full(owner), own, axis, keep, size, name in self.unread)
        for name, (size, owned) in self.lists.items():
            gone = self.gone(owned)
            yield DropItems(self._full(name), tuple(place for place in range(size) if place not in gone), size)

    @cached_property
    def taking(self) -> tuple[Edit, ...]:
        """The edit by which the unit takes what it is given for the heads left."""
        first, ids = self.change.first.head_ids, [self.change.site.head_ids[head] for head in self.change.kept]
        keep = tuple(first.index(head) for head in ids)
        return (TakeHeads(self.unit, self.arguments, keep, len(first)),) if self.arguments else ()

    def _full(self, name: str) -> str:
        return ".".join(part for part in (self.unit, name) if part)


def belongings(module: nn.Module, unit: str, change: SiteChange, call: Seen) -> Belongings:
    """What belongs to single heads in one unit.

    Args:
        module: the unit; only read.
        unit: its dotted name.
        change: what goes from a site in it.
        call: what the unit was given in one forward pass.
    """
    site = site_within(change.site, unit)
    found = Belongings(change, unit, {}, {}, {}, ())
    twin = copied(module)
    twin.eval()
    probed = _probed(twin, site)
    names = parameters_of(module)[: len(call.args)]
    given = dict(zip(names, call.args, strict=False)) | call.kwargs
    handed = {n: one for n, one in given.items() if n != names[0] and _may_hold(one, change)} if names else {}
    if site.n_heads < 2 or not (probed or handed):
        return found
    try:
        reached, of_given, unread = _reached(twin, site, call, probed, handed)
    except Exception:  # what its forward needs beside, and what has no gradient: it is tried without
        return found
    tables: dict[str, tuple[int, int, Owned]] = {}
    rows: dict[str, Owned] = {}
    guessed = {}
    for name, gradients in reached.items():
        axis, owned, is_guess = _told(site, probed[name], gradients)
        if axis is None:
            continue
        if is_guess:
            guessed[name] = (axis, probed[name].shape[axis], owned)
            continue
        owner, _, own = name.rpartition(".")
        layer = twin.get_submodule(owner)
        if is_linear(layer) and is_plain(layer):
            if own == "weight" and axis == (1 if stores_transposed(layer) else 0):
                rows[owner] = owned
        else:
            tables[name] = (axis, probed[name].shape[axis], owned)
    lists = dict(_lists(twin, site, reached))
    tables = {n: one for n, one in tables.items() if not any(n.startswith(f"{of}.") for of in lists)}
    first = [change.first.head_ids.index(head) for head in site.head_ids]
    taken = (_taken(name, of_given[name], first, change.first.n_heads) for name in handed)
    beside = [name for name in unread if _is_beside(twin, site, name)]
    more = {name: told for name in beside if (told := _as_long(site, probed[name])) is not None}
    found = replace(found, parameters=tables | more, rows=rows, lists=lists, guessed=guessed, unread=frozenset(more))
    return replace(found, arguments=tuple(filter(None, taken)))


def _is_beside(unit: nn.Module, site: Site, name: str) -> bool:
    """Whether a parameter is the attention module's, or one of a part of it that is no layer and has no parts."""
    owner = name.rpartition(".")[0]
    module = unit.get_submodule(owner)
    leaf = not is_linear(module) and next(module.children(), None) is None
    return owner == site.module_name or (leaf and owner.rpartition(".")[0] == site.module_name)


def _as_long(site: Site, tensor: Tensor) -> tuple[int, int, Owned] | None:
    """The axis of a tensor that is as long as there are heads, or else key heads, and each head's place on it."""
    for count, places in ((site.n_heads, range(site.n_heads)), (site.n_kv_heads, site.kv_of_query)):
        if count > 1 and count in tensor.shape:
            return tuple(tensor.shape).index(count), count, tuple(frozenset({place}) for place in places)
    return None


def _told(site: Site, tensor: Tensor, gradients: Sequence[Tensor | None]) -> tuple[int | None, Owned, bool]:
    """The axis of heads, their places on it, and whether that is a guess.

    What moves a vector's places by rounding alone, or here and there, is taken to move all that are a head's.
    """
    axis, owned = _split(gradients)
    vector = _in_order(site, len(tensor)) if tensor.ndim == 1 else ()
    reached = [frozenset[int]() if one is None else _places(one, 0) for one in gradients] if vector else []
    if vector and all(one <= own for one, own in zip(reached, vector, strict=True)):
        return 0, vector, axis is None
    return axis, owned, False


def _in_order(site: Site, size: int) -> Owned:
    """Each head's places in a vector as long as the queries, or the keys, of all heads; nothing for another one."""
    if size == site.n_heads * site.head_dim:
        return tuple(frozenset(range(head * site.head_dim, (head + 1) * site.head_dim)) for head in range(site.n_heads))
    if size == site.n_kv_heads * site.head_dim:
        own = [frozenset(range(kv * site.head_dim, (kv + 1) * site.head_dim)) for kv in range(site.n_kv_heads)]
        return tuple(own[kv] for kv in site.kv_of_query)
    return ()


def _probed(unit: nn.Module, site: Site) -> dict[str, Tensor]:
    """Parameters and buffers of numbers in which heads may have places that nothing has told yet, as leaves."""
    known: dict[str, set[int]] = {}
    bare: set[str] = set()
    for part in (*site.query, *site.key, *site.value):
        if part.is_module:
            known.setdefault(part.name, set()).update(row for own in part.heads for row in own)
        elif is_matrix(unit.get_submodule(part.module), part):
            bare |= {part.name, part.name.replace("weight", "bias")}
    counts = {site.n_heads, site.n_kv_heads} - {1}
    skip = {site.output.module} if site.output is not None and site.output.is_module else set()
    found = {}
    for name, module in unit.named_modules():
        if name in skip:
            continue
        linear = is_linear(module) and is_plain(module)
        for own, tensor in (*module._parameters.items(), *module._buffers.items()):
            whole = ".".join(part for part in (name, own) if part)
            if tensor is None or not tensor.is_floating_point() or tensor.ndim == 0 or (linear and own != "weight"):
                continue
            vector = tensor.ndim == 1 and bool(_in_order(site, len(tensor)))
            if own in module._buffers and tensor.numel() not in counts and not vector:
                continue  # more than a number a head: a module may make it anew, by its number of heads, when it grows
            told = whole in bare or (linear and len(known.get(name, ())) == tensor.shape[stores_transposed(module)])
            in_list = any(len(one) in counts for one in _lists_above(unit, name))
            if not told and (in_list or any(size % count == 0 for size in tensor.shape for count in counts)):
                found[whole] = tensor
    return found


def _lists_above(unit: nn.Module, name: str) -> Iterator[nn.ModuleList]:
    parts = name.split(".")
    for stop in range(1, len(parts)):
        module = unit.get_submodule(".".join(parts[:stop]))
        if isinstance(module, nn.ModuleList):
            yield module


def _may_hold(value: Any, change: SiteChange) -> bool:
    heads = len(change.first.head_ids)
    many = isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1
    return many and any(size % heads == 0 for size in value.shape[:-1])


def _reached(
    unit: nn.Module, site: Site, call: Seen, probed: Mapping[str, Tensor], handed: Mapping[str, Tensor]
) -> tuple[_Gradients, _Gradients, list[str]]:
    """For each parameter and for each argument, what of it each head's part of what enters the output projection
    depends on; and parameters on which nothing depends that the unit returns.
    """
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in handed.items()}
    own_leaves: dict[str, Tensor] = {}
    names = parameters_of(unit)
    own_args, own_kwargs = copy.deepcopy((call.args, call.kwargs))  # what it is given may be written to
    args = [leaves[n].clone() if n in leaves else one for n, one in zip(names, own_args, strict=False)]
    args += own_args[len(names) :]
    kwargs = {n: leaves[n].clone() if n in leaves else one for n, one in own_kwargs.items()}
    for name in probed:
        owner, _, own = name.rpartition(".")
        module = unit.get_submodule(owner)
        if own in module._parameters:
            own_leaves[name] = module.get_parameter(own).requires_grad_()
        else:
            own_leaves[name] = module._buffers[own] = probed[name].detach().clone().requires_grad_()
    seen: list[tuple[Tensor, tuple[int, ...]]] = []
    with plainly(unit), uncompiled(), differentiable(), at_output(unit, site, lambda x, axes: seen.append((x, axes))):
        out = [one for one in tensors_in(unit(*args, **kwargs)) if one.requires_grad]
    entering = features_last(*seen[0])
    generator = torch.Generator().manual_seed(0)
    found: tuple[_Gradients, _Gradients] = ({name: [] for name in own_leaves}, {name: [] for name in leaves})
    every = [*own_leaves.values(), *leaves.values()]
    assert site.output is not None
    for columns in site.output.heads:
        part = entering[..., list(columns)]
        weights = torch.randn(part.shape, generator=generator).to(part.device, part.dtype)
        gradients = iter(torch.autograd.grad((part * weights).sum(), every, retain_graph=True, allow_unused=True))
        for own_found in found:
            for gradients_of in own_found.values():
                gradients_of.append(next(gradients))
    total = torch.stack([one.sum().float() for one in [entering, *out]]).sum()
    read = torch.autograd.grad(total, [*own_leaves.values()], allow_unused=True) if own_leaves else ()
    return (*found, [name for name, one in zip(own_leaves, read, strict=True) if one is None])


def _split(gradients: Sequence[Tensor | None]) -> tuple[int | None, Owned]:
    """The first axis along which heads have places of their own, and these."""
    if any(one is None for one in gradients):
        return None, ()
    reached = [one for one in gradients if one is not None]
    for axis in range(reached[0].ndim):
        owned = tuple(_places(one, axis) for one in reached)
        if _are_apart(owned):
            return axis, owned
    return None, ()


def _places(gradient: Tensor, axis: int) -> frozenset[int]:
    if not gradient.numel():  # of a layer that was emptied
        return frozenset()
    others = [other for other in range(gradient.ndim) if other != axis]
    reached = gradient.abs().amax(others) if others else gradient.abs()
    return frozenset(reached.nonzero().flatten().tolist())


def _are_apart(owned: Sequence[frozenset[int]]) -> bool:
    """Whether heads, or groups of them, have places of their own."""
    different = set(owned)
    apart = sum(map(len, different)) == len(frozenset().union(*different))
    return all(owned) and len(different) > 1 and apart


def _lists(
    unit: nn.Module, site: Site, reached: Mapping[str, Sequence[Tensor | None]]
) -> Iterator[tuple[str, tuple[int, Owned]]]:
    """Module lists with an item for each head, or for each key head."""
    known = {part.module for part in (*site.query, *site.key, *site.value)}
    for name, module in unit.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) not in {site.n_heads, site.n_kv_heads} - {1}:
            continue
        if any(one.startswith(f"{name}.") for one in known):
            continue
        owned = [set[int]() for _ in range(site.n_heads)]
        for item in range(len(module)):
            own = [gradients for one, gradients in reached.items() if one.startswith(f"{name}.{item}.")]
            for head in range(site.n_heads):
                if any(one[head] is not None and bool(one[head].any()) for one in own):  # type: ignore[union-attr]
                    owned[head].add(item)
        places = tuple(map(frozenset, owned))
        if _are_apart(places):
            yield name, (len(module), places)


def _taken(name: str, gradients: Sequence[Tensor | None], first: Sequence[int], heads: int) -> Taken | None:
    """How an argument is to be taken for the heads left; None where it has no axis of heads."""
    axis, owned = _split(gradients)
    if axis is None:
        return None
    size = next(one.shape[axis] for one in gradients if one is not None)
    if all(place % heads == head for head, own in zip(first, owned, strict=True) for place in own):
        return name, axis, False
    each = size // heads
    apart = all(place // each == head for head, own in zip(first, owned, strict=True) for place in own)
    return (name, axis, True) if apart and size % heads == 0 else None
