"""Roles: the rule, and what real and hand-made heads get by it."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast, SwinConfig, SwinModel

import headscope as hs
from headscope.errors import InputError
from headscope.head_roles.finding import judge, role_table
from headscope.head_roles.tables import ROLES
from headscope.sites import Anatomy
from headscope.statistics.role_masses import RoleMasses
from headscope.watching.observation import observe
from tests.families import build_any
from tests.models import VOCABULARY, build, make_batches
from tests.reference.jackknife import interval
from tests.reference.roles import role_sums
from tests.strategies import make_site

LENGTH = 12


def verdict(chance=0.0, low=None, **scores):
    """Of one head, roles that are not named at 0."""
    full = {role: np.array([scores.get(role, 0.0)]) for role in ROLES}
    lows = {role: own - 0.01 if low is None else np.array([low]) for role, own in full.items()}
    return judge(full, lows, {role: np.array([chance]) for role in ROLES})[0]


def test_the_role_furthest_from_chance_wins_from_half_way():
    assert verdict(previous=0.5, duplicate=0.4) == "previous"
    assert verdict(previous=0.5, duplicate=0.6) == "duplicate"
    assert verdict(previous=0.49) == "mixed"
    assert verdict(previous=0.61, chance=0.2) == "previous"
    assert verdict(previous=0.59, chance=0.2) == "mixed"


def test_a_role_by_chance_high_must_be_higher():
    scores = {role: np.array([0.0]) for role in ROLES} | {"previous": np.array([0.6]), "delimiter": np.array([0.65])}
    chance = {role: np.array([0.0]) for role in ROLES} | {"delimiter": np.array([0.3])}
    assert judge(scores, scores, chance) == ("previous",)


def test_the_interval_must_lie_above_chance():
    assert verdict(previous=0.9, chance=0.3, low=0.2) == "mixed"
    assert verdict(previous=0.9, chance=0.3, low=0.31) == "previous"
    assert verdict(previous=0.9, chance=0.3, low=np.nan) == "previous", "without an interval the score must"


def test_a_sink_is_a_sink_from_nine_tenths_and_from_half_where_nothing_else_is_clear():
    assert verdict(sink=0.9, previous=1.0) == "sink"
    assert verdict(sink=0.89, previous=1.0) == "previous"
    assert verdict(sink=0.5, previous=0.3, broad=0.9) == "sink"
    assert verdict(sink=0.49, previous=0.3, broad=0.9) == "broad"


def test_broad_is_what_has_no_other_role():
    assert verdict(broad=0.8) == "broad"
    assert verdict(broad=0.79) == "mixed"
    assert verdict(broad=0.95, delimiter=0.7) == "delimiter"


def test_what_cannot_be_is_not_judged():
    assert verdict(**dict.fromkeys(ROLES, np.nan)) == "mixed"
    assert verdict(next=np.nan, previous=0.7) == "previous"
    assert verdict(same=1.0, chance=1.0, low=1.0) == "mixed", "where there is nothing else to look at, it says nothing"


def planted(ids):
    """Maps of a causal layer (head, query, key): previous, sink with leftovers on the previous, even, duplicate."""
    length = len(ids)
    even = torch.ones(length, length, dtype=torch.float64).tril()
    maps = torch.stack([torch.zeros(length, length, dtype=torch.float64)] * 2 + [even / even.sum(1, keepdim=True)])
    duplicate = torch.zeros(length, length, dtype=torch.float64)
    for query in range(length):
        before = max(query - 1, 0)
        maps[0, query, before] += 1
        maps[1, query, 0] += 0.95
        maps[1, query, before] += 0.05
        same = [key for key in range(1, query) if ids[key] == ids[query]]
        duplicate[query, same[-1] if same else 0] = 1
    return torch.cat([maps, duplicate[None]])


def planted_induction(ids):
    """(head, query, key) of repeated sequences: the fourth head goes on from the last time, the others are even."""
    length = len(ids)
    even = torch.ones(length, length, dtype=torch.float64).tril()
    maps = (even / even.sum(1, keepdim=True)).repeat(4, 1, 1)
    for query in range(length):
        same = [key for key in range(1, query) if ids[key] == ids[query]]
        if same:
            maps[3, query] = 0
            maps[3, query, same[-1] + 1] = 1
    return maps


def hand_fed(rows, make=planted, targets=None):
    statistic = RoleMasses(targets) if targets else RoleMasses(delimiters=[99])
    for number, ids in enumerate(rows):
        statistic.begin_batch({"input_ids": torch.tensor([ids])})
        kept = torch.ones(1, len(ids), dtype=torch.bool)
        statistic.update(make_site(0, 4), {"pattern": make(ids)[None]}, kept, torch.tensor([number % 10]))
    return statistic


ROWS = [[1, *(20 + (i * (row + 3)) % 7 for i in range(row + 8))] for row in range(12)]
TWICE = [[1, *range(20 + row, 30 + row), *range(20 + row, 30 + row)] for row in range(12)]


def table_of(text, repeats, tokenizer=None):
    return role_table(text, repeats, Anatomy("Planted", (make_site(0, 4),), "0" * 16), tokenizer, {"documents": 12})


def test_planted_heads_get_their_roles():
    table = table_of(hand_fed(ROWS), RoleMasses(["induction"]))
    assert table.role == ("previous", "sink", "broad", "duplicate")
    assert table.scores["previous"][0] == table.score[0] == 1
    assert table.scores["previous"][1] == pytest.approx(1, abs=1e-12), "visible beside the verdict"
    # all of query 1 goes to the sink, its previous token; of the queries after it 0.95
    n = sum(len(ids) - 1 for ids in ROWS)
    assert table.score[1] == pytest.approx((0.95 * (n - 12) + 12) / n)
    assert table.score[2] == pytest.approx(1)
    assert table.scores["duplicate"][3] == 1
    assert table.low["previous"][0] == table.high["previous"][0] == 1
    assert np.isnan(table.scores["next"]).all()
    assert np.isnan(table.scores["delimiter"]).all()
    assert np.isnan(table.scores["induction"]).all()


def test_a_planted_induction_head_is_found_on_repeated_sequences():
    text = hand_fed(ROWS, lambda ids: planted(ids)[[0, 1, 2, 2]])  # on text, the last head looks anywhere
    table = table_of(text, hand_fed(TWICE, planted_induction, ["induction"]))
    assert table.scores["induction"][3] == 1
    np.testing.assert_allclose(table.scores["induction"][:3], table.chance["induction"][:3])
    assert table.role == ("previous", "sink", "broad", "induction")
    assert table.examples[3].query.position - table.examples[3].keys[0].position == 9


def test_intervals_are_the_delete_m_jackknife_of_the_ratio():
    statistic = hand_fed(ROWS)
    table = table_of(statistic, RoleMasses(["induction"]))
    groups = [[] for _ in range(10)]
    for number, ids in enumerate(ROWS):
        maps, tokens = planted(ids).numpy()[None], np.array([ids])
        there = np.ones_like(tokens, bool)
        sums = role_sums(maps, tokens, there, there)["same"][2]
        # a row for each query, so that blocks count by their queries; what they sum to is all that matters
        groups[number % 10] += [[*sums[:2]], *[[0, 0]] * (len(ids) - 1)]
    low, high = interval(lambda rows: rows[:, 0].sum() / rows[:, 1].sum(), [np.array(group) for group in groups])
    assert low < table.scores["same"][2] < high
    np.testing.assert_allclose([table.low["same"][2], table.high["same"][2]], [low, high], rtol=1e-9)


def test_examples_say_who_looks_where():
    table = table_of(hand_fed(ROWS), RoleMasses(["induction"]))
    example = table.examples[0]
    assert (example.role, example.keys[0].position) == ("previous", example.query.position - 1)
    assert example.keys[0].weight == 1
    row = next(ids for ids in ROWS if len(ids) > example.query.position)
    assert len(row) >= example.query.position
    assert str(example).endswith("1.00")
    assert example.keys[0].token == example.query.before[-1]
    assert [table.examples[2].role, len(table.examples[2].keys)] == ["broad", 3]


def test_examples_in_bytes_show_whole_characters():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    ids = tokenizer("猫が座る猫")["input_ids"]
    table = table_of(hand_fed([ids]), RoleMasses(["induction"]), tokenizer)
    # every token is a byte; the best of them, the last, looks at the one before
    assert str(table.examples[0]) == "座る‹猫› → る‹猫› 1.00"
    assert "�" not in "".join(map(str, table.examples))


def test_every_family_has_roles(family, model, batches):
    table = hs.roles(model, batches)
    anatomy = hs.discover(model, batches[0])
    assert table.heads == anatomy.heads
    kind = anatomy.sites[0].kind
    for role in ROLES:
        never = role == "delimiter" or (role == "next" and kind == "causal")
        assert np.isnan(table.scores[role]).all() == never, role
    for role in set(ROLES) - {"delimiter", "next"}:
        assert ((table.scores[role] >= 0) & (table.scores[role] <= 1 + 1e-6)).all()
        assert np.isfinite(table.low[role]).all(), "six documents are enough for an interval"
    assert (table.facts["documents"], table.facts["repeated_sequences"]) == (6, 24)


def test_scores_are_those_of_the_captured_maps():
    model, batches = build("bert"), make_batches("bert")
    table = hs.roles(model, batches, skip_first=1)
    anatomy = hs.discover(model)
    sums = {}
    for batch in batches:
        mask = batch["attention_mask"].bool().numpy()
        counts = mask.copy()
        counts[:, :1] = False
        with hs.capture(model, want=("pattern",), anatomy=anatomy) as seen, torch.no_grad():
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        for site in anatomy.sites:
            maps = seen[site.layer].pattern.double().numpy()
            for role, own in role_sums(maps, batch["input_ids"].numpy(), mask, counts).items():
                sums.setdefault(role, {}).setdefault(site.layer, np.zeros((4, 3)))
                sums[role][site.layer] += own
    for role in ("previous", "next", "same", "duplicate", "sink", "broad"):
        want = np.concatenate([own[:, 0] / own[:, 1] for own in sums[role].values()])
        np.testing.assert_allclose(table.scores[role], want, rtol=1e-5)


def test_padding_is_without_effect():
    model, batches = build("llama"), make_batches("llama")
    wider = [
        batch
        | {
            "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 3)),
            "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (0, 3)),
        }
        for batch in batches
    ]
    first, again = hs.roles(model, batches), hs.roles(model, wider)
    for role in set(ROLES) - {"induction"}:
        np.testing.assert_allclose(again.scores[role], first.scores[role], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(again.chance[role], first.chance[role], rtol=1e-5)


def test_a_sliding_layer_knows_its_window():
    model = build("gemma3")  # a window of 8, then a full layer
    batches = make_batches("gemma3", rows=3, length=20, padded=False)
    text = RoleMasses()
    observe(model, batches, [text])
    sums = {layer: own.sums.sum(0)[text.roles.index("sink"), 0] for layer, own in text.compute().items()}
    sinks = {layer: float(own[2] / own[1]) for layer, own in sums.items()}
    full = np.mean([1 / n for n in range(2, 21)])
    windowed = sum(1 / n for n in range(2, 9)) / 19  # from the ninth token on the first is out of sight
    assert sinks == pytest.approx({0: windowed, 1: full})


def test_the_seed_settles_the_random_sequences():
    model, batches = build("llama"), make_batches("llama", length=24)
    first, again, other = (hs.roles(model, batches, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.scores["induction"], again.scores["induction"])
    assert not np.array_equal(first.scores["induction"], other.scores["induction"])
    np.testing.assert_array_equal(first.scores["previous"], other.scores["previous"])


def test_an_encoder_decoder_has_roles_on_both_sides_and_fewer_between():
    model = build_any("t5")
    generator = torch.Generator().manual_seed(0)
    batches = [
        {
            "input_ids": torch.randint(3, VOCABULARY, (3, LENGTH), generator=generator),
            "attention_mask": torch.ones(3, LENGTH, dtype=torch.long),
            "decoder_input_ids": torch.randint(3, VOCABULARY, (3, LENGTH - 2), generator=generator),
        }
    ]
    table = hs.roles(model, batches)
    kinds = {site.layer: site.kind for site in hs.discover(model).sites}
    kind = np.array([kinds[head.layer] for head in table.heads])
    assert set(kind) == {"self", "causal", "cross"}
    known = {role: set(kind[np.isfinite(own)]) for role, own in table.scores.items()}
    assert known["previous"] == known["same"] == known["duplicate"] == known["induction"] == {"self", "causal"}
    assert known["next"] == {"self"}
    assert known["sink"] == known["broad"] == {"self", "causal", "cross"}


def test_a_vision_model_has_positions_and_no_tokens():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    model = AutoModel.from_config(AutoConfig.for_model("vit", **sizes, image_size=16, patch_size=4)).eval()
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    table = hs.roles(model, [{"pixel_values": pixels}])
    unknown = {role for role, own in table.scores.items() if np.isnan(own).all()}
    assert unknown == {"duplicate", "induction", "delimiter"}
    assert "no token ids" in table.facts["why_no_induction"]
    assert "no induction: " in table._repr_html_()
    examples = [example for example in table.examples if example is not None]
    assert all(example.query.token == f"#{example.query.position}" for example in examples)


def test_one_document_has_scores_and_no_interval():
    table = hs.roles(build("bert"), make_batches("bert", n_batches=1, rows=1, padded=False))
    assert np.isfinite(table.scores["previous"]).all()
    assert np.isnan(table.low["previous"]).all()


def test_nothing_to_look_at_is_refused():
    with pytest.raises(InputError, match="no batch"):
        hs.roles(build("bert"), [])


def test_heads_that_look_within_windows_have_roles() -> None:
    config = SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[2], num_heads=[2], window_size=4)
    torch.manual_seed(0)
    model = SwinModel(config).eval()
    table = hs.roles(model, [{"pixel_values": torch.randn(4, 3, 16, 16)} for _ in range(2)])
    frame = table.to_frame()
    assert list(zip(frame["layer"], frame["head"], strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert frame["broad"].tolist()[:2] == pytest.approx([1.0] * 2, abs=0.05), "new weights look everywhere alike"
