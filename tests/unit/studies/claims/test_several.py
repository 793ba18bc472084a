"""C11: what one head loses, task by task."""

from typing import Any

import pytest

from headscope.errors import InputError
from headscope.studies.claims import claim_named
from tests.unit.studies.claims.planted import ARMS, FLAT, LONG, OPTIMUM, VARYING, runs
from tests.words import same_numbers

BETTER = {("a", "width"): OPTIMUM, ("a", "head_dim"): LONG}
MAPS = {("maps-8", arm): FLAT for arm in ARMS}
UNTOLD = {("c", arm): VARYING for arm in ARMS}
CLAIM: Any = claim_named("C11")


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [
        (BETTER, "holds"),
        (MAPS, "does not hold"),  # tasks on which heads only look count too
        ({**BETTER, **MAPS}, "holds in part (one head loses a 44.4%)"),
        ({**BETTER, **UNTOLD}, "holds in part (one head loses a 44.4%)"),
        (UNTOLD, "not decided (10 seeds or more for c)"),
        ({**MAPS, **UNTOLD}, "not decided (10 seeds or more for c)"),
    ],
)
def test_planted_sweeps_are_decided(errors: Any, verdict: str) -> None:
    words = CLAIM.measure(runs(errors, noise=1e-4)).words
    assert CLAIM.decide(words).told() == verdict, words
    assert same_numbers(CLAIM.say(words))
    assert same_numbers(CLAIM.follow(words))


def test_how_much_it_is_is_told_for_each_task() -> None:
    planted = {("a", arm): {1: 0.5, 4: 0.1} for arm in ARMS} | {("b", arm): {1: 0.19, 4: 0.1} for arm in ARMS}
    measured = CLAIM.measure(runs({**planted, **MAPS}, noise=1e-6, seeds={"a": 8}))
    said = CLAIM.say(measured.words)
    assert "By task it is above by: a 44.4%, b 10.0%. On maps-8 one head is as good or better." in said.en
    assert "a 44.4%、b 10.0%です。maps-8では1ヘッドでも同等かそれ以上です。" in said.ja
    assert measured.effect == pytest.approx((0.4 / 0.9 + 0.1 + 0) / 3, abs=1e-4)
    rows = [line.split(" | ") for line in CLAIM.tabled(measured.table).en.splitlines()[2:5]]
    assert [(row[0], row[2], row[3]) for row in rows] == [
        ("| a", "4", "8 |"),
        ("| b", "4", "5 |"),
        ("| maps-8", "1 4 16", "5 |"),
    ]


def test_several_are_better_only_up_to_a_point() -> None:
    peaked = {("a", arm): {1: 0.3, 4: 0.1, 16: 0.6} for arm in ARMS}
    rising = {("b", arm): {1: 0.3, 4: 0.1, 16: 0.1} for arm in ARMS}
    told = CLAIM.follow(CLAIM.measure(runs({**peaked, **rising})).words)
    fewest = "The fewest heads whose mean error is within 1% of the best: 4 (a, b)."
    assert told.en == f"{fewest} With 16 heads more is lost than with one on a."


def test_without_one_head_it_is_not_told_what_one_head_loses() -> None:
    with pytest.raises(InputError, match="one head a layer is not among those trained, which have 2 or more"):
        CLAIM.measure(runs({("a", arm): {2: 0.1, 4: 0.1} for arm in ARMS}))
