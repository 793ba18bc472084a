"""Cuts on examples that say little: the right one all the same, or a refusal."""

import copy
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headscope.anatomy import discover
from headscope.anatomy.records import record_of
from headscope.effects.ablation import ablate
from headscope.errors import InputError, SurgeryError
from headscope.surgery import prune, shaking
from tests import models

IDS = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))


class Turning(nn.Module):
    """Attention with rotary positions; its scale is worked out as it runs, of two attributes that a cut makes stale."""

    def __init__(self, width: int = 48, heads: int = 6) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.qkv, self.o = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def turned(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[2])[:, None] * 100 ** (-torch.arange(x.shape[-1] // 2) / 4)
        one, other = x.chunk(2, -1)
        return torch.cat([one * angle.cos() - other * angle.sin(), one * angle.sin() + other * angle.cos()], -1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = self.turned(q) @ self.turned(k).mT * (self.width / self.heads) ** -0.5
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Model(nn.Module):
    """Tokens without positions of their own, attention, logits."""

    def __init__(self, spread: float = 0.15, out: float = 1.0) -> None:
        super().__init__()
        self.e, self.n, self.a, self.out = nn.Embedding(50, 48), nn.LayerNorm(48), Turning(), nn.Linear(48, 50)
        with torch.no_grad():
            for layer in (self.a.qkv, self.a.o):
                layer.weight.normal_(std=spread)
            self.a.o.weight.mul_(out)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.e(ids)
        return self.out(x + self.a(self.n(x)))


@pytest.mark.parametrize("example", [torch.zeros(1, 8).long(), torch.ones(2, 8).long(), IDS], ids=["0", "1", "any"])
@pytest.mark.parametrize(("spread", "out"), [(0.15, 1), (0.15, 0), (0.002, 1)], ids=["plain", "zero o", "small"])
def test_a_cut_is_right_whatever_the_example_and_the_weights(example: Tensor, spread: float, out: float) -> None:
    torch.manual_seed(0)
    model = Model(spread, out).eval()
    smaller = prune(model, ["L0H1"], example=example)
    masked = copy.deepcopy(model)
    for one in (smaller, masked):  # what they are trained to: another projection, larger queries
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(48, 48, generator=generator)
        weight[:, 8:16] = 0
        with torch.no_grad():
            kept = [column for column in range(48) if not 8 <= column < 16]
            one.a.o.weight.copy_(weight[:, kept] if one is smaller else weight)
            one.a.qkv.weight.div_(spread)
            expected, made = masked(IDS), smaller(IDS)
    assert (smaller.a.width, smaller.a.heads) == (40, 5)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_features_that_are_all_alike_are_no_mask(value: float) -> None:
    torch.manual_seed(0)
    model, x = Turning().eval(), torch.randn(2, 6, 48)
    smaller = prune(model, ["L0H1"], example=torch.full((2, 6, 48), value))
    assert (smaller.width, smaller.heads) == (40, 5)
    with ablate(model, ["L0H1"], example=x), torch.no_grad():
        torch.testing.assert_close(smaller(x), model(x), rtol=0, atol=1e-5)


class Bare(nn.Module):
    """Attention with weights in no layers, so that nothing can stand in the place of what they do not make."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.heads = nn.ParameterList(torch.randn(48, 48) / 7 for _ in range(4)), 6

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = ((x @ w).unflatten(-1, (self.heads, -1)).transpose(1, 2) for w in self.w[:3])
        return ((q @ k.mT / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2) @ self.w[3]


def test_with_a_single_key_only_a_cut_that_guesses_no_sizes_is_taken() -> None:
    torch.manual_seed(0)
    model = Model().eval()
    anatomy = discover(model, IDS)
    for length, way in ((1, "zeros stand where its heads were"), (2, "")):
        smaller = prune(model, ["L0H1"], anatomy=anatomy, batches=[{"ids": IDS[:, :length]}])
        with ablate(model, ["L0H1"], anatomy=anatomy), torch.no_grad():
            torch.testing.assert_close(smaller(IDS), model(IDS), rtol=0, atol=1e-5)
        record = record_of(smaller)
        assert record is not None
        assert way in record.ways.get(0, "")


def test_with_a_single_key_a_cut_that_has_to_guess_sizes_is_refused() -> None:
    torch.manual_seed(0)
    model, x = Bare().eval(), torch.randn(2, 6, 48)
    anatomy = discover(model, x)
    with pytest.raises(SurgeryError, match="layer 0: what positions attend to changes nothing on this example"):
        prune(model, ["L0H1"], anatomy=anatomy, example=x[:, :1])
    assert prune(model, ["L0H1"], anatomy=anatomy, example=x).heads == 5


def test_with_a_single_key_the_scores_themselves_are_compared_where_they_are_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, ids = models.build("llama"), {"input_ids": torch.tensor([[3], [4]])}
    anatomy = discover(model)
    smaller = prune(model, ["L0H1", "L1H0"], anatomy=anatomy, batches=[ids])
    longer = {"input_ids": torch.arange(3, 13).view(2, 5)}
    with ablate(model, ["L0H1", "L1H0"]), torch.no_grad():
        torch.testing.assert_close(smaller(**longer).logits, model(**longer).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["q", "k", "scaling"])
def test_other_scores_are_seen_with_a_single_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, heard, times = models.build("llama"), shaking._heard, itertools.count()

    def other(*given: Any) -> dict[str, Any]:
        """Of the cut layer, which is heard after the whole one, something is larger."""
        larger = next(times) % 2
        return {key: replace(one, **{name: getattr(one, name) * (1 + larger)}) for key, one in heard(*given).items()}

    monkeypatch.setattr(shaking, "_heard", other)
    smaller = prune(model, ["L0H1"], anatomy=discover(model), batches=[{"input_ids": torch.tensor([[3], [4]])}])
    record = record_of(smaller)
    assert record is not None
    assert "zeros stand where its heads were" in record.ways[0]


class Sharing(nn.Module):
    """Two layers that add one table, by head, to their queries."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Shifted() for _ in range(2))
        self.layers[1].shift = self.layers[0].shift

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


class _Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.shift = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, 4)) for part in (self.q, self.k, self.v))
        scores = (q + self.shift).transpose(1, 2) @ k.permute(0, 2, 3, 1) / 2
        return self.o((scores.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("heads", [["L0H1"], ["L0H1", "L1H1"], ["L0H1", "L1H2"]])
def test_what_layers_share_stays_one(heads: list[str]) -> None:
    torch.manual_seed(0)
    model, x = Sharing().eval(), torch.randn(2, 5, 16)
    smaller = prune(model, heads, example=x)
    assert smaller.layers[0].shift is smaller.layers[1].shift
    assert len(smaller.layers[0].shift) == (3 if heads == ["L0H1", "L1H1"] else 4)
    with ablate(model, heads, example=x), torch.no_grad():
        torch.testing.assert_close(smaller(x), model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tolerance", [float("nan"), float("inf"), -1.0, "1e-5", None])
def test_what_is_no_tolerance_is_refused(tolerance: object) -> None:
    with pytest.raises(InputError, match=r"tolerance is .* a number from 0 on; it was"):
        prune(Model(), ["L0H1"], example=IDS, tolerance=tolerance)  # type: ignore[arg-type]


def test_what_is_noted_on_a_weight_stays_there() -> None:
    model = Model().eval()
    model.a.qkv.weight.no_decay = True  # type: ignore[assignment]
    smaller = prune(model, ["L0H1"], example=IDS)
    assert smaller.a.qkv.weight.no_decay is True
    assert len(smaller.a.qkv.weight) == 120
