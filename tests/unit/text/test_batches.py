"""Batches: what the model is given, which positions count, which document a row belongs to."""

from collections import UserDict

import pytest
import torch

from headscope.errors import InputError
from headscope.text.batches import document_ids, kept_positions, n_rows, row_lengths, token_names


def test_rows_are_counted_on_the_first_tensor() -> None:
    assert n_rows({"document": torch.arange(5), "flag": True, "input_ids": torch.ones(3, 2)}) == 3
    assert n_rows(UserDict(input_ids=torch.ones(4, 2))) == 4
    for nothing in ({}, {"flag": True}, {"document": torch.arange(2)}, {"scale": torch.tensor(2.0)}):
        with pytest.raises(InputError, match="must hold at least one tensor"):
            n_rows(nothing)
    with pytest.raises(InputError, match=r"a batch must be a dict of tensors.*Tensor"):
        n_rows(torch.ones(3, 2))


def test_positions_count_where_the_mask_of_their_side_keeps_them() -> None:
    mask, decoder = torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([[1, 0], [1, 1]])
    batch = {"input_ids": torch.ones(2, 3), "attention_mask": mask}
    for kind in ("self", "causal", "cross"):
        assert torch.equal(kept_positions(batch, kind, 3), mask.bool())
    both = batch | {"decoder_input_ids": torch.ones(2, 2), "decoder_attention_mask": decoder}
    assert torch.equal(kept_positions(both, "self", 3), mask.bool())
    for kind in ("causal", "cross"):
        assert torch.equal(kept_positions(both, kind, 2), decoder.bool())
        # a decoder without a mask of its own is not given the encoder's, even at the same length
        assert kept_positions(both | {"decoder_attention_mask": None}, kind, 3).all()


def test_every_position_counts_without_a_mask_that_fits() -> None:
    for batch in ({"input_ids": torch.ones(2, 3)}, {"input_ids": torch.ones(2, 3), "attention_mask": None},
                  {"input_ids": torch.ones(2, 3), "attention_mask": torch.zeros(2, 1, 3, 3)}):  # fmt: skip
        kept = kept_positions(batch, "self", 3)
        assert kept.shape == (2, 3)
        assert kept.all()


def batch_of_ids(rows: int = 2, length: int = 3) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.arange(rows * length).reshape(rows, length)}


def test_rows_without_a_document_are_documents_of_their_own() -> None:
    named = {"input_ids": torch.ones(2, 3), "document": torch.tensor([7, 7])}
    ids = [ids.tolist() for _, ids in document_ids([batch_of_ids(), named, batch_of_ids(3), named])]
    assert ids[1] == ids[3] == [7, 7]
    own = ids[0] + ids[2]
    assert len(set(own)) == 5
    assert 7 not in own


def test_row_lengths_follow_mask_or_tokens() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert row_lengths({"input_ids": torch.ones(2, 3), "attention_mask": mask}).tolist() == [2, 3]
    assert row_lengths({"input_ids": torch.ones(2, 3)}).tolist() == [3, 3]
    assert row_lengths({"input_ids": torch.ones(2, 3), "attention_mask": None}).tolist() == [3, 3]
    assert row_lengths({"pixel_values": torch.ones(2, 3, 8, 8)}).tolist() == [1, 1]


def test_rows_are_those_of_the_tokens_whatever_comes_first() -> None:
    batch = {"position_ids": torch.arange(3)[None], "input_ids": torch.ones(2, 3)}
    assert n_rows(batch) == 2
    assert row_lengths({**batch, "decoder_input_ids": torch.ones(2, 5)}).tolist() == [5, 5]
    assert row_lengths({"inputs_embeds": torch.ones(2, 7, 4)}).tolist() == [7, 7]


def test_rows_without_a_document_meet_none_that_was_named() -> None:
    named = {"input_ids": torch.ones(2, 3), "document": torch.tensor([-1, -2])}
    ids = [ids.tolist() for _, ids in document_ids([named, {"input_ids": torch.ones(2, 3)}])]
    assert len({*ids[0], *ids[1]}) == 4


def test_tokens_are_the_only_whole_numbers_by_row_and_position_that_are_nothing_else() -> None:
    ids, floats = torch.arange(6).view(2, 3), torch.ones(2, 3)
    beside = ("attention_mask", "pad", "is_valid", "token_type_ids", "position_ids", "labels", "labels_2", "targets")
    for name in ("idx", "tokens", "x", "padded", "input_ids"):
        assert token_names({**dict.fromkeys(beside, ids), name: ids, "weights": floats}) == {"self": name}
    assert token_names({"idx": ids, "input_ids": ids}) == {"self": "input_ids"}, "what everybody calls tokens are these"
    assert token_names({"src": ids, "decoder_input_ids": ids}) == {"self": "src", "causal": "decoder_input_ids"}
    assert token_names({"input_features": torch.ones(2, 3, 4), "decoder_input_ids": ids}) == {
        "causal": "decoder_input_ids"
    }
    for none in ({"src": ids, "tgt": ids}, {"x": floats}, {"input_ids": floats}, {"x": ids[0]}, {"image_sizes": ids}):
        assert token_names(none) == {}
