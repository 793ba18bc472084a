"""Masses by role: hand-made heads get exactly their due, and raw maps the textbook's sums."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import headscope.statistics.role_masses as role_masses
from headscope.errors import UnknownNameError
from headscope.statistics.role_examples import AROUND, NEAR
from headscope.statistics.role_masses import RoleMasses
from tests.reference.roles import role_sums
from tests.strategies import make_site

EVERY = ("previous", "next", "same", "duplicate", "delimiter", "induction")
COMMA = 5


def watch(maps, ids, *, unpadded=None, kept=None, kind="causal", targets=EVERY, more=None):
    """A statistic that saw one batch of one layer."""
    unpadded = torch.ones_like(ids, dtype=torch.bool) if unpadded is None else unpadded
    statistic = RoleMasses(targets, delimiters=[COMMA])
    statistic.begin_batch({"input_ids": ids, "attention_mask": unpadded.long(), **(more or {})})
    site = make_site(0, maps.shape[1], kind=kind)
    kept = unpadded if kept is None else kept
    statistic.update(site, {"pattern": maps}, kept, torch.arange(len(maps)) % 10)
    statistic.end_batch()
    return statistic


def numbers(statistic):
    """{role: (head, 3)} over all blocks."""
    return dict(zip(statistic.roles, statistic.compute()[0].sums.sum(0).numpy(), strict=True))


def scores(statistic):
    """{role: (head,)}"""
    with np.errstate(invalid="ignore"):
        return {role: own[:, 0] / own[:, 1] for role, own in numbers(statistic).items()}


def chances(statistic):
    with np.errstate(invalid="ignore"):
        return {role: own[:, 2] / own[:, 1] for role, own in numbers(statistic).items()}


def causal(length):
    return torch.ones(length, length, dtype=torch.float64).tril()


def one_map(*heads):
    """(1, head, query, key); beside them a head that spreads evenly over what a causal layer lets it see."""
    even = causal(len(heads[0]))
    return torch.stack([*heads, even / even.sum(1, keepdim=True)])[None]


def draw_maps(seed, n_rows, n_heads, n_queries, n_keys, visible, lack):
    """Random maps with exact zeros where `visible` (row, query, key) is not, rows that lack up to `lack` to 1."""
    generator = torch.Generator().manual_seed(seed)
    raw = 2 * torch.randn(n_rows, n_heads, n_queries, n_keys, generator=generator, dtype=torch.float64)
    maps = raw.masked_fill(~visible[:, None], -torch.inf).softmax(-1).nan_to_num(0.0)
    return maps * (1 - lack * torch.rand(n_rows, n_heads, n_queries, 1, generator=generator, dtype=torch.float64))


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 2**16),
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.sampled_from(["self", "causal", "sliding", "left", "cross"]),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.4]),
)
def test_sums_are_those_of_the_raw_maps(seed, lengths, layout, skip, lack):
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    unpadded = torch.arange(width) < torch.tensor(lengths)[:, None]
    if layout == "left":
        unpadded = unpadded.flip(1)
    distance = torch.arange(width)[:, None] - torch.arange(width)
    allowed = {"causal": distance >= 0, "left": distance >= 0, "sliding": (distance >= 0) & (distance < 3)}
    visible = unpadded[:, None, :] & allowed.get(layout, torch.ones_like(distance, dtype=torch.bool))
    ids = torch.randint(3, 8, unpadded.shape, generator=generator)
    maps = draw_maps(seed, len(lengths), 3, width, width, visible, lack)
    kept = unpadded.clone()
    kept[:, :skip] = False
    maps = maps.masked_fill(~unpadded[:, None, :, None], 1e6)  # what stands at padding is no one's business
    kind = {"sliding": "causal", "left": "causal"}.get(layout, layout)
    got = numbers(watch(maps, ids, unpadded=unpadded, kept=kept, kind=kind))
    want = role_sums(maps.numpy(), ids.numpy(), unpadded.numpy(), kept.numpy(), {COMMA}, aligned=kind != "cross")
    for role in got:
        np.testing.assert_allclose(got[role], want[role], rtol=1e-9, atol=1e-12, err_msg=role)


def test_a_head_on_the_previous_token_has_all_of_it():
    length = 6
    previous = torch.diag(torch.ones(length - 1, dtype=torch.float64), -1)
    previous[0, 0] = 1
    seen = watch(one_map(previous), torch.arange(10, 10 + length)[None])
    score, chance = scores(seen), chances(seen)
    assert score["previous"][0] == 1
    # queries 2 to 5 have a previous token that is not the sink, among 2, 3, 4 and 5 free keys
    assert chance["previous"][0] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 4)
    assert (score["same"][0], score["broad"][0]) == (0, 0)
    assert score["sink"][0] == pytest.approx(1 / 5), "query 1 looks back at the sink, query 0 has no choice"
    assert np.isnan(score["next"]).all(), "no query of a causal layer sees what comes next"
    assert np.isnan(score["duplicate"]).all(), "no token comes twice"
    assert np.isnan(score["delimiter"]).all(), "there is no delimiter"


def test_what_a_sink_head_has_left_is_judged_on_its_own():
    length = 6
    leftovers = torch.zeros(length, length, dtype=torch.float64)
    leftovers[:, 0] = 1
    for query in range(2, length):
        leftovers[query, 0], leftovers[query, query - 1] = 0.99, 0.01
    score = scores(watch(one_map(leftovers), torch.arange(10, 10 + length)[None]))
    assert score["sink"][0] == pytest.approx((1 + 4 * 0.99) / 5)
    assert score["previous"][0] == pytest.approx(1, abs=1e-15)


def test_an_even_head_has_every_role_by_chance():
    ids = torch.tensor([[1, 7, COMMA, 7, 8, COMMA, 7]])
    seen = watch(one_map(torch.eye(7, dtype=torch.float64)), ids)
    score, chance = scores(seen), chances(seen)
    for role in ("previous", "same", "duplicate", "delimiter", "induction"):
        assert score[role][-1] == pytest.approx(chance[role][-1]), role
    assert score["broad"][-1] == pytest.approx(1)
    # of 2 to 7 keys, the first is the sink
    assert score["sink"][-1] == pytest.approx(np.mean([1 / n for n in range(2, 8)]))
    assert chance["sink"][-1] == pytest.approx(score["sink"][-1])


def test_a_head_on_duplicates_and_one_that_goes_on_from_them():
    ids = torch.tensor([[1, 20, 21, 22, 20, 21, 22]])
    duplicate, induction = (torch.zeros(7, 7, dtype=torch.float64) for _ in range(2))
    duplicate[:, 0] = induction[:, 0] = 1
    for query in (4, 5, 6):
        duplicate[query, 0] = induction[query, 0] = 0
        duplicate[query, query - 3] = induction[query, query - 2] = 1
    score = scores(watch(one_map(duplicate, induction), ids))
    assert (score["duplicate"][0], score["induction"][0]) == (1, 0)
    assert (score["duplicate"][1], score["induction"][1]) == (0, 1)


def test_induction_goes_on_from_the_last_time():
    ids = torch.tensor([[1, 20, 21, 20, 22, 20]])
    last = torch.zeros(6, 6, dtype=torch.float64)
    last[:, 0] = 1
    last[5, 0], last[5, 4] = 0, 1  # after the 20 in the middle, not after the first
    got = numbers(watch(one_map(last), ids))["induction"][0]
    assert (got[0], got[1]) == (1, 1)
    assert got[2] == pytest.approx(1 / 5)


def test_queries_weigh_by_what_they_have_off_the_sink():
    maps = torch.zeros(4, 4, dtype=torch.float64)
    maps[0, 0] = maps[1, 0] = 1
    maps[2, 0], maps[2, 1] = 1 - 1e-6, 1e-6  # all of next to nothing on the previous token
    maps[3, 3] = 1  # and nothing of all
    assert scores(watch(one_map(maps), torch.arange(10, 14)[None]))["previous"][0] == pytest.approx(1e-6, rel=1e-3)


def test_keys_behind_a_window_are_no_chance():
    length = 8
    window = (causal(length) - causal(length).tril(-3)).clamp_min(0)
    maps = (window / window.sum(1, keepdim=True))[None, None]
    seen = watch(maps, torch.arange(10, 10 + length)[None])
    assert scores(seen)["broad"][0] == pytest.approx(1), "as even as can be within its window"
    assert chances(seen)["previous"][0] == pytest.approx(
        # query 2 sees two keys off the sink, the others three
        (2 / 3 * 1 / 2 + 5 * 1 / 3) / (2 / 3 + 5)
    )
    assert chances(seen)["sink"][0] == pytest.approx((1 / 2 + 1 / 3) / 7), "only queries 1 and 2 still see the sink"


def test_what_a_row_lacks_went_to_a_learned_sink():
    maps = one_map(torch.eye(4, dtype=torch.float64)) * 0.25
    score = scores(watch(maps, torch.arange(10, 14)[None]))
    assert score["sink"][0] == pytest.approx(0.75)
    assert score["same"][0] == 1


def test_skipped_queries_do_not_move_the_sink():
    maps = torch.zeros(5, 5, dtype=torch.float64)
    maps[:, 0] = 1
    kept = torch.tensor([[False, False, True, True, True]])
    assert scores(watch(one_map(maps), torch.arange(10, 15)[None], kept=kept))["sink"][0] == 1


def test_long_rows_are_taken_in_parts(monkeypatch):
    ids = torch.randint(3, 8, (2, 9), generator=torch.Generator().manual_seed(0))
    maps = draw_maps(1, 2, 3, 9, 9, causal(9).bool().expand(2, -1, -1), 0.0)
    whole = watch(maps, ids)
    monkeypatch.setattr(role_masses, "_AT_ONCE", 2 * 3 * 9 * 2)
    parts = watch(maps, ids)
    for role, own in numbers(whole).items():
        np.testing.assert_allclose(numbers(parts)[role], own, rtol=1e-13)
    best, again = whole.compute()[0].best, parts.compute()[0].best
    assert torch.equal(best.position, again.position)
    assert torch.equal(best.near, again.near)


def test_half_precision_is_summed_in_more():
    ids = torch.randint(3, 8, (1, 40), generator=torch.Generator().manual_seed(0))
    maps = draw_maps(2, 1, 2, 40, 40, causal(40).bool()[None], 0.0).half()
    got, want = numbers(watch(maps, ids)), numbers(watch(maps.double(), ids))
    for role in got:
        np.testing.assert_allclose(got[role], want[role], rtol=2e-6, atol=1e-9)


def test_blocks_are_summed_apart_and_queries_counted():
    maps = draw_maps(3, 3, 2, 5, 5, causal(5).bool().expand(3, -1, -1), 0.0)
    ids = torch.arange(10, 25).reshape(3, 5)
    sums = watch(maps, ids).compute()[0]
    assert sums.n_queries.tolist() == [5, 5, 5, *[0] * 7]
    for row in range(3):
        alone = watch(maps[row : row + 1], ids[row : row + 1]).compute()[0]
        torch.testing.assert_close(sums.sums[row], alone.sums[0], rtol=1e-13, atol=0)


def test_without_tokens_positions_are_still_judged():
    maps = draw_maps(4, 2, 2, 5, 5, torch.ones(2, 5, 5, dtype=torch.bool), 0.0)
    statistic = RoleMasses(EVERY, delimiters=[COMMA])
    statistic.begin_batch({"pixel_values": torch.zeros(2, 3, 4, 4)})
    everything = torch.ones(2, 5, dtype=torch.bool)
    statistic.update(make_site(0, 2, kind="self"), {"pattern": maps}, everything, torch.tensor([0, 1]))
    got = scores(statistic)
    assert all(np.isnan(got[role]).all() for role in ("duplicate", "delimiter", "induction"))
    assert all(np.isfinite(got[role]).all() for role in ("previous", "next", "same", "sink", "broad"))


def test_a_cross_layer_has_the_encoders_tokens_and_no_positions():
    ids, own = torch.tensor([[1, COMMA, 7, 8]]), torch.tensor([[1, 7, 7]])
    maps = torch.tensor([[[0.2, 0.5, 0.3, 0.0], [0.1, 0.6, 0.1, 0.2], [0.4, 0.4, 0.1, 0.1]]], dtype=torch.float64)[None]
    kept = torch.ones(1, 3, dtype=torch.bool)
    seen = watch(maps, ids, kept=kept, kind="cross", more={"decoder_input_ids": own})
    got = scores(seen)
    assert got["delimiter"][0] == pytest.approx((0.5 + 0.6 + 0.4) / (0.8 + 0.9 + 0.6))
    assert got["sink"][0] == pytest.approx((0.2 + 0.1 + 0.4) / 3)
    assert all(np.isnan(got[role][0]) for role in ("previous", "next", "same", "duplicate", "induction"))
    best = seen.compute()[0].best
    role = seen.roles.index("delimiter")
    assert best.keys[role, 0, 0] == 1
    assert best.near[role, 0, 0, NEAR - 2 : NEAR + 3].tolist() == [-1, 1, COMMA, 7, 8], "the encoder's tokens"
    assert best.around[role, 0, AROUND - 1 : AROUND + 2].tolist() == [1, 7, 7], "the decoder's"


def test_the_best_query_is_the_one_furthest_above_chance():
    ids = torch.tensor([[1, 20, 21, 22, 23, 24]])
    maps = one_map(torch.eye(6, dtype=torch.float64))
    maps[0, 0, 4, 4], maps[0, 0, 4, 3], maps[0, 0, 4, 1] = 0.2, 0.7, 0.1
    seen = watch(maps, ids)
    best, role = seen.compute()[0].best, seen.roles.index("previous")
    assert best.position[role, 0] == 4
    assert best.excess[role, 0] == pytest.approx(0.7 - 1 / 4)
    assert best.keys[role, 0].tolist() == [3, 4, 1]
    np.testing.assert_allclose(best.weights[role, 0], [0.7, 0.2, 0.1])
    assert best.near[role, 0, 0, NEAR - 2 : NEAR + 3].tolist() == [20, 21, 22, 23, 24]
    assert best.position[seen.roles.index("next"), 0] == -1, "a role that cannot be has no example"


def test_the_best_query_of_the_sink_shows_the_sink():
    maps = one_map(torch.eye(5, dtype=torch.float64))
    maps[0, 0, 3, 3], maps[0, 0, 3, 0] = 0.1, 0.9
    seen = watch(maps, torch.arange(10, 15)[None])
    best, role = seen.compute()[0].best, seen.roles.index("sink")
    assert (best.position[role, 0], best.keys[role, 0].tolist()) == (3, [0, 3, -1])
    others = best.keys[: seen.roles.index("sink"), 0]
    assert not (others == 0).any(), "elsewhere the sink is left out"


def test_a_role_without_a_target_is_refused():
    with pytest.raises(UnknownNameError, match="previous"):
        RoleMasses(["sink"])
