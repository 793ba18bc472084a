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
        most_needed=Finding(HeadId(1, 3), 0.2),
        most_replaceable=Finding(HeadId(0, 1), 0.93, HeadId(0, 2)),
        twins=Finding(HeadId(0, 1), 0.97, HeadId(0, 2)),
        lines=LINES,
        metric="loss",
        unit="nats/token",
        intact=2.876,
        n_documents=9,
        n_tokens=900,
        text_unit="documents",
    )
    return dataclasses.replace(verdict, **changes)


def test_the_sentence_holds_every_number() -> None:
    sentence = make().sentence
    for part in (
        "8 attention heads of tiny", "2 can go together", "0.0123 nats/token", "above 2.88", "cost 0.0200 to 0.0600",
        "L1H3 is needed most (0.200", "93% of what L0H1", "L0H2 foremost", "CKA 0.97",
    ):  # fmt: skip
        assert part in sentence, part


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({"chosen": ()}, "can go"),
        ({"most_needed": Finding(HeadId(1, 3), -0.1)}, "needed most"),
        ({"most_replaceable": Finding(HeadId(0, 1), 0.49)}, "rebuilt"),
        ({"most_replaceable": Finding(HeadId(0, 1), float("nan"))}, "rebuilt"),
        ({"twins": Finding(HeadId(0, 1), 0.89, HeadId(0, 2))}, "interchangeable"),
        ({"twins": None}, "interchangeable"),
    ],
)
def test_a_clause_without_a_head_is_left_out(changes: dict[str, object], gone: str) -> None:
    assert gone in make().sentence
    assert gone not in make(**changes).sentence


def test_held_out_text_may_contradict_the_choice() -> None:
    over = make(joint=0.04, max_loss_rise=0.03, random=(0.05, 0.06)).sentence
    assert "2 cost 0.0400 nats/token" in over
    assert "(allowed: 0.0300)" in over
    assert "can go" not in over
    chance = make(joint=0.02, random=(0.01, 0.06)).sentence
    assert "no better than as many drawn at random (0.0100 to 0.0600)" in chance


def test_nothing_to_say_is_said() -> None:
    empty = make(chosen=(), most_needed=None, most_replaceable=None, twins=None)
    assert empty.sentence == "Of the 8 attention heads of tiny, none can be called redundant on this text."


def test_json_round_trip() -> None:
    for verdict in (make(), make(twins=None, most_needed=None)):
        assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict
