"""What is proven on one size holds for others: more rows, more positions, pictures of another shape."""

import copy

import pytest
import torch
from torch import nn

from headscope.surgery import prune


class OverPictures(nn.Module):
    """Positions come after heads, and may be as many as a width that was put right."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Conv2d(32, 32, 1) for _ in range(4))

    def forward(self, x):
        b, c, h, w = x.shape
        q, k, v = (layer(x).view(b, c // 8, 8, h * w) for layer in (self.q, self.k, self.v))
        p = torch.einsum("bhdt,bhds->bhts", q, k).mul(8**-0.5).softmax(-1)
        return self.o(torch.einsum("bhts,bhds->bhdt", p, v).reshape(b, -1, h, w))


class Growing(nn.Module):
    """Keeps a bias by head, and makes it anew from its number of heads when a text is longer."""

    def __init__(self):
        super().__init__()
        self.heads = 4
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        self.register_buffer("bias", self.make(6), persistent=False)

    def make(self, length):
        apart = (torch.arange(length)[:, None] - torch.arange(length)).abs()
        return -apart * 2.0 ** (-8 * (torch.arange(self.heads) + 1) / self.heads)[:, None, None]

    def forward(self, x):
        if x.shape[1] > self.bias.shape[-1]:
            self.bias = self.make(x.shape[1])
        q, k, v = (part(x).unflatten(-1, (-1, 8)).transpose(1, 2) for part in (self.q, self.k, self.v))
        p = (q @ k.mT / 8**0.5 + self.bias[:, : x.shape[1], : x.shape[1]]).softmax(-1)
        return self.o((p @ v).transpose(1, 2).flatten(2))


class HandsHeadsFirst(nn.Module):
    """Hands a bias of (heads · rows, 1, position) to the layer: one row does not tell which of them comes first."""

    def __init__(self):
        super().__init__()
        self.inner, self.bias = _Given(), nn.Parameter(torch.randn(4, 1, 1, 5))

    def forward(self, x):
        return self.inner(x, (self.bias * x.mean((1, 2))[:, None, None]).flatten(0, 1))


class _Given(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x, bias):
        q, k, v = (part(x).unflatten(-1, (-1, 8)).transpose(1, 2) for part in (self.q, self.k, self.v))
        own = bias.unflatten(0, (-1, len(x))).transpose(0, 1)
        return self.o((((q @ k.mT) / 8**0.5 + own).softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("kind", "example", "others"),
    [
        (OverPictures, (2, 32, 3, 5), [(2, 32, 2, 2), (2, 32, 4, 8), (1, 32, 8, 8), (2, 32, 8, 12), (2, 32, 2, 5)]),
        (Growing, (2, 5, 32), [(2, 9, 32), (2, 5, 32), (1, 6, 32)]),
        (HandsHeadsFirst, (1, 5, 32), [(2, 5, 32), (4, 5, 32), (1, 5, 32)]),
    ],
)
@pytest.mark.parametrize("gone", [(0,), (1, 2)])
def test_what_is_proven_on_one_size_holds_for_others(kind, example, others, gone):
    torch.manual_seed(0)
    model = kind().eval()
    masked = copy.deepcopy(model)
    columns = [head * 8 + dim for head in gone for dim in range(8)]
    (masked.inner if hasattr(masked, "inner") else masked).o.weight.data[:, columns] = 0
    pruned = prune(model, [(0, head) for head in gone], example={"x": torch.randn(example)})
    for shape in others:
        x = torch.randn(shape)
        torch.testing.assert_close(pruned(x), masked(x), atol=1e-5, rtol=0, msg=f"{kind.__name__} {shape}")
