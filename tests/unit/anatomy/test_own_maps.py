"""A model's own maps are a second opinion where they are maps, and where asking for them changes nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import FalconConfig, FalconForCausalLM, SqueezeBertConfig, SqueezeBertModel

from headscope.anatomy import discover
from headscope.errors import AnatomyError
from headscope.watching.observation import capture

WIDTH, HEADS, DIM, LENGTH = 12, 3, 4, 9  # more keys than dimensions: several maps give the same z


class Telling(nn.Module):
    """Two layers that hand out their maps, or something like it.

    Args:
        tells: "map"; "another" map that gives the same z; "scores"; "moved": another map, and another output with it;
            "one": of the first layer alone.
    """

    def __init__(self, tells: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tells = tells
        self.layers = nn.ModuleList(_Layer() for _ in range(2))

    def forward(self, x: Tensor, output_attentions: bool = False) -> dict[str, Any]:
        maps = []
        for layer in self.layers:
            x, told = layer(x)
            maps.append(told["another" if self.tells == "moved" else "map" if self.tells == "one" else self.tells])
        if not output_attentions:
            return {"hidden": x}
        return {"hidden": x + (self.tells == "moved"), "attentions": tuple(maps[: 1 if self.tells == "one" else 2])}


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        q, k, v = (one(x).unflatten(-1, (HEADS, DIM)).transpose(1, 2) for one in (self.q, self.k, self.v))
        scores = q @ k.mT / DIM**0.5
        pattern = scores.softmax(-1)
        out = self.o((pattern @ v).transpose(1, 2).flatten(2))
        return out, {"map": pattern, "scores": scores, "another": pattern + 0.2 * _unseen(v)}


def _unseen(v: Tensor) -> Tensor:
    """(batch, head, query, key): what a map may have more without z's having it."""
    space = torch.linalg.svd(v.detach().mT, full_matrices=True)[2][..., -1:, :]
    return space.expand(*v.shape[:2], v.shape[2], v.shape[2])


@pytest.mark.parametrize(
    ("tells", "refused", "remark"),
    [
        ("map", "", ""),
        ("another", "away from the one that the model itself gives", "no pattern: its map is"),
        ("scores", "", "it gives something else than what mixes its values, in 2 of 2 layers"),
        ("moved", "", ""),
        ("one", "", ""),
    ],
)
def test_a_map_of_its_own_that_gives_the_same_z_decides(tells: str, refused: str, remark: str) -> None:
    model = Telling(tells)
    x = torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))
    anatomy = discover(model, {"x": x})
    assert refused in anatomy.sites[0].refused.get("pattern", "")
    assert bool(anatomy.sites[0].refused) == bool(refused)
    assert remark in " ".join(anatomy.remarks)
    assert bool(anatomy.remarks) == bool(remark)
    if refused:
        with pytest.raises(AnatomyError, match=refused), capture(model, ("pattern",), anatomy=anatomy):
            model(x)


def test_falcon_changes_when_it_is_asked_and_is_read_right() -> None:
    torch.manual_seed(0)
    config = FalconConfig(vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    model = FalconForCausalLM(config).eval()
    ids = torch.randint(3, 99, (2, 8))
    asked = model(ids, output_attentions=True)
    assert (asked.logits - model(ids).logits).abs().max() > 1e-3, "else it is no trap any more, and may leave"
    with capture(model, ("pattern",)) as seen:
        model(ids)
    assert seen[0].pattern.triu(1).abs().max() == 0
    assert discover(model).remarks == ()


def test_scores_in_place_of_maps_are_said() -> None:
    config = SqueezeBertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32,
        embedding_size=32,
    )  # fmt: skip
    (remark,) = discover(SqueezeBertModel(config).eval()).remarks
    assert "something else than what mixes its values" in remark
