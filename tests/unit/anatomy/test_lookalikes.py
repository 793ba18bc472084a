"""What mixes as attention does, but by no softmax over keys, is named whatever its class; gates and experts are not."""

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headscope.anatomy import discover
from headscope.effects.ablation import ablate
from headscope.watching.observation import capture
from tests.unit.anatomy.test_unseen import BATCH, Mixer, Model


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / 8**0.5


def linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (F.elu(q) + 1) @ ((F.elu(k) + 1).mT @ v)


def by_powers_of_two(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.exp2(scores(q, k) * 1.4426950408889634)
    return (weights / weights.sum(-1, keepdim=True)) @ v


def sparse(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Sparsemax (Martins and Astudillo 2016)."""
    z = scores(q, k)
    ordered = z.sort(-1, descending=True)[0]
    total = ordered.cumsum(-1)
    kept = (1 + torch.arange(1, z.shape[-1] + 1) * ordered > total).sum(-1, keepdim=True)
    return (z - (total.gather(-1, kept - 1) - 1) / kept).clamp(min=0) @ v


def recurrent(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Linear attention as a recurrence over positions, its state an outer product."""
    state, out = torch.zeros(2, 4, 8, 8), []
    for place in range(q.shape[2]):
        state = 0.9 * state + k[:, :, place, :, None] * v[:, :, place, None, :]
        out.append((q[:, :, place, :, None] * state).sum(-2))
    return torch.stack(out, 2)


def over_edges(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention along the edges of a graph, summed where each edge ends, as graph transformers write it."""
    many = q.shape[2]
    ends, starts = torch.arange(many).repeat_interleave(many), torch.arange(many).repeat(many)
    weights = ((q[:, :, ends] * k[:, :, starts]).sum(-1) / 8**0.5).exp()
    total = torch.zeros(q.shape[:3]).index_add(2, ends, weights)
    carried = (weights / total[:, :, ends])[..., None] * v[:, :, starts]
    return torch.zeros_like(q).index_add(2, ends, carried)


ALIKE: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], str]] = {
    "sigmoid": (lambda q, k, v: scores(q, k).sigmoid() @ v, "may be attention: it multiplies"),
    "squared relu": (lambda q, k, v: (scores(q, k).relu() ** 2 / 7) @ v, "may be attention: it multiplies"),
    "no weights at all": (lambda q, k, v: scores(q, k).tril() @ v, "may be attention: it multiplies"),
    "linear": (linear, "may be attention: it multiplies"),
    "recurrent": (recurrent, "may be attention: it multiplies"),
    "powers of two": (by_powers_of_two, "may be attention: it multiplies"),
    "sparse": (sparse, "may be attention: it multiplies"),
    "sharp and sparse": (lambda q, k, v: sparse(20 * q, 20 * k, v), "may be attention: it multiplies"),
    "over edges": (over_edges, "may be attention: it multiplies"),
    "distances": (
        lambda q, k, v: (-torch.cdist(q, k)).softmax(-1) @ v,
        "its scores are no product of queries and keys",
    ),
    "additive": (
        lambda q, k, v: (q[..., :, None, :] + k[..., None, :, :]).tanh().sum(-1).softmax(-1) @ v,
        "its scores are no product of queries and keys",
    ),
}


@pytest.mark.parametrize("kind", sorted(ALIKE))
def test_it_is_named(kind: str) -> None:
    mix, told = ALIKE[kind]
    anatomy = discover(Model(Mixer(mix)).eval(), BATCH)
    assert [site.module_name for site in anatomy.sites] == ["first"]
    (remark,) = anatomy.remarks
    assert remark.startswith("not read: second (Mixer) ")
    assert told in remark


class _Gated(nn.Module):
    """A gated layer, a squeeze over positions, experts weighed one by one: products of data, position by position."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down, self.router = (nn.Linear(32, n) for n in (32, 32, 32, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.up(x) * self.gate(x).sigmoid())
        x = x * x.mean(1, keepdim=True).sigmoid()
        weights = self.router(x).softmax(-1)
        out: Tensor = sum((one * weights[..., n : n + 1] for n, one in enumerate((self.up(x), self.gate(x)))), x)
        return out


class _Compared(nn.Module):
    """Two towers whose outputs are compared: one product of data, and nothing after it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = Model(Mixer(lambda q, k, v: scores(q, k).softmax(-1) @ v)), nn.Linear(50, 50)

    def forward(self, tokens: Tensor) -> Tensor:
        own = self.one(tokens).mean(1)
        other = self.other(own)
        return F.normalize(own, dim=-1) @ F.normalize(other, dim=-1).T


def test_gates_experts_and_compared_towers_are_not() -> None:
    assert discover(Model(_Gated()).eval(), BATCH).remarks == ()
    assert discover(_Compared().eval(), BATCH).remarks == ()


class _Routed(nn.Module):
    """Experts whose weights the input picks out, streams mixed by it, and a table of positions kept from before."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.mix = nn.Linear(32, 3), nn.Linear(64, 2)
        self.up, self.down = (nn.Parameter(0.1 * torch.randn(3, 32, 32)) for _ in range(2))

    @functools.lru_cache  # noqa: B019
    def _table(self, rows: int, length: int) -> Tensor:
        return torch.arange(rows * length * 32.0).reshape(rows, length, 32).cos()

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.router(x).argmax(-1)
        inner = torch.einsum("btc,btcd->btd", x + self._table(*x.shape[:2]), self.up[chosen]).relu()
        x = x + torch.einsum("btc,btcd->btd", inner, self.down[chosen])
        streams = torch.stack([x, 2 * x.relu()], 2)
        weights = self.mix(streams.flatten(2)).sigmoid()
        one = (weights[..., None] * streams).sum(2)
        out: Tensor = (weights[..., None] * (one[:, :, None] + streams)).sum(2)
        return out


class _Interpolated(nn.Module):
    """A table of positions, read between its entries at places that the input names: no feature meets another."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(16, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        place = torch.linspace(0, 2.9, x.shape[1])
        near = torch.stack([1 - place.frac(), place.frac()])
        corners = (near[:, None] * near[None]).flatten(0, 1)
        ids = torch.arange(4)[:, None].expand(-1, x.shape[1])
        out: Tensor = self.out(x + (corners[..., None] * self.table(ids)).sum(0))
        return out


def test_experts_streams_and_tables_of_positions_are_not() -> None:
    for other in (_Routed(), _Interpolated()):
        for frozen in (False, True):
            assert discover(Model(other).eval().requires_grad_(not frozen), BATCH).remarks == ()


@pytest.mark.parametrize("way", ["scaled by head", "with the identity"])
def test_a_map_that_is_changed_before_it_meets_the_values_is_refused_and_the_rest_is_read(way: str) -> None:
    temperature = torch.tensor([0.5, 1.0, 1.5, 2.0])[:, None, None]

    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pattern = scores(q, k).softmax(-1)
        changed = pattern * temperature if way == "scaled by head" else 0.9 * pattern + 0.1 * torch.eye(q.shape[2])
        return changed @ v

    model = Model(Mixer(mix)).eval()
    anatomy = discover(model, BATCH)
    assert sorted(anatomy.sites[1].refused) == ["pattern", "v"]
    z: list[Tensor] = []
    model.second.o.register_forward_pre_hook(lambda _, args: z.append(args[0]))
    with torch.no_grad(), capture(model, ("q", "k", "z", "contribution"), anatomy=anatomy) as seen:
        model(**BATCH)
    assert torch.equal(seen[1].z.transpose(1, 2).flatten(2), z[-1])
    plain = Model(Mixer(mix)).eval()
    plain.load_state_dict(model.state_dict())
    plain.second.o.weight.data[:, 8:16] = 0
    with torch.no_grad(), ablate(model, ["L1H1"], anatomy=anatomy):
        torch.testing.assert_close(model(**BATCH), plain(**BATCH))
