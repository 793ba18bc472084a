"""C16: which pairs a mask leaves, by kind of layer."""

from typing import Any

import pytest
import torch
from torch import nn

from headscope.models.reference import Transformer, example
from headscope.studies.asking import ask_model
from headscope.studies.claims.all_pairs import AllPairs
from headscope.studies.layers import Layer, named
from headscope.studies.rulings import Ruling
from headscope.studies.subjects import Subject
from tests.families import build_any
from tests.models import build
from tests.words import same_numbers

CLAIM = AllPairs()


def ask(model: nn.Module, batches: Any = None) -> Ruling:
    return ask_model(Subject("small", model, example()[1] if batches is None else batches, quick=True), ["C16"])["C16"]


def planted(*layers: tuple[str, float, float]) -> dict[str, float]:
    words = {"tokens": 20.0, "effect": 0.5}
    for number, (kind, allowed, met) in enumerate(layers):
        layer = Layer(kind, number)
        words |= {named("least_allowed", layer): allowed, named("least_met", layer): met, named("span", layer): 0.25}
    return words


def test_an_encoder_hides_nothing_but_padding() -> None:
    model = Transformer(50, width=16, n_layers=2, n_heads=2, length=32).eval()
    padded = [{**batch, "attention_mask": batch["attention_mask"].clone()} for batch in example()[1]]
    for batch in padded:
        batch["attention_mask"][:, 20:] = 0
    ruling = ask(model, padded)
    assert (ruling.verdict.word, ruling.effect) == ("holds", 1.0)
    assert "up to 20 tokens, encoder layers (2) allow 100%" in ruling.sentence.en


def test_a_causal_model_hides_the_future_alone() -> None:
    ruling = ask(example()[0])
    assert ruling.effect == pytest.approx((32 * 33 / 2) / 32**2)
    assert ruling.verdict.told() == "holds in part (with itself and earlier tokens only)"
    assert ruling.table["kind"].unique().tolist() == ["causal"]
    assert ruling.table["met"].tolist() == [1.0] * len(ruling.table)


def test_a_window_is_seen_where_it_is_shorter_than_the_text() -> None:
    """Layer 0 of this model looks back 8 tokens, layer 1 all the way."""
    torch.manual_seed(0)
    rows = [{"input_ids": torch.randint(3, 50, (4, 20)), "document": torch.arange(4)}]
    ruling = ask(build("gemma3"), rows)
    assert ruling.table["kind"].tolist() == ["windowed", "causal"]
    seen = sum(min(query + 1, 8) for query in range(20))
    assert ruling.table["allowed"].tolist() == pytest.approx([seen / 400, 210 / 400])
    assert ruling.table["met"].tolist() == pytest.approx([(2 * seen - 20) / 400, 1.0])
    assert ruling.verdict.where.en == "with itself and earlier tokens, causal layers only"
    assert {"windowed", "causal"} <= set(ruling.sentence.en.replace(",", "").split())
    assert same_numbers(ruling.sentence)
    short = [{name: own[:, :7] if own.ndim == 2 else own for name, own in rows[0].items()}]
    assert ask(build("gemma3"), short).table["kind"].tolist() == ["causal", "causal"]


def test_two_sides_are_told_apart() -> None:
    torch.manual_seed(0)
    ids = torch.randint(3, 60, (4, 12))
    rows = [{"input_ids": ids, "decoder_input_ids": ids[:, :7], "document": torch.arange(4)}]
    ruling = ask(build_any("t5"), rows)
    assert ruling.verdict.where.en == "encoder and cross-attention layers only"
    assert ruling.verdict.where.ja == "エンコーダ層とクロスアテンション層のみ"
    assert same_numbers(ruling.sentence)
    assert same_numbers(ruling.follows)


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ([("encoder", 1.0, 1.0)] * 3, "holds"),
        ([("causal", 0.5, 1.0)] * 3, "holds in part (with itself and earlier tokens only)"),
        ([("windowed", 0.2, 0.9)] * 3, "does not hold"),
        ([("encoder", 1.0, 1.0), ("windowed", 0.2, 0.9)], "holds in part (encoder layers only)"),
        ([("causal", 0.5, 1.0), ("causal", 0.5, 0.99)], "holds in part (with itself and earlier tokens, layer 0 only)"),
    ],
)
def test_the_rule_follows_from_shares(layers: Any, told: str) -> None:
    words = planted(*layers)
    assert CLAIM.decide(words).told() == told
    assert same_numbers(CLAIM.say(words))
    assert same_numbers(CLAIM.follow(words))


def test_sharp_weights_are_no_mask() -> None:
    torch.manual_seed(0)
    model = Transformer(50, width=16, n_layers=1, n_heads=1, length=32).eval()
    attention: Any = model.blocks[0].attention
    attention.query.weight.data *= 200
    ruling = ask(model)
    assert (ruling.verdict.word, ruling.effect) == ("holds", 1.0)
