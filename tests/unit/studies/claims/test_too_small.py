"""C7: where heads are too small, and from which size on."""

from typing import Any

import numpy as np
import pytest

from headscope.errors import InputError
from headscope.studies.claims import claim_named
from headscope.studies.headcount.shapes import falls
from tests.unit.studies.claims.planted import ARMS, FLAT, LONG, OPTIMUM, VARYING, runs
from tests.words import same_numbers

FALLS = {("maps-8", "width"): OPTIMUM, ("maps-8", "head_dim"): LONG}
STILL = {("b", arm): FLAT for arm in ARMS}
UNTOLD = {("c", arm): VARYING for arm in ARMS}
CLAIM: Any = claim_named("C7")


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [
        (FALLS, "holds"),
        ({**FALLS, **STILL, **UNTOLD}, "holds"),  # it can happen, and is shown where it does
        (STILL, "does not hold"),
        ({("a", arm): OPTIMUM for arm in ARMS}, "does not hold"),  # not for being small
        ({**STILL, **UNTOLD}, "not decided"),
        ({("a", "width"): {1: 0.2, 4: 0.1, 16: 0.2}, ("a", "head_dim"): VARYING}, "not decided"),
    ],
)
def test_planted_sweeps_are_decided(errors: Any, verdict: str) -> None:
    measured = CLAIM.measure(runs(errors))
    assert CLAIM.decide(measured.words).word == verdict, measured.words
    assert same_numbers(CLAIM.say(measured.words))


def test_each_task_is_told_with_the_size_at_which_the_fall_begins() -> None:
    later = {("late", "width"): {1: 0.1, 4: 0.1, 16: 0.5}, ("late", "head_dim"): FLAT}
    early = {("early", "width"): {1: 0.1, 4: 0.3, 16: 0.5}, ("early", "head_dim"): FLAT}
    measured = CLAIM.measure(runs({**later, **early, **STILL, **UNTOLD}))
    said = CLAIM.say(measured.words)
    assert "The rise that is due to small heads is clear from head_dim 4 (early); 1 (late) on." in said.en
    assert "It does not on b. It is not decided on c (5 seeds)." in said.en
    assert "head_dimが4(early)、1(late)以下のときです。" in said.ja
    table = CLAIM.tabled(measured.table)
    rows = [line.split(" | ") for line in table.en.splitlines()[2:6]]
    assert [row[1] for row in rows] == ["1", "4", "–", "–"]
    assert [row[2] for row in rows[2:]] == ["–", "–"]
    of_chance = [float(cell.rstrip("%")) for row in rows[:2] for cell in row[2:4]]  # and of as many of fixed size
    assert of_chance == pytest.approx([50, 10, 30, 10], abs=0.5)
    assert table.en.endswith("over the seeds that all tasks have.")
    assert table.en.count("\n") == table.ja.count("\n")
    assert CLAIM.headline(measured.words).en.startswith(
        "Cut out of the same width, heads of 16 dimensions, the paper's example, lose"
    )


def test_what_heads_of_the_paper_s_size_lose_stands_beside_each_task() -> None:
    """Of a width of 16 they are one head, which errs 0.4 more than the best of what is learnt, 0.9."""
    few = {("few", "width"): {1: 0.5, 4: 0.1, 16: 0.1}, ("few", "head_dim"): FLAT}
    told = CLAIM.tabled(runs({**few, **STILL}, noise=0.0).runs).en
    lost = [float(line.split(" | ")[4].rstrip("%")) for line in told.splitlines()[2:4]]
    assert lost == pytest.approx([100 * 0.4 / 0.9, 0], abs=0.1)
    nothing = {("none", arm): {1: 1.0, 4: 1.0, 16: 1.0} for arm in ("width", "head_dim")}
    told = CLAIM.tabled(runs({**few, **nothing}, noise=0.0).runs).en
    assert "| none | – | – | – | – |" in told


def test_what_it_takes_to_decide_is_told_with_the_tasks_that_are_open() -> None:
    verdict = CLAIM.decide(CLAIM.measure(runs({**STILL, **UNTOLD}, seeds={"c": 6})).words)
    assert verdict.told() == "not decided (12 seeds or more for c)"
    assert verdict.told("ja") == "未判定(cにはシード12個以上が必要)"


def test_a_task_is_judged_by_all_its_seeds() -> None:
    found = falls(runs({**FALLS, **STILL}, seeds={"maps-8": 10}).runs).set_index("task")
    assert found["seeds"].to_dict() == {"maps-8": 10, "b": 5}
    assert found["is"].to_dict() == {"maps-8": "falls", "b": "as good"}


def test_small_heads_are_not_to_blame_for_what_as_many_wide_ones_lose_too() -> None:
    both = {("a", "width"): {1: 0.1, 4: 0.1, 16: 0.5}, ("a", "head_dim"): {1: 0.1, 4: 0.1, 16: 0.5}}
    more = {("a", "width"): {1: 0.1, 4: 0.1, 16: 0.5}, ("a", "head_dim"): {1: 0.1, 4: 0.1, 16: 0.2}}
    assert falls(runs(both).runs)["is"].tolist() == ["as good"]
    assert falls(runs(more).runs)["head_dim"].tolist() == [1]


def test_too_few_heads_are_no_fall() -> None:
    few = {("a", "width"): {1: 0.5, 4: 0.1, 16: 0.1}, ("a", "head_dim"): FLAT}
    assert falls(runs(few).runs)["is"].tolist() == ["as good"]


def test_noise_makes_no_fall() -> None:
    """Seven tasks without any shape, 40 times: one of them falls about as often as is allowed."""
    false = 0
    flat = {(task, arm): dict.fromkeys((1, 2, 4, 8, 16), 0.3) for task in "abcdefg" for arm in ARMS}
    table = runs(flat, noise=0.0).runs
    rng = np.random.default_rng(1)
    for _ in range(40):
        noisy = table.assign(error=table["error"] + 0.02 * rng.standard_normal(len(table)))
        false += bool((falls(noisy)["is"] == "falls").any())
    assert false <= 2


def test_heads_of_the_size_that_the_paper_names_are_the_number() -> None:
    planted = {("a", "width"): {1: 0.5, 4: 0.1, 16: 0.2}, ("a", "head_dim"): FLAT}  # 1 head of 16 dimensions
    measured = CLAIM.measure(runs(planted, noise=1e-6))
    assert measured.effect == pytest.approx(0.4 / 0.9, abs=1e-4)
    assert measured.low < measured.effect < measured.high
    said = CLAIM.say(measured.words)
    assert "1 head of 16 dimensions lose 44.4% (44.4% to 44.4%)" in said.en
    assert "16次元のヘッド1個では学習できた量の44.4%(44.4%〜44.4%)" in said.ja
    with pytest.raises(InputError, match=r"no heads of 16 dimensions.* 8, 4; train 1 head too"):
        CLAIM.measure(runs({("a", arm): {2: 0.1, 4: 0.1} for arm in ARMS}))
    with pytest.raises(InputError, match="a width that is a multiple of 16 can have them"):
        CLAIM.measure(runs({("a", arm): {1: 0.1, 2: 0.1} for arm in ARMS}, width=8))
