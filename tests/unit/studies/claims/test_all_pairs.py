"""C16: which pairs a mask leaves, by kind of layer."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    Dots1Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPTNeoConfig,
    LlamaConfig,
    LongformerConfig,
    LongT5Config,
    MistralConfig,
    ModernBertConfig,
    Qwen2Config,
    T5GemmaConfig,
)

import headscope as hs
from headscope.errors import InputError
from headscope.models.reference import Transformer, example
from headscope.studies.asking import ask_model
from headscope.studies.claims.all_pairs import AllPairs
from headscope.studies.layers import Layer, named
from headscope.studies.reach import _reach, declared_window, open_pairs
from headscope.studies.rulings import Ruling
from headscope.studies.subjects import Subject
from tests.families import build_any
from tests.models import build
from tests.words import same_numbers

CLAIM = AllPairs()


def ask(model: nn.Module, batches: Any = None) -> Ruling:
    return ask_model(Subject("small", model, example()[1] if batches is None else batches, quick=True), ["C16"])["C16"]


def planted(*layers: tuple[str, float, float]) -> dict[str, float]:
    words = {"tokens": 20.0, "span_tokens": 10.0, "unseen": 0.0, "effect": 0.5}
    for number, (kind, allowed, met) in enumerate(layers):
        layer = Layer(kind, number)
        words |= {named("least_allowed", layer): allowed, named("least_met", layer): met, named("span", layer): 0.25}
        words[named("largest_farthest", layer)] = 8.0 if kind == "windowed" else 20.0
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


def windowed(length: int, most: int) -> tuple[nn.Module, list[dict[str, Any]]]:
    """A model whose layer 0 looks back 8 tokens and layer 1 all the way, that takes so many; and rows of a length."""
    torch.manual_seed(0)
    model: Any = build("gemma3")
    model.config.max_position_embeddings = most
    return model, [{"input_ids": torch.randint(3, 50, (4, length)), "document": torch.arange(4)}]


@pytest.mark.parametrize("length", [7, 20])
def test_a_window_is_seen_however_short_the_text(length: int) -> None:
    """Rows of 7 tokens and of 20, below the window and above, stretched to the 64 that the model says it takes."""
    ruling = ask(*windowed(length, 64))
    assert ruling.table["kind"].tolist() == ["windowed", "causal"]
    assert ruling.table["tokens"].tolist() == [64, 64]
    assert ruling.table["farthest"].tolist() == [8, 64]
    seen = sum(min(query + 1, 8) for query in range(64))
    assert ruling.table["allowed"].tolist() == pytest.approx([seen / 64**2, 64 * 65 / 2 / 64**2])
    assert ruling.table["met"].tolist() == pytest.approx([(2 * seen - 64) / 64**2, 1.0])
    assert ruling.verdict.where.en == "with itself and earlier tokens, in causal layers only"
    assert "windowed layers (1) allow 12%: a query sees no farther than 8 tokens" in ruling.sentence.en
    assert f"in texts of up to {length} tokens" in ruling.follows.en
    assert same_numbers(ruling.sentence)
    assert same_numbers(ruling.follows)


@pytest.mark.parametrize("length", [7, 8])
def test_a_declared_window_that_no_text_reaches_is_told_in_the_verdict(length: int) -> None:
    ruling = ask(*windowed(length, length))
    assert ruling.table["kind"].tolist() == ["causal", "causal"]
    assert ruling.verdict.told() == f"holds in part (with itself and earlier tokens only, up to {length} tokens)"
    assert ruling.verdict.told("ja") == f"一部で成り立つ(自分自身とそれより前のトークンとのみ、{length}トークンまで)"
    assert "The model declares a window of 8 tokens, and no text here is longer" in ruling.sentence.en
    assert same_numbers(ruling.sentence)


def test_what_masks_hide_counts_for_more_than_what_is_declared() -> None:
    model: Any = build("gpt2")
    model.config.sliding_window = 2  # which no layer of it reads
    assert declared_window(model) == 2
    ruling = ask(model, [{"input_ids": torch.randint(3, 50, (4, 20)), "document": torch.arange(4)}])
    assert ruling.verdict.told() == "holds in part (with itself and earlier tokens only)"
    assert "declares" not in ruling.sentence.en


def test_padding_is_not_repeated() -> None:
    model, rows = windowed(20, 64)
    mask = torch.ones(4, 20, dtype=torch.long)
    mask[:, 15:] = 0
    ruling = ask(model, [{**rows[0], "attention_mask": mask}])
    assert ruling.table["tokens"].tolist() == [64, 64]
    assert ruling.table["farthest"].tolist() == [8, 64]


def test_a_model_that_takes_less_than_it_says_is_seen_on_its_rows_as_they_are() -> None:
    model, rows = windowed(20, 64)
    inner: Any = model.forward

    def forward(input_ids: Any, **rest: Any) -> Any:
        if input_ids.shape[1] > 20:
            raise IndexError("index out of range in self")
        return inner(input_ids=input_ids, **rest)

    model.forward = forward
    ruling = ask(model, rows)
    assert ruling.table["tokens"].tolist() == [20, 20]
    assert ruling.table["kind"].tolist() == ["windowed", "causal"]


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ([("encoder", 1.0, 1.0)] * 2, "holds in part (up to 20 tokens)"),
        ([("causal", 0.5, 1.0)] * 2, "holds in part (with itself and earlier tokens only, up to 20 tokens)"),
        ([("windowed", 0.2, 0.9)] * 2, "does not hold"),
    ],
)
def test_an_unseen_window_takes_its_part_of_every_verdict_that_it_could_change(layers: Any, told: str) -> None:
    words = planted(*layers) | {"unseen": 4096.0}
    assert CLAIM.decide(words).told() == told
    assert ("20トークンまで" in CLAIM.decide(words).told("ja")) == ("20" in told)
    assert "a window of 4,096 tokens" in CLAIM.say(words).en
    assert same_numbers(CLAIM.say(words))


@pytest.mark.parametrize(
    ("config", "window"),
    [
        (LlamaConfig(), 0),
        (MistralConfig(sliding_window=4096), 4096),
        (MistralConfig(sliding_window=None), 0),
        (Qwen2Config(sliding_window=4096, use_sliding_window=False), 0),
        (LongformerConfig(attention_window=[8, 64]), 33),  # 32 to either side, and the query itself
        (ModernBertConfig(local_attention=24), 13),
        (LongT5Config(local_radius=127), 128),
        (T5GemmaConfig(), 4096),
        (Dots1Config(sliding_window=4096), 0),  # which no layer has, by their types
        (Gemma3Config(text_config=Gemma3TextConfig(sliding_window=1024)), 1024),
        (GPTNeoConfig(window_size=256), 256),
        (None, 0),
    ],
)
def test_declared_windows_are_read_off_configurations(config: Any, window: int) -> None:
    model = nn.Linear(2, 2)
    if config is not None:
        model.config = config
    assert declared_window(model) == window


def looking_around(length: int, rows: int) -> tuple[nn.Module, list[dict[str, Any]]]:
    """An encoder whose layer 1 looks 4 tokens to either side and layer 0 everywhere; rows as long as it takes."""
    torch.manual_seed(0)
    model: Any = AutoModel.from_config(
        AutoConfig.for_model(
            "modernbert", hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
            vocab_size=60, local_attention=8, max_position_embeddings=length, pad_token_id=0, cls_token_id=1,
            sep_token_id=2, bos_token_id=1, eos_token_id=2,
        )
    ).eval()  # fmt: skip
    return model, [{"input_ids": torch.randint(3, 50, (4, rows)), "document": torch.arange(4)}]


def test_a_window_to_both_sides_reaches_half_of_what_is_declared() -> None:
    ruling = ask(*looking_around(8, 8))
    assert ruling.table["kind"].tolist() == ["encoder", "windowed"]
    assert ruling.table["farthest"].tolist() == [8, 5]
    seen = sum(min(query + 4, 7) - max(query - 4, 0) + 1 for query in range(8))
    assert ruling.table["allowed"].tolist() == pytest.approx([1.0, seen / 64])
    assert "declares" not in ruling.sentence.en
    assert "up to" not in ruling.verdict.where.en


def test_the_longest_row_is_a_power_of_two() -> None:
    assert ask(*windowed(7, 100)).table["tokens"].tolist() == [64, 64]


def test_rows_of_padding_alone_are_passed_over() -> None:
    model, rows = windowed(7, 64)
    mask = torch.ones(4, 7, dtype=torch.long)
    mask[0] = 0
    ruling = ask(model, [{**rows[0], "attention_mask": mask}])
    assert ruling.table["tokens"].tolist() == [64, 64]
    with pytest.raises(InputError, match="padding alone"):
        Subject("small", model, [{**rows[0], "attention_mask": 0 * mask}]).stretched(64)


@pytest.mark.parametrize("hidden", [-1e4, -float("inf"), torch.finfo(torch.float32).min])
def test_masks_hide_by_what_they_add(hidden: float) -> None:
    model, rows = windowed(7, 7)
    site = hs.discover(model, rows[0]).sites[0]
    bias = torch.zeros(4, 1, 7, 7)
    bias[..., 3:] = hidden
    allowed, real = open_pairs(site, bias, torch.rand(4, 2, 7, 7), rows[0])
    assert bool(real.all())
    assert allowed.float().mean().item() == pytest.approx(3 / 7)


def test_what_lies_ahead_is_as_far_as_what_lies_behind() -> None:
    model, rows = windowed(7, 7)
    site = hs.discover(model, rows[0]).sites[0]
    bias = torch.full((4, 1, 7, 7), -float("inf"))
    bias[..., torch.ones(7, 7).triu().tril(2).bool()] = 0
    assert _reach(site, bias, torch.rand(4, 2, 7, 7), rows[0]).farthest == 3


def test_sides_of_unlike_length_have_their_own() -> None:
    torch.manual_seed(0)
    ids = torch.randint(3, 60, (4, 12))
    rows = [{"input_ids": ids, "decoder_input_ids": ids[:, :7], "document": torch.arange(4)}]
    said = ask(build_any("t5"), rows).sentence
    assert "in texts of up to 12 tokens, encoder layers" in said.en
    assert "in texts of up to 7 tokens, causal layers" in said.en
    assert same_numbers(said)


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
        (
            [("causal", 0.5, 1.0), ("causal", 0.5, 0.99)],
            "holds in part (with itself and earlier tokens, in layer 0 only)",
        ),
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
