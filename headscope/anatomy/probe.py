"""The probe's bookkeeping during one forward: which linear layers made each head's q, k, v, and which one reads z."""

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from headscope._support.around import around
from headscope.anatomy.check import check_call, scaling_of, tolerance
from headscope.anatomy.features import feature_axis, features_last
from headscope.anatomy.finite import check_finite
from headscope.anatomy.graph import HeadRows, behind, groups_of, own_rows, run_of, touched_by
from headscope.anatomy.linear import NEARLY, is_plain, layer_matrix, linear_layers
from headscope.anatomy.route import Call, Watch, claiming, is_claimed
from headscope.anatomy.spelling import Weighting
from headscope.errors import AnatomyError

__all__ = ["TENSORS", "Layer", "Probe", "Sighting"]

_NO_WAY_ON = (
    "a function of autograd's own makes z, so no gradient tells what reads it; describe it (headscope.describe)"
)
TENSORS = ("q", "k", "v", "pattern", "z", "bias", "gated_z", "contribution", "written")  # that may be asked for


class Layer(NamedTuple):
    """A linear layer: a module; or a parameter that a forward weights data by, and how it lies there."""

    module: nn.Module
    parameter: str = "weight"
    layout: str = ""


@dataclass
class Sighting:
    """One attention call as the probe saw it; modules where `Site` has names."""

    module: nn.Module
    call: int
    route: str
    kind: str
    n_heads: int
    n_kv_heads: int
    n_value_heads: int
    head_dim: int
    value_dim: int
    scaling: float
    kv_of_query: tuple[int, ...]
    query: dict[Layer, HeadRows]
    key: dict[Layer, HeadRows]
    value: dict[Layer, HeadRows]
    z: Tensor
    finite: bool
    spelled: str
    output: tuple[Layer, HeadRows] | None = None
    rows: str = "b t"
    output_call: int = 0
    output_runs: int = 0
    gated: bool = False
    entangled: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    copied: tuple[str, ...] = ()
    batch: str = "b"
    lands: range = range(0)
    made: list[tuple[GradientEdge, Callable[[Tensor], Tensor]]] = field(default_factory=list)

    def refuse_all(self, reason: str) -> None:
        """Nothing of this site can be had."""
        self.refused |= dict.fromkeys(TENSORS, reason)
        self.entangled = list(dict.fromkeys([*self.entangled, "o"]))


@dataclass(frozen=True, eq=False)
class _Leaf:
    """What a linear layer put out: the graph of what comes after begins there."""

    layer: Layer
    tensor: Tensor
    features: tuple[int, ...]
    first: int
    entering: Tensor | None


class Probe(Watch):
    """Collects sightings while a model runs once with gradients enabled."""

    def __init__(self, model: nn.Module) -> None:
        self.sightings: list[Sighting] = []
        self._model = model
        self._leaves: dict[int, _Leaf] = {}
        self._calls: dict[tuple[nn.Module, str], int] = {}
        self._runs: Counter[Layer] = Counter()
        self._generator = torch.Generator().manual_seed(0)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Listen to every linear layer."""
        try:
            with contextlib.ExitStack() as stack:
                for module in linear_layers(self._model):
                    stack.enter_context(around(module, after=functools.partial(self._after_linear, module)))
                yield
        finally:
            self._leaves.clear()
            for sighting in self.sightings:
                sighting.output_runs = 0 if sighting.output is None else self._runs[sighting.output[0]]
                sighting.made.clear()  # a graph hangs on it

    def receiver(self, route: str) -> Callable[[Call], None]:
        """What a route hands its calls to."""
        return lambda call: self._after_attention(call, route)

    def weighted(self, module: nn.Module, weighting: Weighting, entering: Tensor, out: Tensor) -> Tensor:
        owner, _, name = weighting.parameter.rpartition(".")
        layer = Layer(self._model.get_submodule(owner), name, weighting.layout)
        return self._after_layer(layer, entering, out, weighting.entering, weighting.leaving, weighting.first)

    def _after_linear(self, module: nn.Module, args: tuple[Any, ...], _: Any, out: Any) -> Tensor | None:
        if not isinstance(out, Tensor) or is_claimed():  # run on a basis, to be read
            return None
        entering = args[0] if args and isinstance(args[0], Tensor) else None
        with claiming():  # no operation of the model
            return self._after_module(module, entering, out)

    def _after_module(self, module: nn.Module, entering: Tensor | None, out: Tensor) -> Tensor:
        axes = tuple((feature_axis(module, one),) for one in (entering, out) if one is not None)
        return self._after_layer(Layer(module), entering, out, axes[0], axes[-1])

    def _after_layer(
        self,
        layer: Layer,
        entering: Tensor | None,
        out: Tensor,
        ins: tuple[int, ...],
        outs: tuple[int, ...],
        first: int = 0,
    ) -> Tensor:
        if entering is not None and entering.requires_grad:
            for sighting in self._find_output(layer, entering, ins):
                self._check_output(sighting, layer, features_last(entering, ins), features_last(out, outs))
        self._runs[layer] += 1
        leaf = out.detach().requires_grad_()
        self._leaves[id(leaf)] = _Leaf(layer, leaf, outs, first, entering)
        return leaf.clone()  # a copy: the model may go on in place, which a leaf forbids

    def _after_attention(self, call: Call, route: str) -> None:
        if call.q.shape[1] == 0:  # a layer that has lost all its heads
            return
        if route == "described":
            self._drop_within(call)
        rows = {name: self._rows(getattr(call, name)) for name in ("q", "k", "v")}
        groups, value_groups = groups_of(call.k, rows["k"]), groups_of(call.v, rows["v"])
        sighting = Sighting(
            module=call.module,
            call=self._calls.get((call.module, call.key), 0),
            route=route,
            kind=self._kind(call),
            n_heads=call.q.shape[1],
            n_kv_heads=len(set(groups)),
            n_value_heads=len(set(value_groups)),
            head_dim=call.q.shape[-1],
            value_dim=call.v.shape[-1],
            scaling=scaling_of(call),
            kv_of_query=self._kv_of_query(call, groups),
            query=own_rows(rows["q"], range(call.q.shape[1])),
            key=own_rows(rows["k"], groups),
            value=own_rows(rows["v"], value_groups),
            z=call.z.detach().clone(),
            # all four: a fused kernel may make zeros of NaN
            finite=all(bool(torch.isfinite(tensor).all()) for tensor in (call.q, call.k, call.v, call.z)),
            spelled=call.key,
            # edges, not tensors: a model may go on in place with what it made
            made=[(get_gradient_edge(tensor), way) for tensor, way, _ in call.made if tensor.requires_grad],
        )
        sighting.entangled = [name[0] for name in ("query", "key", "value") if not getattr(sighting, name)]
        sighting.refused = check_call(call, sighting.scaling, sighting.kv_of_query)
        if not call.z.requires_grad and any(one.requires_grad for one in (call.q, call.k, call.v)):
            sighting.refused |= dict.fromkeys(("contribution", "written"), _NO_WAY_ON)
        self._calls[call.module, call.key] = sighting.call + 1
        self.sightings.append(sighting)

    def _drop_within(self, call: Call) -> None:
        """What the user described holds whatever was recognised between its q, k, v and its z."""
        nodes = behind(call.z)[1]
        inner = set(call.module.modules())
        within = [
            one
            for one in self.sightings
            if (one.output is None and any(edge.node in nodes for edge, _ in one.made))
            or (one.module in inner and one.refused.get("written") == _NO_WAY_ON)
        ]
        self.sightings = [one for one in self.sightings if one not in within]

    def _kind(self, call: Call) -> str:
        if self._is_cross(call):
            return "cross"
        with torch.no_grad():
            try:
                pattern = call.pattern()
            except AnatomyError:
                return "self"
            # queries that see nothing (padding on the left) see all exactly alike
            blind = pattern.amax(-1, keepdim=True) == pattern.amin(-1, keepdim=True)
            blind &= ~blind.all()
            pattern = pattern.masked_fill(blind, 0)
            if pattern.shape[-1] > pattern.shape[-2]:  # blocks on both sides of a window may be filled up
                used = run_of(pattern.amax((0, 1, 2)))
                pattern = pattern[..., used.start : used.stop] if used else pattern
            # with keys from before (a cache, a prefix) the last query sees the last key
            ahead = pattern.triu(1 + max(pattern.shape[-1] - pattern.shape[-2], 0))
        # a single query tells nothing
        return "self" if ahead.abs().max() > 0 or ahead.shape[-1] < 2 or ahead.shape[-2] < 2 else "causal"

    def _is_cross(self, call: Call) -> bool:
        """Whether keys are made of something else than queries: of no tensor that these are made of, one layer on."""
        own, keys = (self._made_of(getattr(call, name)) for name in ("q", "k"))
        if not own or not keys:  # queries or keys that no layer made
            return call.q.shape[2] != call.k.shape[2]
        # keys may be thinned out by a layer of their own
        theirs, ours = set(keys).union(*map(self._made_of, keys.values())), set(own)
        outputs = [one.output[0] for one in self.sightings if one.output is not None]
        for tensor in own.values():  # and queries, by one layer; what two streams have exchanged is not that
            layers = [self._leaves[id(leaf)].layer for leaf in behind(tensor)[0] if id(leaf) in self._leaves]
            if len(layers) == 1 and layers[0] not in outputs:
                ours |= set(self._made_of(tensor))
        return not ours & theirs

    def _made_of(self, tensor: Tensor) -> dict[Any, Tensor]:
        """What enters the layers that make a tensor, each by itself and by all that it is made of in turn."""
        found: dict[Any, Tensor] = {}
        for leaf in (self._leaves[id(one)] for one in behind(tensor)[0] if id(one) in self._leaves):
            if leaf.entering is not None:
                leaves, nodes = behind(leaf.entering)
                shared = {node for node in nodes if not hasattr(node, "variable")}  # not the weights: these are shared
                keys = [id(one) for one in leaves if id(one) in self._leaves] + [leaf.entering.data_ptr(), *shared]
                found |= dict.fromkeys(keys, leaf.entering)
        return found

    def _rows(self, tensor: Tensor) -> list[dict[Layer, frozenset[int]]]:
        """For each head of (batch, head, position, dim): the rows of each linear layer that make it."""
        leaves = [self._leaves[id(leaf)] for leaf in behind(tensor)[0] if id(leaf) in self._leaves]
        found: list[dict[Layer, frozenset[int]]] = []
        for head in range(tensor.shape[1]):
            own: dict[Layer, frozenset[int]] = {}
            for leaf, gradient in zip(leaves, self._gradients(tensor[:, head], leaves), strict=True):
                touched = frozenset() if gradient is None else touched_by(gradient, leaf.features)
                if touched:
                    moved = frozenset(row + leaf.first for row in touched)
                    own[leaf.layer] = own.get(leaf.layer, frozenset()) | moved
            found.append(own)
        return found

    def _gradients(self, part: Tensor, leaves: list[_Leaf]) -> list[Tensor | None]:
        # a random functional, not the norm: behind a unit RMSNorm the norm's gradient vanishes
        direction = self._random(part)
        inputs = [leaf.tensor for leaf in leaves]
        if not inputs:
            return []
        return list(torch.autograd.grad((part * direction).sum(), inputs, retain_graph=True, allow_unused=True))

    def _random(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._generator).to(like.device, like.dtype)

    def _kv_of_query(self, call: Call, groups: list[int]) -> tuple[int, ...]:
        """The key head that each query head reads, told by which value head its z depends on."""
        heads, value_heads = call.q.shape[1], call.v.shape[1]
        if value_heads == call.k.shape[1] and call.v.requires_grad and call.z.requires_grad:
            reads = []
            for head in range(heads):
                part = call.z[:, head]
                (gradient,) = torch.autograd.grad(
                    (part * self._random(part)).sum(), call.v, retain_graph=True, allow_unused=True
                )
                reads.append(
                    head * value_heads // heads if gradient is None else int(gradient.abs().sum((0, 2, 3)).argmax())
                )
        else:
            reads = [head * call.k.shape[1] // heads for head in range(heads)]
        return tuple(groups[index] for index in reads)

    def _find_output(self, layer: Layer, entering: Tensor, axes: tuple[int, ...]) -> list[Sighting]:
        """If `entering` depends on a z that no linear layer has read yet, `layer` is that site's output projection."""
        nodes = behind(entering)[1] if self.sightings else set()
        read = [one for one in self.sightings if any(edge.node in nodes for edge, _ in one.made)]
        for sighting in (one for one in read if one.output is not None):
            self._mark_second(sighting, layer)
        read = [sighting for sighting in read if sighting.output is None]
        for sighting in read:
            self._read_output(sighting, layer, entering, axes)
            sighting.output_call = self._runs[layer]
        read = self._one_of_each(read)
        columns = [set().union(*one.output[1]) for one in read if one.output is not None]
        if sum(map(len, columns)) != len(set().union(*columns)):  # chunks of a sequence, say, which it reads as one
            for sighting in read:
                sighting.entangled = list(dict.fromkeys([*sighting.entangled, "o"]))
        return [sighting for sighting in read if sighting.output is not None]

    def _mark_second(self, sighting: Sighting, layer: Layer) -> None:
        """Another layer reads z too, as adapters beside a projection do: the first is not all of W_O."""
        assert sighting.output is not None
        names = {module: name for name, module in self._model.named_modules()}
        first, second = (names.get(one.module, "") for one in (sighting.output[0], layer))
        told = f"more than one layer reads what its heads make ({first}, and {second}, as adapters do): merge them"
        told = told if first != second else f"{first} reads what its heads make in several pieces"
        sighting.refused |= dict.fromkeys(("contribution", "written"), told)
        sighting.entangled = list(dict.fromkeys([*sighting.entangled, "o"]))

    def _one_of_each(self, read: list[Sighting]) -> list[Sighting]:
        """Calls of one module for parts of a sequence (each picture of a batch) that is read at once are one site."""
        kept: list[Sighting] = []
        for one in read:
            same = [other for other in kept if (other.module, other.spelled) == (one.module, one.spelled)]
            if same and one.output == same[0].output and one.lands and same[0].lands.stop == one.lands.start:
                same[0].lands = range(same[0].lands.start, one.lands.stop)
                same[0].rows = "b t"
                self.sightings.remove(one)
                self._calls[one.module, one.spelled] -= 1
            else:
                kept.append(one)
        return kept

    def _check_output(self, sighting: Sighting, layer: Layer, entering: Tensor, out: Tensor) -> None:
        """Whether the projection gives what its matrix makes of its input, and one bias: then heads' shares add up."""
        name = next((name for name, module in self._model.named_modules() if module is layer.module), "")
        if layer.module._forward_hooks or layer.module._forward_pre_hooks:
            sighting.notes.append(f"hooks of others stand on {name}: what they change there is not seen")
        try:
            weight = layer_matrix(layer.module, layer.parameter, layer.layout, name).detach()
            check_finite(name, weight)
            rest = (out - entering.to(weight.dtype) @ weight.T).detach().flatten(0, -2)
            gap = float((rest - rest[:1]).abs().max()) / max(float(out.detach().abs().max()), 1e-12)
            allowed = 10 * tolerance(out.dtype)
            rounds = layer.parameter == "weight" and not is_plain(layer.module) and allowed < gap <= NEARLY
            if rounds:
                sighting.notes.append(f"{name} rounds what enters it: its weights are read to {gap:.0e} of their size")
            why = "" if rounds or gap <= allowed else f"it gives {gap:.1e} of its size more than its own matrix does"
        except (AnatomyError, RuntimeError) as error:
            why = str(error)
        if why:
            told = f"the output projection {name} is no plain linear map ({why})"
            sighting.refused |= dict.fromkeys(("contribution", "written"), told)
            sighting.entangled = list(dict.fromkeys([*sighting.entangled, "o"]))

    def _read_output(self, sighting: Sighting, layer: Layer, entering: Tensor, axes: tuple[int, ...]) -> None:
        # Jᵀw is linear in w, so its derivative by w is J: one backward a head tells the head's columns
        weight = self._random(entering).requires_grad_()
        edges = [edge for edge, _ in sighting.made]
        backs = torch.autograd.grad((entering * weight).sum(), edges, create_graph=True, allow_unused=True)
        if any(back is None for back in backs):
            return  # it reads some heads and not others
        back = torch.cat([way(back) for back, (_, way) in zip(backs, sighting.made, strict=True)], dim=1)
        columns = []
        for head in range(sighting.n_heads):
            part = back[:, head]
            (gradient,) = torch.autograd.grad((part * self._random(part)).sum(), weight, retain_graph=True)
            columns.append(tuple(sorted(touched_by(gradient, axes))))
            sighting.lands = run_of(features_last(gradient, axes).abs().amax(-1).flatten())
        sighting.output = (layer, tuple(columns))
        apart = sum(map(len, columns)) == len(set().union(*columns)) and all(columns)
        sighting.rows = self._order(back, weight, axes)
        if not apart:
            sighting.entangled.append("o")
        sighting.gated = not _is_z(entering, sighting, columns, axes)

    def _order(self, back: Tensor, weight: Tensor, axes: tuple[int, ...]) -> str:
        """How rows and positions enter the projection: "b t", or "t b" (the sequence first); "" for neither."""
        batch, _, positions, _ = back.shape
        if features_last(weight, axes).shape[:-1].numel() != batch * positions:
            return ""
        part = back[-1:, :, :1]
        (gradient,) = torch.autograd.grad((part * self._random(part)).sum(), weight)
        touched = features_last(gradient, axes).abs().amax(-1).flatten().nonzero().flatten().tolist()
        orders = {batch - 1: "t b", (batch - 1) * positions: "b t"}  # where both are the same, rows come first
        return orders.get(touched[0], "") if len(touched) == 1 else ""


def _is_z(entering: Tensor, sighting: Sighting, columns: list[tuple[int, ...]], axes: tuple[int, ...]) -> bool:
    """Whether the projection's input is z and nothing else, each head's columns in the order of its dimensions."""
    z = sighting.z
    batch, _, positions, dim = z.shape
    flat = features_last(entering.detach(), axes)
    if any(len(own) != dim for own in columns):
        return False
    if not sighting.rows:  # rows in an order of their own, some thrown away: each must be there as it is
        rows, own = flat.flatten(0, -2), [z[:, head].flatten(0, -2) for head in range(len(columns))]
        fewer = [
            (rows[:, list(c)], o) if len(rows) <= len(o) else (o, rows[:, list(c)])
            for c, o in zip(columns, own, strict=True)
        ]
        return all(bool(torch.isin(few, many).all()) for few, many in fewer)
    rows = flat.reshape(batch, positions, -1) if sighting.rows == "b t" else flat.reshape(positions, batch, -1)
    rows = rows if sighting.rows == "b t" else rows.transpose(0, 1)
    return all(torch.equal(rows[..., list(own)], z[:, head]) for head, own in enumerate(columns))
