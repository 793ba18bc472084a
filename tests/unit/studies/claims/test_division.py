"""C14: weights that read a slice, the whole width, or directions of each other."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from headscope.models.reference import Transformer, example
from headscope.studies.asking import ask_model
from headscope.studies.claims import FAILS, HOLDS, in_part
from headscope.studies.claims.division import Division, _read, overlap
from headscope.studies.layers import Layer, only
from headscope.studies.rulings import Ruling
from headscope.studies.subjects import Subject
from tests.models import build
from tests.words import same_numbers

CLAIM = Division()


def divided(layers: int, of: int) -> nn.Module:
    """A model of 4 heads of 4 dimensions; in its first layers each head reads a slice of the width alone."""
    torch.manual_seed(0)
    model = Transformer(50, width=16, n_layers=of, n_heads=4, length=32, causal=True).eval()
    for block in list(model.blocks)[:layers]:
        attention: Any = block.attention
        for layer in (attention.query, attention.key, attention.value):
            layer.weight.data = torch.block_diag(*torch.randn(4, 4, 4))
    return model


def ask(model: nn.Module) -> Ruling:
    return ask_model(Subject("small", model, example()[1], quick=True), ["C14"]).rulings[0]


@pytest.mark.parametrize(("layers", "verdict"), [(2, HOLDS), (0, FAILS), (1, in_part(only([Layer("causal", 1)], [])))])
def test_slices_are_told_from_the_whole_width(layers: int, verdict: Any) -> None:
    ruling = ask(divided(layers, 2))
    assert ruling.verdict.word == verdict.word
    assert ruling.effect == pytest.approx(1 - 0.375 * layers)
    if layers == 1:
        assert (ruling.verdict.where.en, ruling.verdict.where.ja) == ("layer 0 only", "層0のみ")


def test_slices_share_nothing_and_twins_share_all() -> None:
    model = divided(1, 1)
    attention: Any = model.blocks[0].attention  # type: ignore[index]
    measured = CLAIM.measure(Subject("small", model, example()[1], quick=True))
    assert measured.numbers["read_overlap"] == pytest.approx(0, abs=1e-12)
    attention.value.weight.data[4:8] = attention.value.weight.data[:4]  # two heads that read the same
    again = CLAIM.measure(Subject("small", model, example()[1], quick=True))
    assert again.numbers["read_overlap"] == pytest.approx(1 / 6)


@pytest.mark.parametrize(("dim", "width"), [(4, 16), (3, 32), (24, 16)])
def test_chance_is_what_random_subspaces_overlap_by(dim: int, width: int) -> None:
    torch.manual_seed(0)
    found, chance = overlap([torch.randn(dim, width) for _ in range(40)])
    assert chance == min(dim / width, 1)
    assert found == pytest.approx(chance, abs=0.01)


def test_a_head_spans_no_more_than_its_rank() -> None:
    torch.manual_seed(0)
    narrow = [torch.randn(2, 4).T @ torch.randn(2, 32) for _ in range(30)]  # 4 dimensions, of rank 2
    found, chance = overlap([*narrow, torch.zeros(4, 32)])
    assert chance == 2 / 32
    assert found == pytest.approx(chance, abs=0.01)
    assert np.isnan(overlap(narrow[:1])).all()


def test_overlap_is_told_against_chance_in_both_languages() -> None:
    words = {"dims": 32.0, "value_dims": 16.0, "width": 384.0, "share": 1 / 12, "effect": 1.0, "read_overlap": 0.1}
    words |= {"read_chance": 0.08, "write_overlap": 0.06, "write_chance": 0.08}
    followed = CLAIM.follow(words)
    assert "overlap by 0.100, 1.25 times what random ones do (0.080)" in followed.en
    assert "0.75 times" in followed.en
    assert "queries and keys of 32, and values of 16" in followed.en
    assert same_numbers(followed)
    assert same_numbers(CLAIM.say(words))
    for value_heads, why in ((1.0, "one value head that they share"), (4.0, "value weights can be read apart")):
        alone = CLAIM.follow({**words, "read_overlap": float("nan"), "value_heads": value_heads})
        assert "read overlap by" not in alone.en
        assert why in alone.en
        assert ("層のすべてのヘッドが共有" in alone.ja) == (value_heads == 1)


def test_dashes_in_the_table_have_their_reason_under_it() -> None:
    """A layer of query heads that share one value head, as of multi-query attention."""
    rows = [{"input_ids": torch.randint(3, 50, (4, 12)), "document": torch.arange(4)}]
    ruling = ask_model(Subject("small", build("gemma3"), rows, quick=True), ["C14"])["C14"]
    told = CLAIM.tabled(ruling.table)
    assert "| 0 | 1 | – | – |" in told.en
    assert told.en.endswith("they read the same subspace, and there are no two to compare.")
    assert told.ja.endswith("比べる組がありません。")
    assert "one value head that they share" in ruling.follows.en
    assert "–" not in CLAIM.tabled(ask(divided(0, 2)).table).en
    groups = ask_model(Subject("small", build("llama"), rows, quick=True), ["C14"])["C14"]
    assert "–" not in CLAIM.tabled(groups.table).en  # two value heads for eight heads: one pair


def test_layers_that_overlap_less_than_by_chance_are_named_where_others_overlap_more() -> None:
    rows = [(0, 0.3, 0.1), (1, 0.05, 0.1), (2, 0.2, 0.1)]
    table = pd.DataFrame(rows, columns=["layer", "read_overlap", "read_chance"]).assign(
        read=1.0, write_overlap=0.4, write_chance=0.2, value_heads=4
    )
    told = CLAIM.tabled(table)
    assert told.en.endswith("In layer 1 the subspaces that two heads read overlap less than random ones.")
    assert told.ja.endswith(
        "層1では、2個のヘッドが読み取る部分空間の重なりが、ランダムな部分空間より小さくなっています。"
    )
    assert "less than random" not in CLAIM.tabled(table[table["layer"] != 1]).en


def test_the_whole_width_is_told_beside_the_slice() -> None:
    said = ask(divided(0, 1)).sentence
    assert "100% of the 16 dimensions" in said.en
    assert "25.0%" in said.en


def test_sides_of_unlike_widths_are_read_each_by_itself() -> None:
    """As where queries are made from a decoder, and keys and values from a wider encoder."""
    whole, half = torch.ones(2, 3, 8), torch.ones(2, 3, 12)
    half[..., 6:] = 0
    assert _read({"q": [*whole], "k": [*half], "v": [*half]}) == (pytest.approx((1 + 0.5 + 0.5) / 3), 12)
