"""Tokens are found under any name: a model of one's own has what one that reads input_ids has, number by number."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import headscope as hs
from headscope.effects.metrics import MaskedLoss
from tests.families import build_any
from tests.unit.test_every_model_to_the_end import PICTURES, TOKENS, _clip, _vit, _whisper

ROWS, LENGTH, WORDS, BOS = 6, 26, 50, 1
IDS = torch.randint(5, WORDS, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
IDS[:, 0] = BOS
KEPT = torch.ones(ROWS, LENGTH, dtype=torch.bool)
KEPT[::2, 20:] = False
LABELS = IDS.roll(-1, 1)


class _Body(nn.Module):
    """Two causal layers that can leave padding out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.places, self.head = nn.Embedding(WORDS, 16), nn.Embedding(64, 16), nn.Linear(16, WORDS)
        self.layers = nn.ModuleList(nn.MultiheadAttention(16, 4, batch_first=True) for _ in range(2))
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.5)

    def forward(self, ids: Tensor, kept: Tensor | None = None) -> Tensor:
        x = self.embed(ids) + self.places(torch.arange(ids.shape[1]))
        ahead = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        for layer in self.layers:
            gone = None if kept is None else ~kept.bool()
            x = x + layer(x, x, x, attn_mask=ahead, key_padding_mask=gone, need_weights=False)[0]
        logits: Tensor = self.head(x)
        return logits


class _Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = _Body()

    def forward(self, idx: Tensor, targets: Tensor | None = None, hidden: Tensor | None = None) -> Any:
        logits = self.body(idx, None if hidden is None else ~hidden)
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class _Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = _Body()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        logits: Tensor = self.body(input_ids, attention_mask)
        return logits


def in_two(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    return [{name: one[part] for name, one in batch.items()} for part in (slice(0, 3), slice(3, ROWS))]


PAIRS = {
    "alone": ({"idx": IDS}, {"input_ids": IDS}),
    "with what it is to tell": ({"idx": IDS, "targets": LABELS}, {"input_ids": IDS}),
    "with labels under a name that it does not take": ({"idx": IDS, "gold": LABELS}, {"input_ids": IDS}),
    "with a mask": ({"idx": IDS, "hidden": ~KEPT}, {"input_ids": IDS, "attention_mask": KEPT.long()}),
    "with both": (
        {"targets": LABELS, "idx": IDS, "hidden": ~KEPT}, {"input_ids": IDS, "attention_mask": KEPT.long()},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_nulls_and_roles_are_those_of_a_model_that_reads_input_ids(name: str) -> None:
    own, named = (in_two(batch) for batch in PAIRS[name])
    for measure in ("pattern_js", "pattern_cosine"):
        one, other = (
            hs.similarity(model.eval(), batches, measure, seed=2)
            for model, batches in ((_Own(), own), (_Named(), named))
        )
        assert "random_tokens" in one.nulls
        assert np.isfinite(one.nulls["random_tokens"]).any()
        assert "why_no_null" not in one.facts
        np.testing.assert_array_equal(one.nulls["random_tokens"], other.nulls["random_tokens"])
        np.testing.assert_array_equal(one.matrix, other.matrix)
    mine, theirs = hs.roles(_Own().eval(), own), hs.roles(_Named().eval(), named)
    for role in mine.scores:
        np.testing.assert_array_equal(mine.scores[role], theirs.scores[role])
    assert np.isfinite(mine.scores["duplicate"]).all()
    assert np.isfinite(mine.scores["induction"]).all()
    assert mine.facts["repeated_sequences"] == theirs.facts["repeated_sequences"] > 0


@pytest.mark.parametrize("measure", ["pattern_js", "pattern_cosine"])
def test_maps_that_tokens_do_not_move_have_no_null(measure: str) -> None:
    tokens = TOKENS.clamp(min=4)
    sound = {"input_features": torch.randn(16, 8, 40), "decoder_input_ids": tokens[:, :5]}
    two = hs.similarity(_clip(), [{"input_ids": tokens, "pixel_values": PICTURES}], measure)
    heard = hs.similarity(_whisper(), [sound], measure)
    for table in (two, heard):
        assert "random_tokens" in table.nulls
        still = np.array([head.layer == 0 for head in table.heads])
        assert np.isnan(table.nulls["random_tokens"][still]).all()
        value = np.isfinite(table.matrix[~still])
        np.testing.assert_array_equal(np.isfinite(table.nulls["random_tokens"][~still]), value)
        apart = value & ~np.eye(len(table.heads), dtype=bool)[~still]
        assert (table.nulls["random_tokens"][~still][apart] != table.matrix[~still][apart]).any()
        assert table.facts["why_no_null"].startswith("not for layer 0, whose maps are the same")
        assert "no random tokens: not for layer 0" in table._repr_html_()
    seen = hs.similarity(_vit(), [{"pixel_values": PICTURES}], measure)
    assert "random_tokens" not in seen.nulls
    assert "no token ids are known in a batch of pixel_values" in seen.facts["why_no_null"]


def test_one_head_a_layer_is_told_by_its_map_and_not_by_its_number() -> None:
    torch.manual_seed(0)
    model = _Named()
    model.body.layers = nn.ModuleList([nn.MultiheadAttention(16, 1, batch_first=True)])
    table = hs.similarity(model.eval(), [{"input_ids": IDS}], "pattern_js")
    assert table.matrix.item() == 1
    assert "random_tokens" in table.nulls
    assert table.nulls["random_tokens"].item() == 1, "on random tokens a head is like itself too"


def test_patches_are_no_tokens_though_there_are_as_many() -> None:
    tokens = TOKENS[:, :5].clamp(min=4)  # as many as patches and the class token
    tokens[:, 3] = tokens[:, 1]
    table = hs.roles(_clip(), [{"input_ids": tokens, "pixel_values": PICTURES}])
    of_pictures = np.array([head.layer == 0 for head in table.heads])
    assert np.isnan(table.scores["duplicate"][of_pictures]).all()
    assert np.isfinite(table.scores["duplicate"][~of_pictures]).all()


def test_what_a_decoder_makes_of_the_text_inside_is_not_taken_for_the_text() -> None:
    model = build_any("bart")
    batch = {"input_ids": IDS.clamp(max=40), "attention_mask": torch.ones_like(IDS)}
    kind = {site.layer: site.kind for site in hs.discover(model, batch).sites}
    given = batch | {"decoder_input_ids": batch["input_ids"], "decoder_attention_mask": batch["attention_mask"]}
    for one, known in ((batch, {"self"}), (given, {"self", "causal"})):
        table = hs.roles(model, [one])
        has = np.isfinite(table.scores["duplicate"])
        assert {kind[head.layer] for head, own in zip(table.heads, has, strict=True) if own} == known


def test_a_model_that_takes_one_length_alone_keeps_its_roles() -> None:
    class Fixed(_Named):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            if input_ids.shape[1] != LENGTH:
                raise ValueError("rows are 26 long")
            return super().forward(input_ids, attention_mask)

    table = hs.roles(Fixed().eval(), [{"input_ids": IDS}])
    assert np.isfinite(table.scores["duplicate"]).all()
    assert np.isnan(table.scores["induction"]).all()
    assert "rows are 26 long" in table.facts["why_no_induction"]


def test_a_masked_loss_is_that_of_a_model_that_reads_input_ids() -> None:
    metric = MaskedLoss(mask_token_id=2)
    one, other = (
        hs.importance(model.eval(), [batch], metric=metric)
        for model, batch in ((_Own(), {"idx": IDS, "targets": LABELS}), (_Named(), {"input_ids": IDS}))
    )
    np.testing.assert_array_equal(one.score, other.score)
    assert (one.score != 0).all()
