"""Random tokens: the same shape, the same ends, the same words, in no order."""

import pytest
import torch

from headscope.errors import InputError
from headscope.text.nulls import scramble_tokens


def batch(first: int = 1, last: int = 2) -> dict[str, torch.Tensor]:
    ids = torch.randint(10, 50, (4, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    ids[:, 0] = first
    ids[[0, 2, 3], 8] = last
    ids[1, 5] = last
    return {"input_ids": ids, "attention_mask": mask, "document": torch.arange(4)}


def test_ends_padding_and_everything_else_stay() -> None:
    given = batch()
    before = given["input_ids"].clone()
    (made,) = scramble_tokens([given])
    ids = made["input_ids"]
    assert torch.equal(given["input_ids"], before)
    assert ids.shape == before.shape
    assert (ids[:, 0] == 1).all()
    assert ids[1, 5] == ids[0, 8] == 2
    assert torch.equal(ids[1, 6:], before[1, 6:])
    assert torch.equal(made["attention_mask"], given["attention_mask"])
    assert torch.equal(made["document"], given["document"])
    inner = before[:, 1:8].flatten()
    assert set(ids[:, 1:5].flatten().tolist()) <= set(inner.tolist())
    assert (ids != before).float().mean() > 0.4


def test_ends_that_differ_between_rows_are_text() -> None:
    given = batch()
    given["input_ids"][2, 0] = 30
    made = torch.stack([scramble_tokens([given], seed)[0]["input_ids"][:, 0] for seed in range(20)])
    assert (made != given["input_ids"][:, 0]).any()


def test_draws_repeat_for_a_seed_and_differ_between_batches() -> None:
    one, two = (scramble_tokens([batch(), batch()], seed=4) for _ in range(2))
    assert torch.equal(one[1]["input_ids"], two[1]["input_ids"])
    assert not torch.equal(one[0]["input_ids"], one[1]["input_ids"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"pixel_values": torch.randn(2, 3, 4, 4)}, "no token ids are known in a batch of pixel_values"),
        ({"x": torch.randn(2, 5), "targets": torch.ones(2, 5, dtype=torch.long)}, "no token ids are known"),
        ({"input_ids": torch.tensor([[1, 7, 7, 2], [1, 7, 7, 2]])}, "no two different tokens"),
    ],
)
def test_where_there_is_nothing_to_draw_it_says_so(given: dict[str, torch.Tensor], said: str) -> None:
    with pytest.raises(InputError, match=said):
        scramble_tokens([given])


def test_all_batches_hold_the_tokens_or_none_is_drawn() -> None:
    with pytest.raises(InputError, match="in a batch of pixel_values"):
        scramble_tokens([batch(), {"pixel_values": torch.randn(2, 3, 4, 4)}])


def test_tokens_under_another_name_are_drawn_alike_and_nothing_beside_them_is() -> None:
    given = batch()
    beside = {"targets": given["input_ids"].roll(-1, 1), "token_type_ids": torch.arange(36).view(4, 9)}
    own = {"idx": given["input_ids"], "attention_mask": given["attention_mask"], **beside}
    (made,) = scramble_tokens([own])
    (named,) = scramble_tokens([given])
    assert torch.equal(made["idx"], named["input_ids"])
    assert all(made[name] is one for name, one in own.items() if name != "idx")


def test_a_decoder_s_tokens_are_drawn_from_its_own_and_its_start_and_padding_stay() -> None:
    decoder = torch.randint(60, 90, (4, 7), generator=torch.Generator().manual_seed(1))
    decoder[:, 0] = 0
    mask = torch.ones_like(decoder)
    mask[2, 4:] = 0
    given = {**batch(), "decoder_input_ids": decoder, "decoder_attention_mask": mask}
    (made,) = scramble_tokens([given])
    (alone,) = scramble_tokens([batch()])
    ids = made["decoder_input_ids"]
    assert torch.equal(made["input_ids"], alone["input_ids"])
    assert ids.shape == decoder.shape
    assert (ids[:, 0] == 0).all()
    assert torch.equal(ids[2, 4:], decoder[2, 4:])
    assert set(ids[:, 1:].flatten().tolist()) <= set(decoder[:, 1:].flatten().tolist())
    assert (ids != decoder).float().mean() > 0.4


def test_it_makes_no_difference_how_rows_fall_into_batches() -> None:
    whole = batch()
    rows = [{name: value[row : row + 1] for name, value in whole.items()} for row in range(4)]
    (together,) = scramble_tokens([whole], seed=3)
    alone = torch.cat([made["input_ids"] for made in scramble_tokens(rows, seed=3)])
    assert torch.equal(together["input_ids"], alone)
    assert (alone[:, 0] == 1).all()
