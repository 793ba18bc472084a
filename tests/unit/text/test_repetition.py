"""Random tokens said twice, in rows that look like those of the text."""

import pytest
import torch

from headscope.errors import InputError
from headscope.sites import Padding
from headscope.text.repetition import repeated_sequences

BOS, EOS = 1, 2


def text(n_rows=3, length=40, before=(BOS,), after=(EOS,), pad=0):
    inner = torch.arange(10, 10 + n_rows * length).reshape(n_rows, length)
    ends = (torch.tensor(part, dtype=torch.long).expand(n_rows, -1) for part in (before, after))
    start, end = ends
    ids = torch.cat([start, inner, end, torch.zeros(n_rows, pad, dtype=torch.long)], dim=1)
    mask = torch.ones_like(ids)
    mask[:, ids.shape[1] - pad :] = 0
    return {"input_ids": ids, "attention_mask": mask, "document": torch.arange(n_rows)}


def repeated(row, before=1, after=1):
    """The part that is said twice, and whether it is."""
    inner = row[before : len(row) - after]
    half = len(inner) // 2
    return inner[:half], torch.equal(inner[:half], inner[half:])


def test_every_row_says_its_own_tokens_twice():
    pool = range(200, 300)
    batches = repeated_sequences([text(), text()], [*pool, BOS, EOS])
    lengths = []
    for batch in batches:
        assert set(batch) == {"input_ids", "attention_mask"}
        assert bool(batch["attention_mask"].all())
        assert (batch["input_ids"][:, 0] == BOS).all()
        assert (batch["input_ids"][:, -1] == EOS).all()
        parts = [repeated(row) for row in batch["input_ids"]]
        assert all(twice for _, twice in parts)
        assert all(len(set(part.tolist())) == len(part) and set(part.tolist()) <= set(pool) for part, _ in parts)
        assert len({tuple(part.tolist()) for part, _ in parts}) == len(parts) == 8
        lengths.append(len(parts[0][0]))
    assert lengths == [10, 12, 15, 17, 20], "as long as the text's rows allow, and shorter"


def test_the_same_seed_repeats_and_another_does_not():
    first, again, other = (repeated_sequences([text()], range(200, 300), seed) for seed in (3, 3, 4))
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0]["input_ids"], other[0]["input_ids"])


def test_rows_begin_and_end_as_those_of_the_text():
    bare = repeated_sequences([text(before=(), after=())], range(200, 300))
    assert all(repeated(row, 0, 0)[1] for row in bare[0]["input_ids"])
    padded = repeated_sequences([text(pad=5)], range(200, 300))
    assert (padded[0]["input_ids"][:, -1] == EOS).all(), "padding is not the end"
    alone = repeated_sequences([text(n_rows=1)], range(200, 300))
    assert all(repeated(row, 0, 0)[1] for row in alone[0]["input_ids"]), "one row does not say what all begin with"


def test_settings_are_handed_on_and_labels_are_not():
    batch = {
        **text(),
        "token_type_ids": torch.ones(3, 42, dtype=torch.long),
        "labels": torch.zeros(3, 42),
        "flag": True,
    }
    made = repeated_sequences([batch], range(200, 300))[0]
    assert made["flag"] is True
    assert made["token_type_ids"].shape == made["input_ids"].shape
    assert "labels" not in made


def test_both_sides_of_an_encoder_decoder_repeat():
    decoder = text(length=20, before=(0,), after=())["input_ids"]
    batch = {**text(), "decoder_input_ids": decoder}
    made = repeated_sequences([batch], range(200, 300))
    assert (made[0]["decoder_input_ids"][:, 0] == 0).all()
    for batch in made:
        for own, others in zip(batch["input_ids"], batch["decoder_input_ids"], strict=True):
            assert torch.equal(repeated(own)[0], repeated(others, 1, 0)[0])
    assert made[-1]["decoder_input_ids"].shape[1] == 21, "the shorter side settles the length"


def test_position_ids_count_up_from_those_of_the_text():
    batch = text(pad=3)
    batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0) + 2  # as RoBERTa numbers them
    made = repeated_sequences([batch], range(200, 300))
    for one in made:
        assert one["position_ids"].tolist() == [list(range(2, 2 + one["input_ids"].shape[1]))] * len(one["input_ids"])


def test_tokens_and_masks_under_other_names_make_the_same_sequences():
    given = text(pad=5)
    ids, mask, kept = given["input_ids"], given["attention_mask"], given["attention_mask"].bool()
    own = {
        "idx": ids,
        "hidden": ~kept,
        "added": torch.where(kept, 0.0, -1e9),
        "lens": mask.sum(1),
        "until": mask.sum(1),
    }
    told = [Padding("hidden", "ones"), Padding("added", "floor"), Padding("lens", "lengths"), Padding("until", "last")]
    made = repeated_sequences([{**own, "kept": kept, "targets": ids}], range(200, 300), padding=told)
    for one, named in zip(made, repeated_sequences([given], range(200, 300)), strict=True):
        assert torch.equal(one["idx"], named["input_ids"])
        assert set(one) == set(own)
        assert not one["hidden"].any()
        assert not one["added"].any()
        assert one["hidden"].shape == one["added"].shape == one["idx"].shape
        assert one["hidden"].dtype == torch.bool
        assert one["lens"].tolist() == [one["idx"].shape[1]] * 8
        assert one["until"].tolist() == [one["idx"].shape[1] - 1] * 8
    with pytest.raises(InputError, match="hold added"):
        repeated_sequences([{**own, "kept": kept}], range(200, 300))


def test_padding_makes_no_sequence_longer():
    pool = range(200, 300)
    lengths = [
        [batch["input_ids"].shape[1] for batch in repeated_sequences([text(length=20, pad=pad)], pool)]
        for pad in (0, 30)
    ]
    assert lengths[0] == lengths[1]


@pytest.mark.parametrize(
    ("batch", "ids", "why"),
    [
        (
            {"pixel_values": torch.zeros(2, 3, 4, 4)},
            range(200, 300),
            "no token ids are known in a batch of pixel_values",
        ),
        (
            {"input_features": torch.zeros(2, 3, 4), "decoder_input_ids": text()["input_ids"]},
            range(9),
            "hold input_fea",
        ),
        ({"labels": text()["input_ids"]}, range(200, 300), "no token ids are known in a batch of labels"),
        ({**text(), "position_ids": torch.zeros(3, 3, 42)}, range(200, 300), "hold position_ids"),
        ({**text(), "pixel_values": torch.zeros(2, 3, 4, 4)}, range(200, 300), "hold pixel_values"),
        (text(length=6), range(200, 300), "room for 3 tokens"),
        (text(length=6, pad=20), range(200, 300), "room for 3 tokens"),
        (text(), range(200, 203), "3 tokens to draw"),
        (text(), [BOS, EOS], "0 tokens to draw"),
    ],
)
def test_where_it_cannot_be_made_the_error_says_why(batch, ids, why):
    with pytest.raises(InputError, match=why):
        repeated_sequences([batch], ids)
