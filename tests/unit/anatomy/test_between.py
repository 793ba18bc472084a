"""What stands between heads and the layer that reads them, against outputs with z itself set to zero."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headscope.anatomy import discover
from headscope.effects.ablation import ablate
from headscope.errors import AnatomyError
from headscope.watching.observation import capture

X = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(0))


class _Layer(nn.Module):
    """Attention of 4 heads of 4 dimensions; `after` makes of z, merged, what the projection reads."""

    def __init__(self, after: Callable[["_Layer", Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.place, self.bias = nn.Parameter(torch.randn(7, 16)), nn.Parameter(torch.randn(16))
        self.local = nn.Conv1d(16, 16, 3, padding=1, groups=16)
        self.after = after
        self.off: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (4, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        z = (q @ k.mT / 2).softmax(-1) @ v
        if self.off is not None:
            z = z.clone()
            z[:, self.off] = 0
        out: Tensor = self.o(self.after(self, z.transpose(1, 2).flatten(2), x, v.transpose(1, 2).flatten(2)))
        return out


ADDED = {
    "residual": lambda layer, z, x, v: z + x,
    "offset": lambda layer, z, x, v: z - x,
    "mixed": lambda layer, z, x, v: 0.5 * z + 0.5 * x,
    "places": lambda layer, z, x, v: z + layer.place,
}


@pytest.mark.parametrize("name", ADDED)
def test_what_is_added_to_the_heads_is_none_of_theirs(name: str) -> None:
    model = _Layer(ADDED[name]).eval()
    anatomy = discover(model, {"x": X})
    assert "something else is added to it before" in anatomy.remarks[0]
    for tensor in ("contribution", "gated_z", "written"):
        with (
            pytest.raises(AnatomyError, match="more than what the heads make"),
            capture(model, (tensor,), anatomy=anatomy),
        ):
            pass
    with pytest.raises(AnatomyError, match="more than what the heads make"), ablate(model, ["L0H1"], anatomy=anatomy):
        pass
    with torch.no_grad(), capture(model, ("pattern", "v", "z"), anatomy=anatomy) as seen:
        model(X)
    torch.testing.assert_close(seen[0].pattern @ seen[0].v, seen[0].z)


MADE_OF_Z = {
    "gate": lambda layer, z, x, v: z * torch.sigmoid(x),
    "relu": lambda layer, z, x, v: F.relu(z),
    "norm": lambda layer, z, x, v: F.rms_norm(z.unflatten(-1, (4, 4)), (4,)).flatten(2),
}


@pytest.mark.parametrize("name", MADE_OF_Z)
def test_what_is_made_of_the_heads_alone_is_theirs(name: str) -> None:
    model = _Layer(MADE_OF_Z[name]).eval()
    anatomy = discover(model, {"x": X})
    (site,) = anatomy.sites
    assert (site.refused, site.entangled, site.gated) == ({}, (), True)
    assert site.output is not None
    # columns that are dead on the example, behind a ReLU, belong to their heads all the same
    assert site.output.heads == tuple(tuple(range(4 * head, 4 * head + 4)) for head in range(4))
    with torch.no_grad():
        for head in range(4):
            with ablate(model, [(0, head)], anatomy=anatomy):
                out = model(X)
            model.off = head
            torch.testing.assert_close(out, model(X))
            model.off = None
        with capture(model, ("contribution",), anatomy=anatomy) as seen:
            want = model(X)
        torch.testing.assert_close(seen[0].contribution.sum(1) + model.o.bias, want)


def test_what_a_head_adds_of_its_own_values_is_its_own() -> None:
    def with_local(layer: _Layer, z: Tensor, x: Tensor, v: Tensor) -> Tensor:
        local: Tensor = layer.local(v.mT).mT
        return z + local

    model = _Layer(with_local).eval()
    anatomy = discover(model, {"x": X})
    assert anatomy.sites[0].refused == {}
    with torch.no_grad(), capture(model, ("contribution",), anatomy=anatomy) as seen:
        want = model(X)
    torch.testing.assert_close(seen[0].contribution.sum(1) + model.o.bias, want)


def test_positions_that_never_reach_the_projection_have_no_contribution() -> None:
    model = _Layer(lambda layer, z, x, v: z[:, :1]).eval()
    anatomy = discover(model, {"x": X})
    assert anatomy.sites[0].refused["contribution"] == "only 1 of 7 positions reach o"


class _Summed(nn.Module):
    """Heads projected one by one, each by a matrix of its own, and summed; then a layer that reads all there is."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.w, self.f = nn.Parameter(torch.randn(4, 4, 16) / 4), nn.Linear(16, 5)
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (4, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        z = (q @ k.mT / 2).softmax(-1) @ v
        each = torch.einsum("bhtd,hdm->bhtm", z, self.w) if self.spelling == "einsum" else z @ self.w
        out: Tensor = self.f(x + each.sum(1))
        return out


@pytest.mark.parametrize("spelling", ["einsum", "matmul"])
def test_heads_with_a_matrix_each_are_told_apart_and_the_next_layer_is_not_theirs(spelling: str) -> None:
    model = _Summed(spelling).eval()
    anatomy = discover(model, {"x": X})
    (site,) = anatomy.sites
    assert (site.n_heads, site.batch, site.prunable) == (4, "b", False)
    with torch.no_grad(), capture(model, ("q", "z"), anatomy=anatomy) as seen:
        model(X)
    torch.testing.assert_close(seen[0].q, model.q(X).unflatten(-1, (4, 4)).transpose(1, 2))
    with pytest.raises(AnatomyError, match="cannot be switched off"), ablate(model, ["L0H1"], anatomy=anatomy):
        pass


def test_values_that_maps_carry_beside_the_layer_s_own_are_the_heads_own() -> None:
    """Relative positions with values of their own (Shaw et al. 2018, arXiv:1803.02155), as VITS has them."""

    class Relative(_Layer):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (part(x).unflatten(-1, (4, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
            pattern = (q @ k.mT / 2).softmax(-1)
            z = pattern @ v + pattern @ self.place[:, :4]
            out: Tensor = self.o(z.transpose(1, 2).flatten(2))
            return out

    model = Relative(lambda layer, z, x, v: z).eval()
    anatomy = discover(model, {"x": X})
    assert "contribution" not in anatomy.sites[0].refused
    with torch.no_grad(), capture(model, ("contribution",), anatomy=anatomy) as seen:
        want = model(X)
    torch.testing.assert_close(seen[0].contribution.sum(1) + model.o.bias, want)
