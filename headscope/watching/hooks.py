"""Watching: the one place where hooks meet anatomy. `capture` and `observe` are built on it."""

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from headscope._support.running import uncompiled, unwrapped
from headscope.anatomy import ROUTES, Call
from headscope.anatomy.weights import head_weights
from headscope.errors import AnatomyError, UnknownNameError
from headscope.heads import Site

__all__ = ["TENSORS", "SiteTensors", "watch"]

TENSORS = ("q", "k", "v", "pattern", "z", "bias", "gated_z", "contribution", "written")
_FROM_OUTPUT = {"gated_z", "contribution", "written"}

SiteTensors = dict[str, Tensor]


@contextmanager
def watch(
    model: nn.Module,
    sites: Sequence[Site],
    want: Collection[str],
    receive: Callable[[Site, SiteTensors], None],
    on_forward: Callable[[], None] | None = None,
) -> Iterator[None]:
    """While open, hand the wanted tensors of each site to `receive` as soon as they are made.

    Args:
        model: the model that will be run.
        sites: which of its sites.
        want: names out of `TENSORS`.
        receive: called once per site and forward pass, in the order in which the tensors become complete.
        on_forward: called before each forward pass of the whole model.

    Raises:
        UnknownNameError: a tensor that does not exist.
        AnatomyError: contributions were asked of a site whose heads are mixed before the projection.
    """
    unknown = [name for name in want if name not in TENSORS]
    if unknown:
        raise UnknownNameError(f"there is no tensor named {unknown[0]!r}; there are: {', '.join(TENSORS)}")
    _check_contributions(sites, want)
    model = unwrapped(model)
    watcher = _Watcher(model, tuple(sites), frozenset(want), receive, on_forward)
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        stack.enter_context(uncompiled())
        handle = model.register_forward_pre_hook(_on_this_thread(watcher.restart), prepend=True)
        stack.callback(handle.remove)
        if _FROM_OUTPUT & set(want):
            for name in {site.output.module for site in sites if site.output is not None}:
                handle = modules[name].register_forward_pre_hook(_on_this_thread(watcher.before_output))
                stack.callback(handle.remove)
        for route in sorted({site.route for site in sites}):
            own = [modules[site.module_name] for site in sites if site.route == route]
            stack.enter_context(ROUTES[route]().listen(model, watcher.after_attention, own))
        yield


def _on_this_thread(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook that stays silent on other threads, which may run the same model under watchers of their own."""
    thread = threading.get_ident()
    return lambda *args: hook(*args) if threading.get_ident() == thread else None


def _check_contributions(sites: Sequence[Site], want: Collection[str]) -> None:
    asked = sorted(_FROM_OUTPUT & set(want))
    for site in sites:
        if asked and not site.prunable:
            raise AnatomyError(
                f"layer {site.layer} ({site.module_name}) cannot tell {asked[0]} by head: between z and the output "
                "projection the heads are mixed, or there is no projection; leave it out of want= or name layers="
            )


@dataclass
class _Watcher:
    """State of one forward pass: which call of which module comes next, which sites wait for their projection."""

    model: nn.Module
    sites: tuple[Site, ...]
    want: frozenset[str]
    receive: Callable[[Site, SiteTensors], None]
    on_forward: Callable[[], None] | None
    _calls: dict[nn.Module, int] = field(default_factory=dict)
    _waiting: dict[nn.Module, list[tuple[Site, SiteTensors, Call]]] = field(default_factory=dict)
    _turned: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        modules = dict(self.model.named_modules())
        self._site = {(modules[site.module_name], site.call): site for site in self.sites}
        self._turns = {modules[s.module_name]: 1 + len(s.shares_module_with) for s in self.sites}
        self._output = {s.layer: modules[s.output.module] for s in self.sites if s.output is not None}

    def restart(self, *_: object) -> None:
        self._calls.clear()
        self._waiting.clear()
        if self.on_forward is not None:
            self.on_forward()

    def after_attention(self, call: Call) -> None:
        number = self._calls.get(call.module, 0)
        self._calls[call.module] = number + 1
        # counted round: without a restart, a part of the model is run again on its own
        site = self._site.get((call.module, number % self._turns[call.module]))
        if site is None:
            return
        tensors = {name: _take(name, site, call) for name in TENSORS if name in self.want and name not in _FROM_OUTPUT}
        if self.want & _FROM_OUTPUT:
            self._waiting.setdefault(self._output[site.layer], []).append((site, tensors, call))
        else:
            self.receive(site, tensors)

    def before_output(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        waiting = self._waiting.get(module)
        if not waiting:
            return
        site, tensors, call = waiting.pop(0)
        gated = _by_head(args[0], site, call.z)
        if "gated_z" in self.want:
            tensors["gated_z"] = gated
        if "contribution" in self.want:
            weights = torch.stack(head_weights(module, site))
            tensors["contribution"] = torch.einsum("bhtd,hwd->bhtw", gated, weights)
        if "written" in self.want:
            if site.layer not in self._turned:
                weights = torch.stack(head_weights(module, site)).detach().double()
                self._turned[site.layer] = torch.linalg.qr(weights, mode="r")[1].to(gated.dtype)
            tensors["written"] = torch.einsum("bhtd,hrd->bhtr", gated, self._turned[site.layer])
        self.receive(site, tensors)


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
    """The projection's input as (batch, head, position, value_dim)."""
    assert site.output is not None
    batch, _, positions, _ = z.shape
    rows = entering.reshape(batch, positions, -1)
    heads, width = site.n_heads, len(site.output.heads[0])
    columns = [column for own in site.output.heads for column in own]
    if columns != list(range(rows.shape[-1])):
        rows = rows[..., columns]
    return rows.unflatten(-1, (heads, width)).transpose(1, 2)
