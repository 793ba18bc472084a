"""What mixes as attention does, but by no softmax over keys, is named whatever its class; gates and experts are not."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headscope.anatomy import discover
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


ALIKE: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], str]] = {
    "sigmoid": (lambda q, k, v: scores(q, k).sigmoid() @ v, "may be attention: it multiplies"),
    "squared relu": (lambda q, k, v: (scores(q, k).relu() ** 2 / 7) @ v, "may be attention: it multiplies"),
    "no weights at all": (lambda q, k, v: scores(q, k).tril() @ v, "may be attention: it multiplies"),
    "linear": (linear, "may be attention: it multiplies"),
    "recurrent": (recurrent, "may be attention: it multiplies"),
    "powers of two": (by_powers_of_two, "may be attention: it multiplies"),
    "sparse": (sparse, "may be attention: it multiplies"),
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
