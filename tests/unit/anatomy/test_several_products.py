"""Scores that are the sum of several products: which belongs to which layer, and what is refused."""

import pytest
import torch
from torch import Tensor, nn

from headscope.anatomy import discover
from headscope.effects.ablation import ablate
from headscope.errors import AnatomyError
from headscope.watching.observation import capture

X = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(0))


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(x).unflatten(-1, (4, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))

    def merged(self, z: Tensor) -> Tensor:
        out: Tensor = self.o(z.transpose(1, 2).flatten(2))
        return out


class _RealFormer(nn.Module):
    """Each layer adds the scores of the one before to its own (He et al. 2020, arXiv:2012.11747)."""

    def __init__(self, *, before: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.before = nn.ModuleList(_Layer() for _ in range(3)), before

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor | None = None
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            q, k, v = layer.heads(x)
            own = q @ k.mT / 2
            scores = own if scores is None else scores + own if self.before else own + scores
            x = x + layer.merged(scores.softmax(-1) @ v)
        return x


@pytest.mark.parametrize("before", [True, False])
def test_scores_handed_on_are_a_bias_and_each_layer_has_its_own_queries(before: bool) -> None:
    model = _RealFormer(before=before).eval()
    anatomy = discover(model, {"x": X})
    assert [site.query[0].module for site in anatomy.sites] == [f"layers.{number}.q" for number in range(3)]
    x = X
    with torch.no_grad(), capture(model, ("q", "k", "pattern", "bias"), anatomy=anatomy) as seen:
        model(X)
    with torch.no_grad():
        for number, layer in enumerate(model.layers):
            assert isinstance(layer, _Layer)
            q, k, v = layer.heads(x)
            torch.testing.assert_close(seen[number].q, q)
            torch.testing.assert_close(seen[number].k, k)
            x = x + layer.merged(seen[number].pattern @ v)
        torch.testing.assert_close((q @ k.mT / 2 + seen[2].bias).softmax(-1), seen[2].pattern)


class _Split(_Layer):
    """A part of each query has a product of its own, as latent attention has one for what turns with the position."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q_turned, self.k_turned = nn.Linear(16, 8), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        turned = self.q_turned(x).unflatten(-1, (4, 2)).transpose(1, 2)
        scores = (q @ k.mT + turned @ self.k_turned(x)[:, None].mT) / 6**0.5
        return self.merged(scores.softmax(-1) @ v)


def test_queries_that_are_not_all_of_the_scores_are_refused_and_the_rest_is_read() -> None:
    model = _Split().eval()
    anatomy = discover(model, {"x": X})
    (site,) = anatomy.sites
    assert set(site.refused) == {"q", "k", "bias"}
    assert site.query == ()
    with pytest.raises(AnatomyError, match="the sum of several products"), capture(model, ("q",), anatomy=anatomy):
        pass
    with torch.no_grad():
        q, k, v = model.heads(X)
        turned = model.q_turned(X).unflatten(-1, (4, 2)).transpose(1, 2)
        want = ((q @ k.mT + turned @ model.k_turned(X)[:, None].mT) / 6**0.5).softmax(-1)
        with capture(model, ("pattern", "z"), anatomy=anatomy) as seen:
            model(X)
        torch.testing.assert_close(seen[0].pattern, want)
        z = want @ v
        torch.testing.assert_close(seen[0].z, z)
        z[:, 1] = 0
        with ablate(model, ["L0H1"], anatomy=anatomy):
            torch.testing.assert_close(model(X), model.merged(z))


class _Halves(_Layer):
    """Half of the heads see their neighbours alone, by a slice of the scores of all."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        scores = q @ k.mT / 2
        far = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(2)
        near = scores[:, :2].masked_fill(far, -1e9).softmax(-1) @ v[:, :2]
        return self.merged(torch.cat([near, scores[:, 2:].softmax(-1) @ v[:, 2:]], 1))


class _Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.halves, self.plain = _Halves(), nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.halves(x)
        out: Tensor = x + self.plain(x, x, x)[0]
        return out


def test_a_layer_that_is_not_read_is_named_and_takes_no_other_down() -> None:
    anatomy = discover(_Both().eval(), {"x": X})
    assert [site.module_name for site in anatomy.sites] == ["plain"]
    assert "not read: halves (_Halves) looks like attention" in anatomy.remarks[-1]
