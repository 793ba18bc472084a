"""Is a cut what it says? A cut model against a copy with the heads' columns masked by a plain hook."""

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import einops
import torch
from torch import Tensor, nn

from headscope.anatomy.records import record_of
from headscope.errors import HeadscopeError
from headscope.heads import HeadId
from headscope.sites import Anatomy, Site, Slices
from headscope.studies.families.outputs import apart, finer, floats, outputs_of
from headscope.studies.families.results import Cut
from headscope.studies.families.telling import first_sentence
from headscope.surgery import prune

__all__ = ["TriedCut", "masked", "sites_to_cut", "try_cuts", "way_of"]

_TOLERANCE = 1e-5  # of outputs
_MOST_SITES = 4
_UNREAD = (
    "the model returns the same with all its heads masked, as it reads nothing of it or rounds it to codes, so the cut "
    "is proven on what the layer itself gives"
)


@dataclass(frozen=True, eq=False)
class TriedCut:
    """What came of a cut, with the model that it made, if any."""

    cut: Cut
    pruned: nn.Module | None = None


def way_of(pruned: nn.Module) -> str:
    """How a cut was made: "whole" where all that makes a head is gone; else what stayed, as "q and k stay whole".

    Args:
        pruned: the model that was made.
    """
    record = record_of(pruned)
    told = " and ".join(dict.fromkeys(record.ways.values())) if record is not None else ""
    return (
        told.replace("zeros stand where its heads were, so it is smaller and no faster", "padded with zeros").replace(
            ";", " and"
        )
        or "whole"
    )


def try_cuts(model: nn.Module, anatomy: Anatomy, inputs: Mapping[str, Any]) -> Iterator[TriedCut]:
    """Cut a head of one site of each attention class; of those that share keys also the whole group.

    Args:
        model: left as it was.
        anatomy: its sites.
        inputs: arguments of its forward.
    """
    for site in sites_to_cut(model, anatomy):
        for what, positions in _plans(site).items():
            yield _try(model, anatomy, inputs, site, what, positions)


def sites_to_cut(model: nn.Module, anatomy: Anatomy) -> list[Site]:
    """The first site of each class of attention, kind and half of the model, four at most, of those with several heads.

    Args:
        model: the model.
        anatomy: its sites.
    """
    first: dict[tuple[str, bool], Site] = {}
    for site in anatomy.sites:
        if site.n_heads > 1:
            first.setdefault((_place(model, site), site.n_heads == site.n_kv_heads), site)
    return [*first.values()][:_MOST_SITES]


def _plans(site: Site) -> dict[str, list[int]]:
    """What is cut, as positions on the head axis."""
    if site.n_heads == site.n_kv_heads:
        return {"head": [1]}
    shared = [position for position, kv in enumerate(site.kv_of_query) if kv == site.kv_of_query[0]]
    plans = {"group": shared} if len(shared) < site.n_heads else {}
    return plans | ({"query": [1]} if len(shared) > 1 else {})


def _try(
    model: nn.Module, anatomy: Anatomy, inputs: Mapping[str, Any], site: Site, what: str, positions: list[int]
) -> TriedCut:
    place = _place(model, site)
    layers = _with_the_same_weights(model, anatomy, site)
    heads = [HeadId(one.layer, one.head_ids[position]) for one in layers for position in positions]
    try:
        pruned = prune(model, heads, batches=[inputs], anatomy=anatomy, example=inputs)
    except HeadscopeError as error:
        return TriedCut(Cut(what, place, "refused", why=first_sentence(str(error))))
    except Exception as error:
        return TriedCut(Cut(what, place, "failed", why=f"{type(error).__name__}: {first_sentence(str(error))}"))
    others = [position for position in range(site.n_heads) if position not in positions][: len(positions)]
    status, why = _judge(model, pruned, inputs, layers, (positions, others))
    way = way_of(pruned) if status == "exact" else ""
    return TriedCut(Cut(what, place, status, way, why), pruned)


def _with_the_same_weights(model: nn.Module, anatomy: Anatomy, site: Site) -> list[Site]:
    """The sites of one module, and those whose queries, keys or values are made by the same weights."""

    def weights(one: Site) -> set[int]:
        parts = (*one.query, *one.key, *one.value)
        return {id(getattr(model.get_submodule(part.module), part.parameter)) for part in parts}

    own = weights(site)
    return [other for other in anatomy.sites if other.module_name == site.module_name or own & weights(other)]


def _judge(
    model: nn.Module,
    pruned: nn.Module,
    inputs: Mapping[str, Any],
    sites: Sequence[Site],
    heads: tuple[list[int], list[int]],
) -> tuple[str, str]:
    """A status and a reason: "wrong" where it differs from the model with these heads masked; "unproven" where it does
    not differ from the one with other heads masked either.

    A layer that the model runs and reads nothing of (a pooling head, say, beside a tower of which all positions are
    read) is judged by what it gives itself.
    """
    gap, control = _gaps(model, pruned, inputs, sites, heads)
    if gap > _TOLERANCE or control <= 10 * max(gap, _TOLERANCE):  # in float32 rounding may be as large as that
        try:
            whole, given = finer(model, inputs)
            gap, control = _gaps(whole, finer(pruned, inputs)[0], given, sites, heads)
        except Exception as error:  # some models insist on float32: what is large may be rounded by more there
            size = max(float(one.abs().max()) for one in outputs_of(model, inputs) if one.numel())
            if _TOLERANCE < gap <= _TOLERANCE * size < control / 10:
                return "exact", ""
            if gap > _TOLERANCE:
                return (
                    "wrong",
                    f"outputs are {gap:.1e} away from the masked model's ({type(error).__name__} in float64)",
                )
    if gap > _TOLERANCE:
        return "wrong", f"outputs are {gap:.1e} away from the masked model's"
    if control == 0 and _is_unread(model, inputs, sites):
        gap, control = _gaps(model, pruned, inputs, sites, heads, functools.partial(_given_by, sites=sites))
        if _TOLERANCE < gap < math.inf:
            return "wrong", f"what {sites[0].module_name} gives is {gap:.1e} away from what it gives masked"
        if 10 * max(gap, _TOLERANCE) < control < math.inf:
            return "exact", f"{sites[0].module_name}: {_UNREAD}"
    if control <= 10 * gap or control == 0:
        return "unproven", f"masking other heads changes outputs by {control:.1e} only"
    return "exact", ""


def _is_unread(model: nn.Module, inputs: Mapping[str, Any], sites: Sequence[Site]) -> bool:
    """Whether a model returns the same with all heads of a layer masked: it reads nothing of it, or rounds."""
    whole = masked(model, inputs, sites, range(sites[0].n_heads))
    return apart(outputs_of(whole, inputs), outputs_of(model, inputs)) == 0


def _given_by(model: nn.Module, inputs: Mapping[str, Any], sites: Sequence[Site]) -> list[Tensor]:
    """What layers themselves give: the first tensor of each call, for maps come after it and have an axis of heads."""
    made: list[Tensor] = []
    with ExitStack() as stack:
        for name in dict.fromkeys(site.module_name for site in sites):
            hook = model.get_submodule(name).register_forward_hook(lambda _, __, out: made.extend(floats(out)[:1]))
            stack.callback(hook.remove)
        outputs_of(model, inputs)
    return [one.detach().clone() for one in made]


def _gaps(
    model: nn.Module,
    pruned: nn.Module,
    inputs: Mapping[str, Any],
    sites: Sequence[Site],
    heads: tuple[list[int], list[int]],
    given: Callable[[nn.Module, Mapping[str, Any]], list[Tensor]] = outputs_of,
) -> tuple[float, float]:
    """How far a cut model is from the one with its heads masked, and from the one with other heads masked."""
    own, other = heads
    made = given(pruned, inputs)
    gap = apart(made, given(masked(model, inputs, sites, own), inputs))
    return gap, apart(made, given(masked(model, inputs, sites, other), inputs))


def masked(model: nn.Module, inputs: Mapping[str, Any], sites: Sequence[Site], positions: Sequence[int]) -> nn.Module:
    """A copy in which what heads hand to the output projection is zero.

    By a plain hook before the projection; where that is never called as a module, by zeros in its weight.

    Args:
        model: left as it was.
        inputs: arguments of its forward.
        sites: those that lose these heads.
        positions: of the heads, on the head axis.
    """
    twin = copy.deepcopy(model)
    outputs: dict[str, Slices] = {}
    for site in sites:
        assert site.output is not None  # it was cut
        outputs[site.output.name] = site.output
    for output in outputs.values():
        columns = sorted(column for position in positions for column in output.heads[position])
        if not (output.is_module and _mask(twin, twin.get_submodule(output.module), columns, inputs)):
            _zero_columns(twin.get_submodule(output.module), output, columns)
    return twin


def _mask(twin: nn.Module, projection: nn.Module, columns: list[int], inputs: Mapping[str, Any]) -> bool:
    """Mask what a projection is given; whether it is ever called as a module."""
    called = []

    def before(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        called.append(True)
        z: Tensor = given[0].clone()
        z.movedim(1 if isinstance(projection, nn.Conv1d | nn.Conv2d) else -1, -1)[..., columns] = 0
        return (z, *given[1:])

    handle = projection.register_forward_pre_hook(before)
    outputs_of(twin, inputs)
    if not called:
        handle.remove()
    return bool(called)


def _zero_columns(module: nn.Module, output: Slices, columns: list[int]) -> None:
    """Zeros in the weight, for a projection that is no module, or is never called as one."""
    weight = getattr(module, output.parameter)
    places = torch.arange(weight.numel()).reshape(weight.shape)
    if output.layout:
        places = einops.rearrange(places, output.layout)
    elif type(module).__name__ == "Conv1D":  # of transformers: (in, out)
        places = places.T
    with torch.no_grad():
        weight.view(-1)[places[:, columns].flatten()] = 0


def _place(model: nn.Module, site: Site) -> str:
    """Where a site is, in words: class, part of the model, kind."""
    part = site.module_name.partition(".")[0]
    return f"{type(model.get_submodule(site.module_name)).__name__} in {part or 'the model'} ({site.kind})"
