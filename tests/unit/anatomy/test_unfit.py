"""Models that cannot be tried are refused by what they are, and are as they were."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from headscope.anatomy import discover
from headscope.errors import AnatomyError
from headscope.watching.observation import capture

X = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(0))


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.attention(x, x, x)[0]
        return out


class _Again(_Net):
    def forward(self, x: Tensor, turned: bool = False) -> Tensor:
        out: Tensor = super().forward(x)
        return out if turned else out + self(x.flip(1), turned=True).flip(1)


class _Teacher(_Net):
    """Its slow copy follows its weights in each forward pass, as in BLIP."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.slow, self.way = _Net(), way

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for own, slow in zip(self.attention.parameters(), self.slow.attention.parameters(), strict=True):
                if self.way == "in place":
                    slow.mul_(0.9).add_(0.1 * own)
                elif self.way == "behind autograd":
                    slow.data.mul_(0.9).add_(0.1 * own.data)
                else:
                    slow.data = 0.9 * slow.data + 0.1 * own.data
        out: Tensor = super().forward(x) + self.slow(x)
        return out


def test_a_forward_that_runs_itself_is_refused() -> None:
    with pytest.raises(AnatomyError, match="_Again runs itself within its own forward"):
        discover(_Again().eval(), {"x": X})


@pytest.mark.parametrize("way", ["in place", "behind autograd"])
def test_a_forward_that_writes_into_its_own_weights_is_refused(way: str) -> None:
    with pytest.raises(AnatomyError, match="_Teacher writes into its own weights while it runs"):
        discover(_Teacher(way).eval(), {"x": X})


def test_weights_that_a_forward_puts_others_in_the_place_of_come_back() -> None:
    model = _Teacher("anew").eval()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    assert len(discover(model, {"x": X}).sites) == 2
    for name, one in model.state_dict().items():
        assert torch.equal(one, before[name]), name


class _Flexible(_Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.attention.out_proj(x)
        heads = x.unflatten(-1, (4, 4)).transpose(1, 2)
        out: Tensor = x + flex_attention(heads, heads, heads).transpose(1, 2).flatten(2)
        return out


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_kernel_without_gradients_is_not_blamed_on_the_model() -> None:
    with torch.no_grad():
        assert _Flexible()(X).shape == X.shape
    with pytest.raises(AnatomyError, match="_Flexible runs, and not with gradients and headscope beside it"):
        discover(_Flexible().eval(), {"x": X})


class _Rounds(nn.Linear):
    """A layer that rounds what enters it, as layers with 8-bit activations do."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear((x * 32).round() / 32, self.weight, self.bias)


def test_a_layer_that_rounds_what_heads_make_is_told_of_and_maps_are_read() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.q, self.k, self.v, self.o = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16), _Rounds(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (part(x).unflatten(-1, (4, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
            out: Tensor = self.o(((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).flatten(2))
            return out

    model = Net().eval()
    anatomy = discover(model, {"x": X})
    (site,) = anatomy.sites
    assert set(site.refused) == {"contribution", "written"}
    with torch.no_grad(), capture(model, ("q", "k", "pattern"), anatomy=anatomy) as seen:
        model(X)
    torch.testing.assert_close((seen[0].q @ seen[0].k.mT / 2).softmax(-1), seen[0].pattern)


def test_numbers_of_double_precision_are_held_to_it() -> None:
    model = _Net().double().eval()
    assert [site.refused for site in discover(model, {"x": X.double()}).sites] == [{}]


def test_what_torch_made_of_a_model_is_named() -> None:
    model = nn.Sequential(nn.Linear(16, 16)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out
        traced = torch.jit.trace(model, (X,))
    exported = torch.export.export(model, (X,)).module()
    for made in (traced, exported):
        with pytest.raises(AnatomyError, match=r"is what torch\.jit or torch\.export made of a model"):
            discover(made, {"x": X})
