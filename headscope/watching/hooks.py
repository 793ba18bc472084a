"""Watching: the one place where hooks meet anatomy. `capture` and `observe` are built on it."""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from headscope._support.adapters import several_adapters
from headscope._support.around import around
from headscope._support.running import unwrapped
from headscope.anatomy import ROUTES, Call, Place
from headscope.anatomy.check import for_each_head
from headscope.anatomy.entering import at_output
from headscope.anatomy.fast_path import plainly
from headscope.anatomy.features import features_last
from headscope.anatomy.fitting import AGAIN
from headscope.anatomy.route import key_of
from headscope.anatomy.weights import head_weights, is_stored
from headscope.errors import AnatomyError, UnknownNameError
from headscope.sites import Site, Slices

__all__ = ["TENSORS", "SiteTensors", "counted", "joined", "watch"]

TENSORS = ("q", "k", "v", "pattern", "z", "bias", "gated_z", "contribution", "written")
_OTHERWISE = {"python": "leave it out of want= or name layers=", "shell": "ask for something else, with --of"}
_BY_WEIGHTS = {"contribution", "written"}  # made with the output projection's weights
_FROM_OUTPUT = {"gated_z", *_BY_WEIGHTS}

SiteTensors = dict[str, Tensor]


@contextmanager
def watch(
    model: nn.Module,
    sites: Sequence[Site],
    want: Collection[str],
    receive: Callable[[Site, SiteTensors], None],
    on_forward: Callable[[], None] | None = None,
    *,
    through: bool | None = None,
) -> Iterator[None]:
    """While open, hand the wanted tensors of each site to `receive` as soon as they are made.

    Args:
        model: the model that will be run.
        sites: which of its sites.
        want: names out of `TENSORS`.
        receive: called once per site and forward pass, in the order in which the tensors become complete.
        on_forward: called before each forward pass of the whole model.
        through: not None: z and the map are to lie on the model's own graph; True: also where the model has no map of
            its own, so that gradients have to go through the one that is taken.

    Raises:
        UnknownNameError: a tensor that does not exist.
        AnatomyError: contributions were asked of a site whose heads are mixed before the projection; a site has other
            heads than it is said to have; or, when it ends, contributions were asked of rows that ran under adapters of
            their own.
    """
    unknown = [name for name in want if name not in TENSORS]
    if unknown:
        raise UnknownNameError(f"there is no tensor named {unknown[0]!r}; there are: {', '.join(TENSORS)}")
    _check_contributions(sites, want)
    model = unwrapped(model)
    watcher = _Watcher(model, tuple(sites), frozenset(want), receive, on_forward, through)
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        stack.enter_context(plainly(model))
        stack.enter_context(around(model, before=watcher.restart, leave=watcher.end, first=True))
        for name, site in {site.output: site for site in sites if watcher.waits(site)}.items():
            assert name is not None
            stack.enter_context(at_output(model, site, functools.partial(watcher.before_output, name)))
        for route in sorted({site.route for site in sites}):
            own = [Place(modules[site.module_name], site.spelling) for site in sites if site.route == route]
            stack.enter_context(ROUTES[route]().listen(model, watcher.after_attention, own))
        try:
            yield
        except Exception as error:
            if watcher.mixed:
                raise AnatomyError(watcher.mixed, **_OTHERWISE) from error
            raise
    if watcher.mixed:
        raise AnatomyError(watcher.mixed, **_OTHERWISE)


@contextmanager
def counted(model: nn.Module, sites: Sequence[Site]) -> Iterator[None]:
    """While open, refuse a forward pass in which a site has other heads than it is said to have.

    However often it runs: nothing is read there but how many heads there are.

    Args:
        model: the model that will be run.
        sites: which of its sites.

    Raises:
        AnatomyError: a number of heads, or their width, is another.
    """
    modules = dict(unwrapped(model).named_modules())
    places = {site: Place(modules[site.module_name], _however_often(site.spelling)) for site in sites}
    known = {(place.module, place.key): site for site, place in places.items()}

    def check(call: Call) -> None:
        if site := known.get((call.module, call.key)):
            _check_heads(site, call)

    with ExitStack() as stack:
        stack.enter_context(plainly(model))
        for route in sorted({site.route for site in sites}):
            own = [place for site, place in places.items() if site.route == route]
            stack.enter_context(ROUTES[route]().listen(unwrapped(model), check, own))
        yield


def _however_often(spelling: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return spelling if spelling is None else {**spelling, "totals": {}}


def _check_heads(site: Site, call: Call) -> None:
    heads, width = call.z.shape[1], call.z.shape[-1]
    if (heads, width) != (site.n_heads, site.value_dim):
        raise AnatomyError(
            f"layer {site.layer} ({site.module_name}) has {heads} heads of {width} dimensions here, and {site.n_heads} "
            f"of {site.value_dim} in the anatomy: it is of another model, or this one was changed since; {AGAIN}"
        )


def _check_contributions(sites: Sequence[Site], want: Collection[str]) -> None:
    asked = sorted(_FROM_OUTPUT & set(want))
    for site in sites:
        refused = next((name for name in want if name in site.refused), None)
        if refused is not None:
            raise AnatomyError(
                f"layer {site.layer} ({site.module_name}): {refused} cannot be had: {site.refused[refused]}",
                **_OTHERWISE,
            )
        if asked and not site.apart:
            raise AnatomyError(
                f"layer {site.layer} ({site.module_name}) cannot tell {asked[0]} by head: between z and the output "
                "projection the heads are mixed, or there is no projection",
                **_OTHERWISE,
            )
        if asked and not site.rows and site.gated:
            raise AnatomyError(
                f"layer {site.layer} ({site.module_name}) cannot tell {asked[0]} by position: rows reach the output "
                "projection in an order of their own, and changed",
                **_OTHERWISE,
            )


@dataclass
class _Watcher:
    """State of one forward pass: which call of which module comes next, which sites wait for their projection."""

    model: nn.Module
    sites: tuple[Site, ...]
    want: frozenset[str]
    receive: Callable[[Site, SiteTensors], None]
    on_forward: Callable[[], None] | None
    through: bool | None
    _calls: dict[tuple[nn.Module, str], int] = field(default_factory=dict)
    _waiting: dict[Slices, list[tuple[Site, SiteTensors, Call]]] = field(default_factory=dict)
    _turned: dict[int, Tensor] = field(default_factory=dict)
    _ahead: dict[tuple[nn.Module, str], list[Site]] = field(default_factory=dict)
    _whole: bool = False
    mixed: str = ""

    def __post_init__(self) -> None:
        modules = dict(self.model.named_modules())
        self._site: dict[tuple[nn.Module, str, int], Site] = {}
        self._turns: dict[tuple[nn.Module, str], int] = {}
        for site in self.sites:
            place = (modules[site.module_name], key_of(site.spelling))
            self._site[*place, site.call] = site
            self._turns[place] = 1 + len(site.shares_module_with)
        # what has to be run to be read is read now, before anything watches it
        asked = [site for site in self.sites if self.want & _BY_WEIGHTS and site.output is not None]
        self._read = {s.layer: torch.stack(head_weights(self.model, s)) for s in asked if not is_stored(self.model, s)}

    def end(self) -> None:
        self._whole = False

    def restart(self, *_: object) -> None:
        self._whole = True
        self._calls.clear()
        self._ahead.clear()
        self._waiting.clear()
        if self.on_forward is not None:
            self.on_forward()

    def waits(self, site: Site) -> bool:
        """Whether a site's tensors are handed on only when its projection reads them.

        Some models call the attention function once for each picture of a batch, and read all pictures at once.
        """
        return site.output is not None and (site.route == "registry" or bool(self.want & _FROM_OUTPUT))

    def after_attention(self, call: Call) -> Tensor | None:
        site = self._next((call.module, call.key), call)
        if site is None:
            return None
        _check_heads(site, call)
        asked = [name for name in TENSORS if name in self.want and name not in _FROM_OUTPUT]
        tensors = {name: _take(name, site, call) for name in asked}
        tensors |= {name: tensors[name].clone() for name in asked if name in site.copied}
        z = None if self.through is None else _on_the_way(site, call, tensors, self.through)
        if self.waits(site):
            assert site.output is not None
            self._waiting.setdefault(site.output, []).append((site, tensors, call))
        else:
            self.receive(site, tensors)
        return z

    def _next(self, place: tuple[nn.Module, str], call: Call) -> Site | None:
        """Which site a call is; None for one that nobody watches."""
        ahead = self._ahead.setdefault(place, [])
        number, turns = self._calls.get(place, 0) + len(ahead), self._turns[place]
        if ahead and number >= turns:
            return ahead[-1]  # nothing has read that one yet: a further picture
        if self._whole and number >= turns:
            raise AnatomyError(
                f"{type(call.module).__name__} attends more often in one forward pass here than the {turns} times that "
                "it did in the probe; call discover with an example like this input"
            )
        # counted round: without a restart, a part of the model is run again on its own
        site = self._site.get((*place, number % turns))
        if site is not None and self.waits(site) and site.route == "registry":
            ahead.append(site)
        else:
            self._calls[place] = self._calls.get(place, 0) + 1
        return site

    def before_output(self, name: Slices, entering: Tensor, axes: tuple[int, ...]) -> None:
        waiting = self._waiting.get(name, [])
        # those that this call reads: heads of two attentions may stand side by side
        read = [one for one in waiting if one[0].output_call == waiting[0][0].output_call]
        self._waiting[name] = waiting[len(read) :]
        by_site: dict[int, list[tuple[Site, SiteTensors, Call]]] = {}
        for one in read:
            by_site.setdefault(one[0].layer, []).append(one)
        for (site, _, call), *_ in by_site.values():
            place = (call.module, call.key)
            if site in self._ahead.get(place, []):
                self._ahead[place].remove(site)
                self._calls[place] = self._calls.get(place, 0) + 1
        for own in by_site.values():
            site, tensors = own[0][0], joined([tensors for _, tensors, _ in own])
            z = torch.cat([call.z for _, _, call in own], dim=2) if len(own) > 1 else own[0][2].z
            if self.want & _FROM_OUTPUT and (not self.want & _BY_WEIGHTS or self._one_adapter(site)):
                self._add_written(site, tensors, z, features_last(entering, axes))
            self.receive(site, tensors)

    def _one_adapter(self, site: Site) -> bool:
        """Whether all rows run under the active adapter, whose weights are read; else it is noted why not.

        Nothing is raised here: PEFT leaves its own hooks on a model whose forward raises.
        """
        assert site.output is not None
        several = several_adapters(self.model.get_submodule(site.output.module))
        if several:
            self.mixed = f"layer {site.layer} ({site.output.module}): {several}"
        return not several

    def _add_written(self, site: Site, tensors: SiteTensors, z: Tensor, entering: Tensor) -> None:
        gated = _by_head(entering, site, z) if site.rows else z
        if "gated_z" in self.want:
            tensors["gated_z"] = gated
        if "contribution" in self.want:
            tensors["contribution"] = torch.einsum("bhtd,hwd->bhtw", gated, self._weights(site).to(gated.dtype))
        if "written" in self.want:
            if site.layer not in self._turned:
                weights = self._weights(site).detach().double()
                self._turned[site.layer] = torch.linalg.qr(weights, mode="r")[1].to(gated.dtype)
            tensors["written"] = torch.einsum("bhtd,hrd->bhtr", gated, self._turned[site.layer])

    def _weights(self, site: Site) -> Tensor:
        read = self._read.get(site.layer)
        return torch.stack(head_weights(self.model, site)) if read is None else read


def joined(calls: Sequence[SiteTensors]) -> SiteTensors:
    """The tensors of several calls that are one text (one picture after another) in one sequence.

    Queries of one call do not see the keys of another: there the map is 0, and the bias -inf.

    Args:
        calls: by name, (batch, head, position, …) each; maps (batch, head, query, key).
    """
    if len(calls) == 1:
        return calls[0]
    made: SiteTensors = {}
    for name in calls[0]:
        parts = [call[name] for call in calls]
        if name not in ("pattern", "bias"):
            made[name] = torch.cat(parts, dim=2)
            continue
        heads = max(part.shape[1] for part in parts)
        sizes = [part.shape[-2:] for part in parts]
        keys = sum(size[1] for size in sizes)
        rows, before = [], 0
        for part, (_, own) in zip(parts, sizes, strict=True):
            whole = part.expand(part.shape[0], heads, -1, -1)
            value = 0.0 if name == "pattern" else -torch.inf
            rows.append(functional.pad(whole, (before, keys - before - own), value=value))
            before += own
        made[name] = torch.cat(rows, dim=2)
    return made


def _on_the_way(site: Site, call: Call, tensors: SiteTensors, through: bool) -> Tensor | None:
    """z for the model to go on with, so that z and the map that were taken lie on its graph; the numbers are its own.

    Where the model has no map of its own, z is made of the one that was taken, as far as gradients go, if they are to
    go through. None where there is no gradient, or where dropout stands between the two.
    """
    if not call.z.requires_grad or call.module.training or not tensors.keys() & {"pattern", "z"}:
        return None
    if {"pattern", "v"} & site.refused.keys():
        return None
    own: Tensor | None
    if call.map is not None and call.map.requires_grad:
        own, z = call.map, call.z
    elif not through:
        own, z = tensors.get("pattern"), call.z
    else:
        taken = tensors["pattern"] if "pattern" in tensors else call.pattern()
        own, mixed = taken, taken @ for_each_head(call.v, site.kv_of_query)
        z = call.z.detach() + (mixed - mixed.detach())
    tensors |= {name: one for name, one in (("pattern", own), ("z", z)) if name in tensors and one is not None}
    return z


def _take(name: str, site: Site, call: Call) -> Tensor:
    if name == "pattern":
        return call.pattern()
    if name == "bias":
        return call.bias(site.scaling)
    tensor: Tensor = getattr(call, name)
    if name == "k" and tensor.shape[1] != site.n_kv_heads:  # repeated by the model before the call
        return tensor[:, [site.kv_of_query.index(head) for head in range(site.n_kv_heads)]]
    if name == "v" and tensor.shape[1] != site.n_value_heads:
        return tensor[:, [site.kv_of_query.index(head) for head in range(site.n_value_heads)]]
    return tensor


def _by_head(entering: Tensor, site: Site, z: Tensor) -> Tensor:
    """The projection's input, features last, as (batch, head, position, value_dim)."""
    assert site.output is not None
    batch, _, positions, _ = z.shape
    if entering.shape[:-1].numel() != batch * positions:
        raise AnatomyError(
            f"layer {site.layer} ({site.module_name}): its output projection reads {entering.shape[:-1].numel()} rows "
            f"where attention made {batch * positions}; it runs another way on this input than in the probe"
        )
    if site.rows == "t b":
        rows = entering.reshape(positions, batch, -1).transpose(0, 1)
    else:
        rows = entering.reshape(batch, positions, -1)
    heads, width = site.n_heads, len(site.output.heads[0])
    columns = [column for own in site.output.heads for column in own]
    if columns != list(range(rows.shape[-1])):
        rows = rows[..., columns]
    return rows.unflatten(-1, (heads, width)).transpose(1, 2)
