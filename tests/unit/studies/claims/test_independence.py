"""C13: what a removed head does to the maps beside it and behind it, and verdicts from planted numbers."""

from math import nan

import pytest
import torch
from torch import Tensor, nn

from headscope.models.reference import Transformer, example
from headscope.studies.claims import FAILS, HOLDS
from headscope.studies.claims.independence import Independence
from headscope.studies.subjects import Subject
from tests.words import numbers_in


class TwoLayers(nn.Module):
    """Attention in one piece with the model around it, one layer after the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 16)
        self.first, self.second = (nn.ModuleDict({n: nn.Linear(16, 16) for n in "qkvo"}) for _ in range(2))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(input_ids)
        x = x + self._attend(self.first, x)
        return x + self._attend(self.second, x)

    def _attend(self, layer: nn.ModuleDict, x: Tensor) -> Tensor:
        q, k, v = (layer[name](x).unflatten(-1, (2, 8)).transpose(1, 2) for name in "qkv")
        z = nn.functional.scaled_dot_product_attention(q, k, v)
        return layer["o"](z.transpose(1, 2).flatten(2))


def test_heads_of_later_layers_move_and_those_beside_do_not() -> None:
    claim = Independence()
    words = claim.measure(Subject("small", TwoLayers().eval(), example()[1])).words
    assert (words["effect"], words["kept"], words["removed"]) == (0, 2, 2)
    assert words["later"] > 0
    assert claim.decide(words) == HOLDS
    assert "to the last bit" in claim.say(words).en
    said = claim.follow(words)
    assert numbers_in(said.en) == numbers_in(said.ja) != []


def test_where_there_is_no_later_layer_nothing_is_said_of_one() -> None:
    model = Transformer(50, width=16, n_layers=1, n_heads=1, length=32).eval()
    claim = Independence()
    assert not claim.follow(claim.measure(Subject("small", model, example()[1])).words)


class NormedTogether(TwoLayers):
    """The same, with a norm over the queries of all heads in the second layer."""

    def _attend(self, layer: nn.ModuleDict, x: Tensor) -> Tensor:
        q, k, v = (layer[name](x) for name in "qkv")
        if layer is self.second:
            q = nn.functional.rms_norm(q, q.shape[-1:])
        q, k, v = (one.unflatten(-1, (2, 8)).transpose(1, 2) for one in (q, k, v))
        return layer["o"](nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_heads_whose_queries_are_mixed_are_not_independent_though_no_removal_shows_it() -> None:
    claim = Independence()
    words = claim.measure(Subject("small", NormedTogether().eval(), example()[1])).words
    assert words["effect"] == 0
    assert claim.decide(words).told() == "holds in part (1 of 2 layers)"
    assert "In 1 of 2 layers the heads' queries, keys or values cannot be told apart" in claim.say(words).en
    assert "2層中1層では" in claim.say(words).ja


@pytest.mark.parametrize(
    ("kept", "told"), [(8.0, "holds"), (7.0, "holds in part (7 of 8 layers)"), (0.0, "does not hold")]
)
def test_the_least_change_beside_a_removed_head_counts(kept: float, told: str) -> None:
    claim, words = Independence(), {"effect": 1e-7, "kept": kept, "removed": 8.0, "mixed": 0.0, "later": nan}
    assert claim.decide(words).told() == told
    assert (claim.decide(words) == FAILS) == (kept == 0)
    assert numbers_in(claim.say(words).en) == numbers_in(claim.say(words).ja) == ["1.00×10⁻⁷"]
