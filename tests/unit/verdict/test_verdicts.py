"""The verdict's words follow its numbers; a clause that no head satisfies is left out."""

import dataclasses
import json

import pytest

from headscope.heads import HeadId
from headscope.planning.quadrants import Lines
from headscope.verdict.verdicts import Finding, Verdict

LINES = Lines(0.01, 0.5, "because")


def make(**changes: object) -> Verdict:
    verdict = Verdict(
        model="tiny",
        n_heads=8,
        n_layers=2,
        chosen=(HeadId(0, 1), HeadId(1, 2)),
        max_loss_rise=0.03,
        joint=0.0123,
        joint_low=0.01,
        joint_high=0.015,
        random=(0.05, 0.02, 0.04, 0.03, 0.06),
        stability=0.9,
        cheapest=Finding(HeadId(0, 1), 0.004, 0.002, 0.006),
        most_needed=Finding(HeadId(1, 3), 0.2, 0.15, 0.25),
        most_replaceable=Finding(HeadId(0, 1), 0.93, 0.9, 0.96, HeadId(0, 2)),
        its_constant=0.85,
        twins=Finding(HeadId(0, 1), 0.97, 0.95, 0.99, HeadId(0, 2)),
        lines=LINES,
        metric="loss",
        unit="nats/token",
        intact=2.876,
        n_documents=9,
        n_tokens=900,
        text_unit="documents",
    )
    return dataclasses.replace(verdict, **changes)


NAN = float("nan")


def test_the_sentence_holds_every_number_with_its_interval() -> None:
    sentence = make().sentence
    for part in (
        "8 attention heads of tiny", "2 can go together at a cost of 0.0123 nats/token (95% interval 0.0100 to 0.0150)",
        "next-token loss (2.88 with all heads)",
        "5 random sets from the same layers cost 0.0400 in the median, the cheapest 0.0200, the dearest 0.0600 (p =",
        "5 are too few to show less than 0.17", "L1H3 is needed most (0.200, 0.150 to 0.250",
        "93% (90% to 96%) of what varies in L0H1", "L0H2 foremost", "CKA 0.97, 0.95 to 0.99",
    ):  # fmt: skip
        assert part in sentence, part


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({"chosen": (), "random": ()}, "together"),
        ({"chosen": (), "random": ()}, "random"),
        ({"most_needed": Finding(HeadId(1, 3), -0.1, NAN, NAN)}, "needed most"),
        ({"most_replaceable": Finding(HeadId(0, 1), 0.49, 0.4, 0.6)}, "of what varies in"),
        ({"most_replaceable": Finding(HeadId(0, 1), NAN, NAN, NAN)}, "of what varies in"),
        ({"twins": Finding(HeadId(0, 1), 0.89, 0.8, 0.9, HeadId(0, 2))}, "interchangeable"),
        ({"twins": None}, "interchangeable"),
    ],
)
def test_a_clause_without_a_head_is_left_out(changes: dict[str, object], gone: str) -> None:
    assert gone in make().sentence
    assert gone not in make(**changes).sentence


def test_held_out_text_may_contradict_the_choice() -> None:
    over = make(joint=0.04, joint_low=0.035, joint_high=0.045).sentence
    assert "2 cost 0.0400 nats/token (95% interval 0.0350 to 0.0450)" in over
    assert "more than the 0.0300\xa0nats/token that they were chosen to cost at most" in over
    assert "can go" not in over


@pytest.mark.parametrize(
    ("random", "p"), [((0.05, 0.02), 1 / 3), ((0.0123, 0.05, 0.06), 2 / 4), ((0.001,) * 19, 1.0), ((), 1.0)]
)
def test_p_counts_the_sets_that_cost_no_more(random: tuple[float, ...], p: float) -> None:
    assert make(random=random).p_value == pytest.approx(p)


def test_chance_says_what_it_rests_on() -> None:
    assert "too few" not in make(random=(0.05,) * 19).sentence
    assert "19 random sets from the same layers cost 0.0500 (p = 0.050)" in make(random=(0.05,) * 19).sentence
    assert "no other set has as many heads of the same layers" in make(random=()).sentence


def test_without_a_head_within_the_budget_the_cheapest_is_named() -> None:
    none = make(chosen=(), random=(), joint=0.0, joint_low=0.0, joint_high=0.0, max_loss_rise=0.001).sentence
    assert (
        "none is sure to stay within the 0.00100\xa0nats/token allowed: the cheapest, L0H1, costs 0.00400 nats/token"
        in none
    )
    assert "(95% interval 0.00200 to 0.00600)" in none


def test_what_cannot_be_told_is_said_first() -> None:
    assert make(too_little=("Too little text.",)).sentence.startswith("Too little text. Of the 8 attention heads")
    assert make(too_little=("Too little text.",)).found == make().sentence


def test_json_round_trip() -> None:
    for verdict in (make(), make(twins=None, most_needed=None, too_little=("a",))):
        assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict
    undefined = make(stability=NAN, cheapest=Finding(HeadId(0, 1), 0.1, NAN, NAN))
    text = json.dumps(undefined.to_json(), allow_nan=False)
    again = Verdict.from_json(json.loads(text))
    assert again.to_json() == undefined.to_json()  # NaN is not equal to itself


def test_more_than_all_cannot_be_rebuilt() -> None:
    beyond = make(most_replaceable=Finding(HeadId(0, 1), 0.93, 0.7, 1.17, HeadId(0, 2))).sentence
    assert "93% (70% to 117%) [more than all cannot be: there is too little text] of what varies in L0H1" in beyond


def test_a_models_own_loss_is_no_next_token_loss() -> None:
    assert "of its own loss" in make(unit="").sentence
    assert "next-token" not in make(unit="").sentence
