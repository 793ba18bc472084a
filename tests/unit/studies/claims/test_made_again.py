"""C2, C3, C4: formulas held against models that follow them or do not, and verdicts from planted layers."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from headscope.errors import NumericalError
from headscope.models.reference import Transformer, example
from headscope.reporting.figures import styling
from headscope.studies.asking import ask_model
from headscope.studies.claims import FAILS, HOLDS, Measured, claim_named
from headscope.studies.made_again import MadeAgain, apart
from headscope.studies.rulings import pool
from headscope.studies.subjects import Subject
from tests.words import numbers_in

NAMES = ("C2", "C3", "C4")


def planted(kept: float, layers: float = 6.0, effect: float = 0.5, left_out: float = 0.0) -> dict[str, float]:
    further = {"largest_row_sum": 0.25, "largest_tokens": 12.0, "largest_dims": 8.0, "largest_heads": 4.0}
    return {"effect": effect, "kept": kept, "layers": layers, "left_out": left_out, **further}


def test_a_difference_is_of_the_largest_number_of_the_layer() -> None:
    real = torch.tensor([[1.0, -4.0], [2.0, 3.0]])
    made = torch.tensor([[1.0, -4.0], [2.0, 3.5]])
    assert apart(7, made, real) == {"layer": 7, "difference": 0.125, "allowed": 1e-4}
    assert apart(0, real, real)["difference"] == 0
    assert apart(0, torch.zeros(3), torch.zeros(3))["difference"] == 0
    assert apart(0, torch.ones(3), torch.zeros(3))["difference"] == np.inf
    assert apart(0, made, real.bfloat16())["allowed"] == apart(0, made, real, made.bfloat16())["allowed"] == 0.05


@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf])
def test_what_is_no_number_is_not_held_against_anything(spoilt: float) -> None:
    with pytest.raises(NumericalError, match="layer 3 computes NaN or infinity"):
        apart(3, torch.ones(2), torch.tensor([1.0, spoilt]))


@pytest.mark.parametrize("name", NAMES)
def test_layers_decide(name: str) -> None:
    claim = claim_named(name)
    assert claim.decide(planted(6.0)) == HOLDS
    assert claim.decide(planted(0.0)) == FAILS
    some = claim.decide(planted(4.0))
    assert (some.told(), some.told("ja")) == ("holds in part (4 of 6 layers)", "一部で成り立つ(6層中4層)")


@pytest.mark.parametrize("name", NAMES)
def test_both_languages_say_the_same_numbers(name: str) -> None:
    said = claim_named(name).say(planted(6.0, effect=3.21e-5, left_out=2.0))
    assert numbers_in(said.en) == numbers_in(said.ja)
    assert "2 layers could not be asked." in said.en
    assert "測定できない層が2層" in said.ja
    assert "asked" not in claim_named(name).say(planted(6.0)).en


def test_the_largest_difference_of_any_seed_decides() -> None:
    seeds = [
        Measured(effect, "2 layers", {**planted(kept, 2.0), "layers": 2.0})
        for effect, kept in ((0, 2), (0, 2), (0.004, 1))
    ]
    worst = pool(seeds, worst=True)
    assert worst.effect == 0.004
    assert np.isnan(worst.low)
    assert claim_named("C2").decide(worst.words).told() == "holds in part (1.67 of 2 layers)"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_rounding_of_no_format_is_a_difference(name: str, dtype: torch.dtype) -> None:
    model, batches = example()
    claim: Any = claim_named(name)
    measured = claim.measure(Subject("small", model.to(dtype), batches))
    assert claim.decide(measured.words) == HOLDS
    assert (measured.table["difference"] <= torch.finfo(dtype).eps * 4).all()  # and next to nothing in each


class Leaking(nn.Module):
    """One layer whose maps are as the formula says, and one whose rows leave a part to a sink."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 16)
        self.plain, self.sunk = (nn.ModuleDict({n: nn.Linear(16, 16) for n in "qkvo"}) for _ in range(2))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for layer, sink in ((self.plain, False), (self.sunk, True)):
            q, k, v = (layer[name](x).unflatten(-1, (2, 8)).transpose(1, 2) for name in "qkv")
            scores = q @ k.mT / 8**0.5
            if sink:
                scores = torch.cat([scores, torch.zeros_like(scores[..., :1])], -1)
            weights = scores.softmax(-1)[..., : k.shape[2]]
            x = x + layer["o"]((weights @ v).transpose(1, 2).flatten(2))
        return x


def test_a_layer_that_does_more_than_the_formula_says_is_counted() -> None:
    batches = [{"input_ids": torch.randint(50, (4, 7), generator=torch.Generator().manual_seed(0))}]
    ruling = ask_model(Subject("small", Leaking().eval(), batches), ["C2"]).rulings[0]
    assert ruling.verdict.told() == "holds in part (1 of 2 layers)"
    assert list(ruling.table["difference"] <= ruling.table["allowed"]) == [True, False]


def test_outputs_are_told_as_large_as_they_are() -> None:
    model = Transformer(50, width=16, n_layers=2, n_heads=2, length=32).eval()
    padded = [{**batch, "attention_mask": batch["attention_mask"].clone()} for batch in example()[1]]
    for batch in padded:
        batch["attention_mask"][:, 20:] = 0
    ruling = ask_model(Subject("small", model, padded), ["C3"]).rulings[0]
    assert "up to 20 tokens × 8" in ruling.sentence.en
    assert "最大20トークン×8次元" in ruling.sentence.ja


def test_the_three_figures_are_one_drawing() -> None:
    table = pd.DataFrame({"layer": [0, 1], "difference": [0.0, 1e-6], "allowed": 1e-4})
    drawn = []
    for name in NAMES:
        claim = claim_named(name)
        assert isinstance(claim, MadeAgain)
        with styling():
            ax = claim.draw(table).axes[0]
        line = [text.get_text() for text in ax.texts]
        drawn.append((ax.get_ylabel(), ax.get_ylim(), ax.lines[0].get_ydata().tolist(), line))  # type: ignore[union-attr]
    assert drawn[0] == drawn[1] == drawn[2]
    assert drawn[0][2:] == ([1e-9, 1e-6], ["0.01%"])
