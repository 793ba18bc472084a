"""Which keys each role looks at, and which tokens stand where."""

from functools import partial

import torch

from headscope.statistics.role_targets import NO_TOKEN, TARGETS, View, ids_of_side


def view(ids, delimiters=(), aligned=True):
    ids = torch.tensor([ids])
    positions = torch.arange(ids.shape[1])
    special = torch.tensor(delimiters, dtype=torch.long)
    return View(aligned, positions[None, :, None], positions[None, None], ids[:, :, None], ids[:, None], special)


def pairs(role, *args, **settings):
    """(query, key) of every target."""
    seen = view(*args, **settings)
    mask = TARGETS[role](seen).expand(1, seen.queries.shape[1], -1)
    return [tuple(pair) for pair in mask[0].nonzero().tolist()]


def test_positions():
    assert pairs("previous", [7, 8, 9]) == [(1, 0), (2, 1)]
    assert pairs("next", [7, 8, 9]) == [(0, 1), (1, 2)]
    assert pairs("same", [7, 8, 9]) == [(0, 0), (1, 1), (2, 2)]


def test_tokens():
    assert pairs("duplicate", [7, 8, 7, 7]) == [(0, 2), (0, 3), (2, 0), (2, 3), (3, 0), (3, 2)]
    assert pairs("delimiter", [7, 5, 6], [5, 6]) == [(q, k) for q in range(3) for k in (1, 2)]
    assert pairs("delimiter", [7, 5, 6]) == []
    assert pairs("induction", [7, 8, 7, 9, 7, 8]) == [(2, 1), (4, 3), (5, 2)]


def test_positions_without_a_token_are_the_same_as_nothing():
    assert pairs("duplicate", [NO_TOKEN, 8, NO_TOKEN]) == []
    assert pairs("induction", [NO_TOKEN, 8, NO_TOKEN]) == []


def test_where_queries_and_keys_are_of_two_texts_only_delimiters_mean_anything():
    for role in TARGETS:
        found = pairs(role, [7, 5, 7, 5], [5], aligned=False)
        assert bool(found) == (role == "delimiter")


def test_each_side_has_its_own_tokens():
    batch = {
        "input_ids": torch.tensor([[4, 5, 6], [7, 8, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "decoder_input_ids": torch.tensor([[1, 2], [1, 3]]),
    }
    seen = partial(ids_of_side, batch, of_two=True)
    assert seen("self", 3).tolist() == [[4, 5, 6], [7, 8, NO_TOKEN]]
    assert seen("causal", 2).tolist() == seen("cross", 2).tolist() == [[1, 2], [1, 3]]
    assert seen("self", 4).tolist() == [[NO_TOKEN] * 4] * 2, "more positions than tokens: not these tokens"
    pixels = {"pixel_values": torch.zeros(2, 3)}
    assert ids_of_side(pixels, "self", 2, of_two=False).tolist() == [[NO_TOKEN] * 2] * 2


def test_what_a_decoder_makes_inside_is_not_what_the_encoder_reads():
    batch = {"src": torch.tensor([[4, 5, 6], [7, 8, 9]]), "target": torch.tensor([[4, 5, 6], [7, 8, 9]])}
    assert ids_of_side(batch, "causal", 3, of_two=True).tolist() == [[NO_TOKEN] * 3] * 2
    assert torch.equal(ids_of_side(batch, "self", 3, of_two=True), batch["src"])
    assert torch.equal(ids_of_side(batch, "causal", 3, of_two=False), batch["src"]), "a model of one side"
