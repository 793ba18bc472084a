"""Attention that no operation of PyTorch shows is named; described, it is read as its plain twin is."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from headscope.anatomy import discover
from headscope.anatomy.descriptions import Description, describe
from headscope.errors import AnatomyError
from headscope.surgery import prune
from headscope.watching.observation import capture


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / 8**0.5).softmax(-1) @ v


class _Function(torch.autograd.Function):
    """As fused kernels come: a forward without a graph, and its derivative by hand."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pattern = (q @ k.mT / 8**0.5).softmax(-1)
        ctx.save_for_backward(q, k, v, pattern)
        return pattern @ v

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, pattern = ctx.saved_tensors
        inner = grad @ v.mT
        scores = pattern * (inner - (inner * pattern).sum(-1, keepdim=True)) / 8**0.5
        return scores @ k, scores.mT @ q, pattern.mT @ grad


class _Looped(_Function):
    """The same without a softmax: no operation in it is attention."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q @ k.mT / 8**0.5).exp2_() ** np.log2(np.e)
        pattern = weights * weights.sum(-1, keepdim=True).reciprocal()
        ctx.save_for_backward(q, k, v, pattern)
        return torch.as_tensor(pattern @ v)


@torch.library.custom_op("headscope_tests::mixing", mutates_args=())
def _mixing(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return plain(q, k, v)


def custom(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.as_tensor(_mixing(q, k, v))


def in_numpy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.no_grad():
        scores = np.exp((q @ k.mT / 8**0.5).numpy())
        return torch.from_numpy(scores / scores.sum(-1, keepdims=True) @ v.numpy())


def mapped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.vmap(plain)(q, k, v)


UNSEEN: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "custom": custom, "numpy": in_numpy, "vmap": mapped, "function": _Looped.apply,
}  # fmt: skip


class Mixer(nn.Module):
    """Its name says nothing."""

    def __init__(self, mix: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.qkv, self.o, self.mix = nn.Linear(32, 96), nn.Linear(32, 32), mix

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (one.unflatten(-1, (-1, 8)).transpose(1, 2) for one in self.qkv(x).chunk(3, -1))
        out: Tensor = self.o(self.mix(q, k, v).transpose(1, 2).flatten(2))
        return out


class Model(nn.Module):
    """A plain layer, and another one."""

    def __init__(self, second: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.first = nn.Embedding(50, 32), Mixer(plain)
        self.second, self.head = second, nn.Linear(32, 50)
        for parameter in second.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.first(x)
        out: Tensor = self.head(x + self.second(x))
        return out


BATCH = {"tokens": torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))}
OWN = Description(module="second", heads=4, query="qkv", key="qkv", value="qkv", output="o")


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", sorted(UNSEEN))
def test_it_is_named_beside_attention_that_is_read_and_alone(kind: str, frozen: bool) -> None:
    model = Model(Mixer(UNSEEN[kind])).eval().requires_grad_(not frozen)
    anatomy = discover(model, BATCH)
    assert [site.module_name for site in anatomy.sites] == ["first"]
    assert anatomy.remarks[0].startswith("not read: second (Mixer) may be attention: ")
    model.first = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(AnatomyError, match=r"something looks like it: second: .*if it is attention, tell which"):
        discover(model, BATCH)


@pytest.mark.parametrize("kind", [*sorted(UNSEEN), "no graph"])
def test_described_it_is_what_its_plain_twin_is(kind: str) -> None:
    model, twin = Model(Mixer(UNSEEN.get(kind, _Function.apply))).eval(), Model(Mixer(plain)).eval()
    twin.load_state_dict(model.state_dict())
    describe(model, OWN)
    anatomies = [discover(one, BATCH) for one in (model, twin)]
    assert anatomies[0].remarks == ()
    seen = []
    for one, anatomy in zip((model, twin), anatomies, strict=True):
        with torch.no_grad(), capture(one, ("z", "contribution"), anatomy=anatomy) as kept:
            one(**BATCH)
        cut = prune(one, ["L1H2"], anatomy=anatomy, batches=[BATCH])
        seen.append([kept[1].z, kept[1].contribution, cut(**BATCH).detach()])
    for own, want in zip(*seen, strict=True):
        torch.testing.assert_close(own, want, atol=2e-5, rtol=1e-5)


def test_where_a_function_of_its_own_has_no_way_on_maps_are_read_and_cuts_refused_by_name() -> None:
    model = Model(Mixer(_Function.apply)).eval()
    anatomy = discover(model, BATCH)
    with torch.no_grad(), capture(model, ("pattern", "z"), anatomy=anatomy) as seen:
        model(**BATCH)
    q, k, v = (one.unflatten(-1, (4, 8)).transpose(1, 2) for one in model.second.qkv(_entering(model)).chunk(3, -1))
    torch.testing.assert_close(seen[1].pattern, (q @ k.mT / 8**0.5).softmax(-1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(seen[1].z, plain(q, k, v), atol=1e-6, rtol=1e-5)
    assert not anatomy.sites[1].prunable
    with (
        pytest.raises(AnatomyError, match=r"a function of autograd's own makes z.*describe it \(headscope.describe\)"),
        capture(model, ("contribution",), anatomy=anatomy),
    ):
        pass


def _entering(model: Model) -> Tensor:
    x = model.embed(BATCH["tokens"])
    return (x + model.first(x)).detach()


class _Scriptable(Mixer):
    def __init__(self) -> None:
        super().__init__(plain)
        del self.mix

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(2, 7, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        z = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v
        out: Tensor = self.o(z.transpose(1, 2).flatten(2))
        return out


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_what_torch_jit_compiled_is_named(how: str) -> None:
    plain_one = _Scriptable()
    made = torch.jit.script(plain_one) if how == "script" else torch.jit.trace(plain_one, torch.randn(2, 7, 32))
    anatomy = discover(Model(made).eval(), BATCH)
    assert [site.module_name for site in anatomy.sites] == ["first"]
    assert "may be attention: torch.jit compiled it" in anatomy.remarks[0]
    assert len(discover(Model(plain_one).eval(), BATCH).sites) == 2


class _Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gate = x.sigmoid()
        return torch.as_tensor(grad * gate * (1 + x * (1 - gate)))


@torch.library.custom_op("headscope_tests::scaled", mutates_args=())
def scaled(x: Tensor) -> Tensor:
    return x / x.square().mean(-1, keepdim=True).sqrt()


class _Beside(nn.Module):
    """No attention: an activation and a norm of its own, and a table that nobody registered."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.table = nn.Linear(32, 32), torch.randn(7, 32)

    def forward(self, x: Tensor) -> Tensor:
        return scaled(torch.as_tensor(_Swish.apply(self.inner(x) + self.table)))


@pytest.mark.parametrize("frozen", [False, True])
def test_activations_and_norms_of_ones_own_are_not_taken_for_it(frozen: bool) -> None:
    model = Model(_Beside()).eval().requires_grad_(not frozen)
    assert discover(model, BATCH).remarks == ()
