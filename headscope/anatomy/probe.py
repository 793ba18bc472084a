"""The probe's bookkeeping during one forward: which linear layers made each head's q, k, v, and which one reads z."""

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from headscope._support.around import around
from headscope.anatomy.between import adds, filled, is_z
from headscope.anatomy.check import check_call, scaling_of, tolerance
from headscope.anatomy.features import feature_axis, features_last
from headscope.anatomy.finite import check_finite
from headscope.anatomy.graph import are_apart_by_place, behind, groups_of, own_rows, run_of, sees_ahead, touched_by
from headscope.anatomy.linear import NEARLY, is_plain, layer_matrix, linear_layers
from headscope.anatomy.making import is_linear, is_put_out
from headscope.anatomy.route import Call, Watch, claiming, is_claimed
from headscope.anatomy.sightings import Layer, Leaf, Sighting
from headscope.anatomy.spelling import Weighting
from headscope.errors import AnatomyError

__all__ = ["Probe"]

_NO_WAY_ON = (
    "a function of autograd's own makes z, so no gradient tells what reads it; describe it (headscope.describe)"
)


class Probe(Watch):
    """Collects sightings while a model runs once with gradients enabled."""

    def __init__(self, model: nn.Module) -> None:
        self.sightings: list[Sighting] = []
        self._model = model
        self._leaves: dict[int, Leaf] = {}
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
        self._leaves[id(leaf)] = Leaf(layer, leaf, outs, first, entering)
        return leaf.clone()  # a copy: the model may go on in place, which a leaf forbids

    def _after_attention(self, call: Call, route: str) -> None:
        if call.q.shape[1] == 0:  # a layer that has lost all its heads
            return
        if route == "described":
            self._drop_within(call)
        rows = {name: self._rows(getattr(call, name)) for name in ("q", "k", "v")}
        own = [name for name in ("q", "k") if name not in call.refused]
        groups, value_groups = groups_of(call.k, rows["k"]), groups_of(call.v, rows["v"])
        value = own_rows(rows["v"], value_groups)
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
            query=own_rows(rows["q"], range(call.q.shape[1])) if "q" in own else {},
            key=own_rows(rows["k"], groups) if "k" in own else {},
            value=value,
            z=call.z.detach().clone(),
            # all four: a fused kernel may make zeros of NaN
            finite=all(bool(torch.isfinite(tensor).all()) for tensor in (call.q, call.k, call.v, call.z)),
            spelled=call.key,
            may_be_positions=not value and self._may_be_positions(call),
            # edges, not tensors: a model may go on in place with what it made
            made=[(get_gradient_edge(tensor), way) for tensor, way, _ in call.made if tensor.requires_grad],
        )
        sighting.entangled = [name[0] for name in ("query", "key", "value") if not getattr(sighting, name)]
        sighting.refused = check_call(call, sighting.scaling, sighting.kv_of_query) | dict(call.refused)
        self._check_making(sighting, call, value_groups)
        if not call.z.requires_grad and any(one.requires_grad for one in (call.q, call.k, call.v)):
            sighting.refused |= dict.fromkeys(("contribution", "written"), _NO_WAY_ON)
        self._calls[call.module, call.key] = sighting.call + 1
        self.sightings.append(sighting)

    def _may_be_positions(self, call: Call) -> bool:
        """Whether what stands where heads do is made of the same features at places of its own, as positions are."""
        leaves = self._leaves_behind(call.v)
        by_head = [self._gradients(call.v[:, head], leaves) for head in range(call.v.shape[1])]
        each = [(leaf, own) for leaf, *own in zip(leaves, *by_head, strict=True)]
        told = [are_apart_by_place(own, leaf.features) for leaf, own in each if all(one is not None for one in own)]
        return any(told)

    def _check_making(self, sighting: Sighting, call: Call, value_groups: list[int]) -> None:
        """Whether weights alone tell of q, k and v."""
        put_out = self._leaves_behind(call.v)
        if sighting.value and not is_put_out(call.v, put_out, sighting.value, value_groups, self._random):
            sighting.refused["weights_ov"] = "v is not what its layer puts out"
        both = ((one, self._leaves_behind(one)) for one in (call.q, call.k))
        if sighting.query and not all(is_linear(one, leaves, self._random) for one, leaves in both):
            sighting.refused["weights_qk"] = "q or k is more than what its layer puts out"

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
            return "self" if sees_ahead(pattern) else "causal"

    def _is_cross(self, call: Call) -> bool:
        """Whether keys are made of something else than queries: of no tensor that these are made of, one layer on."""
        own, keys = (self._made_of(getattr(call, name)) for name in ("q", "k"))
        if not own or not keys:  # queries or keys that no layer made: learned ones, say
            alone = {one for one in behind(call.q)[1] if not hasattr(one, "variable")} if keys else set()
            return call.q.shape[2] != call.k.shape[2] or bool(alone and not alone & set(keys))
        # keys may be thinned out by a layer of their own
        theirs, ours = set(keys).union(*map(self._made_of, keys.values())), set(own)
        outputs = [one.output[0] for one in self.sightings if one.output is not None]
        for tensor in own.values():  # and queries, by one layer; what two streams have exchanged is not that
            layers = [leaf.layer for leaf in self._leaves_behind(tensor)]
            if len(layers) == 1 and layers[0] not in outputs:
                ours |= set(self._made_of(tensor))
        return not ours & theirs

    def _leaves_behind(self, tensor: Tensor, without: Iterable[Any] = ()) -> list[Leaf]:
        return [self._leaves[id(one)] for one in behind(tensor, without)[0] if id(one) in self._leaves]

    def _made_of(self, tensor: Tensor) -> dict[Any, Tensor]:
        """What enters the layers that make a tensor, each by itself and by all that it is made of in turn."""
        found: dict[Any, Tensor] = {}
        for leaf in self._leaves_behind(tensor):
            if leaf.entering is not None:
                leaves, nodes = behind(leaf.entering)
                shared = {node for node in nodes if not hasattr(node, "variable")}  # not the weights: these are shared
                keys = [id(one) for one in leaves if id(one) in self._leaves] + [leaf.entering.data_ptr(), *shared]
                found |= dict.fromkeys(keys, leaf.entering)
        return found

    def _rows(self, tensor: Tensor) -> list[dict[Layer, frozenset[int]]]:
        """For each head of (batch, head, position, dim): the rows of each linear layer that make it."""
        leaves = self._leaves_behind(tensor)
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

    def _gradients(self, part: Tensor, leaves: list[Leaf]) -> list[Tensor | None]:
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
            try:
                self._read_output(sighting, layer, entering, axes)
            except RuntimeError as error:  # what rounds has no gradients
                why = str(error).partition(". ")[0]
                sighting.refuse_output(f"how {self._name_of(layer)} reads its heads cannot be followed ({why})")
            sighting.output_call = self._runs[layer]
        read = self._one_of_each(read)
        columns = [set().union(*one.output[1]) for one in read if one.output is not None]
        if sum(map(len, columns)) != len(set().union(*columns)):
            name = self._name_of(layer)
            told = f"{name} reads several attentions in the same columns: their sum, or parts of a sequence"
            for sighting in read:
                if "o" not in sighting.entangled:
                    sighting.refuse_output(told)
        return [sighting for sighting in read if sighting.output is not None]

    def _name_of(self, layer: Layer) -> str:
        return next((name for name, module in self._model.named_modules() if module is layer.module), "")

    def _mark_second(self, sighting: Sighting, layer: Layer) -> None:
        """Another layer reads z too, as adapters beside a projection do: the first is not all of W_O."""
        assert sighting.output is not None
        first, second = self._name_of(sighting.output[0]), self._name_of(layer)
        told = (
            f"more than one layer reads what its heads make ({first}, and {second}); if these are adapters, merge them"
        )
        told = told if first != second else f"{first} reads what its heads make in several pieces"
        sighting.refuse_output(told)

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
        name = self._name_of(layer)
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
            sighting.refuse_output(told)

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
        whole = filled(columns, features_last(entering, axes).shape[-1], sighting.value_dim)
        columns = whole or columns
        if whole is None and any(columns):
            told = (
                f"the example does not reach all columns of {self._name_of(layer)} that its heads have; bring another"
            )
            sighting.refuse_output(told)
        sighting.output = (layer, tuple(columns))
        reached = back.detach().abs().amax((0, 1, 3)) > 0
        many, of_all = int(reached.sum()), len(reached)
        # what a window is filled up with stands at its end
        filled_up = many > 1 and bool(reached[:many].all())
        if not filled_up and features_last(entering, axes).shape[:-1].numel() < back.shape[0] * of_all:
            sighting.refuse_output(f"only {many} of {of_all} positions reach {self._name_of(layer)}", "gated_z")
        apart = sum(map(len, columns)) == len(set().union(*columns)) and all(columns)
        sighting.rows = self._order(back, weight, axes)
        if not apart:
            sighting.entangled.append("o")
        sighting.gated = not is_z(entering, sighting.z, sighting.rows, columns, axes)
        if sighting.gated and adds(entering, back, weight, sighting.z, edges, self._random(back)):
            beside = self._leaves_behind(entering, {edge.node for edge in edges})
            if not beside or not all(self._is_its_own(leaf, entering, sighting, axes) for leaf in beside):
                more = "reads is more than what the heads make: something else is added to it before"
                sighting.refuse_output(f"what {self._name_of(layer)} {more}", "gated_z")

    def _is_its_own(self, leaf: Leaf, entering: Tensor, sighting: Sighting, axes: tuple[int, ...]) -> bool:
        """Whether what a layer adds to the heads is each head's own: of its queries and keys, or its values, as local
        mixing beside it is.
        """
        parts = (sighting.query, sighting.key, sighting.value)
        makes = [part[leaf.layer] for part in parts if leaf.layer in part]
        if not makes:
            module = leaf.layer.module
            each_alone = getattr(module, "groups", 1) == getattr(module, "out_channels", 0)
            inner = self._leaves_behind(leaf.entering) if each_alone and leaf.entering is not None else []
            return bool(inner) and all(one.layer in sighting.value for one in inner)
        assert sighting.output is not None
        for head, columns in enumerate(sighting.output[1]):
            part = features_last(entering, axes)[..., list(columns)]
            (gradient,) = torch.autograd.grad((part * self._random(part)).sum(), leaf.tensor, retain_graph=True)
            own = {row for rows in makes for row in rows[head * len(rows) // sighting.n_heads]}
            others = {row for rows in makes for each in rows for row in each} - own
            if touched_by(gradient, leaf.features) & others:
                return False
        return True

    def _order(self, back: Tensor, weight: Tensor, axes: tuple[int, ...]) -> str:
        """How rows and positions enter the projection: "b t", or "t b" (the sequence first); "" for neither."""
        batch, _, positions, _ = back.shape
        if features_last(weight, axes).shape[:-1].numel() != batch * positions:
            return ""
        part = back[-1:, :, :1]
        (gradient,) = torch.autograd.grad((part * self._random(part)).sum(), weight, retain_graph=True)
        touched = features_last(gradient, axes).abs().amax(-1).flatten().nonzero().flatten().tolist()
        orders = {batch - 1: "t b", (batch - 1) * positions: "b t"}  # where both are the same, rows come first
        return orders.get(touched[0], "") if len(touched) == 1 else ""
