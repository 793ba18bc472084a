"""Layers that run with as many heads as ever: the heads left are told, also where each has operations of its own."""

import pytest
import torch
from torch import nn

from headscope.anatomy import discover
from headscope.surgery import prune
from headscope.watching.observation import capture


class OneByOne(nn.Module):
    """Runs its heads in a loop, and looks back as far as each may: it knows by heart how many they are."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(24, 24) for _ in range(4))
        self.reach = [2, 3, 4, 1000]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        apart = (torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])).abs()
        q, k, v = (part(x).split(6, -1) for part in (self.q, self.k, self.v))
        heads = [
            (q[i] @ k[i].mT).masked_fill(apart >= far, -1e9).softmax(-1) @ v[i] for i, far in enumerate(self.reach)
        ]
        return self.o(torch.cat(heads, -1))


@pytest.mark.parametrize("gone", [(1,), (0, 2)])
def test_heads_in_a_loop_are_told_and_cut_again(gone: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x = OneByOne(), torch.randn(2, 5, 24)
    pruned = prune(model, [(0, head) for head in gone], example={"x": x})
    (site,) = discover(pruned, {"x": x}).sites
    assert site.head_ids == tuple(head for head in range(4) if head not in gone)
    with torch.no_grad(), capture(pruned, ["z"], example={"x": x}) as cut:
        pruned(x)
    with torch.no_grad(), capture(model, ["z"], example={"x": x}) as whole:
        model(x)
    torch.testing.assert_close(cut[0].z, whole[0].z[:, list(site.head_ids)], rtol=0, atol=1e-5)
    again = prune(pruned, ["L0H3"], example={"x": x})
    with torch.no_grad():
        for head in (*gone, 3):
            model.o.weight[:, 6 * head : 6 * head + 6] = 0
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=1e-5)
