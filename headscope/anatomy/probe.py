"""The probe's bookkeeping during one forward: which linear layers made each head's q, k, v, and which one reads z."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from headscope.anatomy.linear import is_linear
from headscope.anatomy.route import Call

__all__ = ["Probe", "Sighting"]

HeadRows = tuple[tuple[int, ...], ...]


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
    query: dict[nn.Module, HeadRows]
    key: dict[nn.Module, HeadRows]
    value: dict[nn.Module, HeadRows]
    z: Tensor
    finite: bool
    output: tuple[nn.Module, HeadRows] | None = None
    gated: bool = False
    entangled: list[str] = field(default_factory=list)


class Probe:
    """Collects sightings while a model runs once with gradients enabled."""

    def __init__(self) -> None:
        self.sightings: list[Sighting] = []
        self._leaves: dict[int, tuple[nn.Module, Tensor]] = {}
        self._calls: dict[nn.Module, int] = {}
        self._generator = torch.Generator().manual_seed(0)

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Hooks on every linear layer, gone again afterwards."""
        layers = [module for module in model.modules() if is_linear(module)]
        handles = [module.register_forward_hook(self._after_linear) for module in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._leaves.clear()

    def receiver(self, route: str) -> Callable[[Call], Tensor]:
        """What a route hands its calls to."""
        return lambda call: self._after_attention(call, route)

    def _after_linear(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        if not isinstance(out, Tensor):
            return None
        if args and isinstance(args[0], Tensor) and args[0].requires_grad:
            self._find_output(module, args[0])
        leaf = out.detach().requires_grad_()
        self._leaves[id(leaf)] = (module, leaf)
        return leaf.clone()  # a copy: the model may go on in place, which a leaf forbids

    def _after_attention(self, call: Call, route: str) -> Tensor:
        if call.q.shape[1] == 0:  # a layer that has lost all its heads
            return call.z
        rows = {name: self._rows(getattr(call, name)) for name in ("q", "k", "v")}
        groups, value_groups = _groups(call.k, rows["k"]), _groups(call.v, rows["v"])
        n_kv_heads = len(set(groups))
        kv_of_query = self._kv_of_query(call, groups)
        z = call.z.detach().requires_grad_()
        sighting = Sighting(
            module=call.module,
            call=self._calls.get(call.module, 0),
            route=route,
            kind=_kind(call),
            n_heads=call.q.shape[1],
            n_kv_heads=n_kv_heads,
            n_value_heads=len(set(value_groups)),
            head_dim=call.q.shape[-1],
            value_dim=call.v.shape[-1],
            scaling=_scaling(call),
            kv_of_query=kv_of_query,
            query=_own(rows["q"], range(call.q.shape[1])),
            key=_own(rows["k"], groups),
            value=_own(rows["v"], value_groups),
            z=z,
            # all four: a fused kernel may make zeros of NaN
            finite=all(bool(torch.isfinite(tensor).all()) for tensor in (call.q, call.k, call.v, z)),
        )
        sighting.entangled = [name[0] for name in ("query", "key", "value") if not getattr(sighting, name)]
        self._calls[call.module] = sighting.call + 1
        self.sightings.append(sighting)
        return z.clone()

    def _rows(self, tensor: Tensor) -> list[dict[nn.Module, frozenset[int]]]:
        """For each head of (batch, head, position, dim): the rows of each linear layer that make it."""
        leaves = [self._leaves[id(leaf)] for leaf in _leaves_behind(tensor) if id(leaf) in self._leaves]
        return [
            {
                module: touched
                for (module, leaf), gradient in zip(leaves, self._gradients(tensor[:, head], leaves), strict=True)
                if gradient is not None and (touched := _touched(gradient, _feature_axis(module, leaf)))
            }
            for head in range(tensor.shape[1])
        ]

    def _gradients(self, part: Tensor, leaves: list[tuple[nn.Module, Tensor]]) -> list[Tensor | None]:
        # a random functional, not the norm: behind a unit RMSNorm the norm's gradient vanishes
        direction = self._random(part)
        inputs = [leaf for _, leaf in leaves]
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
                (gradient,) = torch.autograd.grad((part * self._random(part)).sum(), call.v, retain_graph=True)
                reads.append(int(gradient.abs().sum((0, 2, 3)).argmax()))
        else:
            reads = [head * call.k.shape[1] // heads for head in range(heads)]
        return tuple(groups[index] for index in reads)

    def _find_output(self, module: nn.Module, entering: Tensor) -> None:
        """If `entering` depends on a z that no linear layer has read yet, `module` is that site's output projection."""
        waiting = {id(s.z): s for s in self.sightings if s.output is None}
        if not waiting:
            return
        for leaf in _leaves_behind(entering):
            sighting = waiting.get(id(leaf))
            if sighting is not None:
                self._read_output(sighting, module, entering)

    def _read_output(self, sighting: Sighting, module: nn.Module, entering: Tensor) -> None:
        axis = _feature_axis(module, entering)
        # Jᵀw is linear in w, so its derivative by w is J: one backward a head tells the head's columns
        weight = self._random(entering).requires_grad_()
        (back,) = torch.autograd.grad((entering * weight).sum(), sighting.z, create_graph=True)
        columns = []
        for head in range(sighting.n_heads):
            part = back[:, head]
            (gradient,) = torch.autograd.grad((part * self._random(part)).sum(), weight, retain_graph=True)
            columns.append(tuple(sorted(_touched(gradient, axis))))
        sighting.output = (module, tuple(columns))
        apart = sum(map(len, columns)) == len(set().union(*columns)) and all(columns)
        if not (apart and axis == entering.ndim - 1 and self._keeps_order(back, weight)):
            sighting.entangled.append("o")
        sighting.gated = not _is_z(entering, sighting.z, columns)

    def _keeps_order(self, back: Tensor, weight: Tensor) -> bool:
        """Whether rows and positions enter the projection in z's order (and not, say, the sequence first)."""
        batch, _, positions, _ = back.shape
        part = back[-1:, :, :1]
        (gradient,) = torch.autograd.grad((part * self._random(part)).sum(), weight)
        touched = gradient.abs().amax(-1).flatten().nonzero().flatten().tolist()
        return gradient[..., 0].numel() == batch * positions and touched == [(batch - 1) * positions]


def _is_z(entering: Tensor, z: Tensor, columns: list[tuple[int, ...]]) -> bool:
    """Whether the projection's input is z and nothing else, each head's columns in the order of its dimensions."""
    batch, _, positions, dim = z.shape
    if any(len(own) != dim for own in columns) or entering.numel() != batch * positions * entering.shape[-1]:
        return False
    rows = entering.reshape(batch, positions, -1)
    return all(torch.equal(rows[..., list(own)], z[:, head]) for head, own in enumerate(columns))


def _leaves_behind(tensor: Tensor) -> list[Tensor]:
    """Leaves of the graph that made `tensor`."""
    found: dict[int, Tensor] = {}
    seen = set()
    todo = [tensor.grad_fn] if tensor.grad_fn is not None else []
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor):
            found[id(leaf)] = leaf
        todo.extend(parent for parent, _ in node.next_functions if parent is not None)
    return list(found.values())


def _feature_axis(module: nn.Module, tensor: Tensor) -> int:
    return 1 if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) else tensor.ndim - 1


def _touched(gradient: Tensor, axis: int) -> frozenset[int]:
    flat = gradient.detach().movedim(axis, -1).reshape(-1, gradient.shape[axis])
    return frozenset(torch.nonzero(flat.abs().amax(0)).flatten().tolist())


def _groups(tensor: Tensor, rows: list[dict[nn.Module, frozenset[int]]]) -> list[int]:
    """Which heads are one and the same, repeated by the model before the call: equal, and made by the same rows."""
    heads = range(len(rows))
    first = [
        next(i for i in heads if i == head or (rows[i] == rows[head] and torch.equal(tensor[:, i], tensor[:, head])))
        for head in heads
    ]
    order = sorted(set(first))
    return [order.index(index) for index in first]


def _own(rows: list[dict[nn.Module, frozenset[int]]], groups: list[int] | range) -> dict[nn.Module, HeadRows]:
    """The layers in which every head has rows of its own, with those rows; what all heads share is left out."""
    firsts = [rows[list(groups).index(group)] for group in range(len(set(groups)))]
    modules = dict.fromkeys(module for row in firsts for module in row)
    own: dict[nn.Module, HeadRows] = {}
    for module in modules:
        sets = [row.get(module, frozenset()) for row in firsts]
        shared = frozenset.intersection(*sets) if len(sets) > 1 else frozenset()
        sets = [part - shared for part in sets]
        if all(sets) and sum(map(len, sets)) == len(frozenset().union(*sets)):
            own[module] = tuple(tuple(sorted(part)) for part in sets)
    return own


def _kind(call: Call) -> str:
    if call.q.shape[2] != call.k.shape[2]:
        return "cross"
    with torch.no_grad():
        ahead = call.pattern().triu(1)
    return "self" if ahead.abs().max() > 0 or ahead.shape[-1] < 2 else "causal"


def _scaling(call: Call) -> float:
    """The factor between q·kᵀ and the softmax's input, read off their graph where the route cannot tell."""
    if call.scores is None:
        return call.scaling
    logits, product = call.scores
    if not product.requires_grad:
        return call.scaling
    if logits is product:
        return 1.0
    (gradient,) = torch.autograd.grad(logits.sum(), product, retain_graph=True)
    factors = gradient[gradient != 0]
    if factors.numel() == 0 or not torch.allclose(factors, factors[0], rtol=1e-5, atol=0):
        return float("nan")
    return float(factors[0])
