"""C10: what one number of heads for every task costs the worst of them."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from headscope.errors import InputError
from headscope.studies.claim_pages import page
from headscope.studies.claims import claim_named
from headscope.studies.headcount.regret import least_worst, regrets
from headscope.studies.rulings import Rulings, rule
from tests.unit.studies.claims.planted import FLAT, LONG, OPTIMUM, VARYING, runs
from tests.words import same_numbers

CLAIM: Any = claim_named("C10")
FEW, MANY = {1: 0.1, 4: 0.3, 16: 0.6}, {1: 0.6, 4: 0.2, 16: 0.1}


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (OPTIMUM, LONG, "holds in part (for the task only, at a width of 16)"),
        (FLAT, FLAT, "does not hold"),
        (OPTIMUM, OPTIMUM, "does not hold"),  # one number is the best for both
        (VARYING, VARYING, "not decided (10 seeds or more)"),
    ],
)
def test_planted_sweeps_are_decided(first: Any, second: Any, verdict: str) -> None:
    words = CLAIM.measure(runs({("a", "width"): first, ("b", "width"): second})).words
    assert CLAIM.decide(words).told() == verdict, words
    assert same_numbers(CLAIM.say(words))


def test_sweeps_of_two_widths_are_told_side_by_side() -> None:
    tasks = {("a", "width"): OPTIMUM, ("b", "width"): LONG}
    wide, other = CLAIM.measure(runs(tasks)).words, CLAIM.measure(runs({**tasks, ("a", "width"): MANY})).words
    narrow = {**other, "width": 8.0}
    told = CLAIM.side_by_side([wide, narrow])
    least = f"{narrow['common']:g} and {wide['common']:g}"
    assert told.en.startswith(
        f"At widths of 8 and 16 the number of heads that costs least on its worst task is {least}."
    )
    fewest = [f"{own['fewest on a']:g} at {own['width']:g}" for own in (narrow, wide)]
    assert narrow["fewest on a"] != wide["fewest on a"]
    assert f"differ for a ({', '.join(fewest)}), of 2 tasks. By their intervals they differ for a." in told.en
    assert same_numbers(told)
    wider = {**narrow, "no fewer on a": 1.0, "no more on a": 16.0}
    unsure = CLAIM.side_by_side([wide, wider])
    assert "By their intervals it cannot be told:" in unsure.en
    assert same_numbers(unsure)
    alike = CLAIM.side_by_side([wide, {**wide, "width": 8.0}])
    assert f"is {wide['common']:g} at each." in alike.en
    assert "differ for none of 2 tasks" in alike.en
    assert same_numbers(alike)
    assert not CLAIM.side_by_side([wide, wide])


def test_the_fewest_that_suit_a_task_have_ends() -> None:
    words = CLAIM.measure(runs({("a", "width"): OPTIMUM, ("b", "width"): MANY})).words
    assert words["no fewer on a"] <= words["fewest on a"] <= words["no more on a"]
    loud = CLAIM.measure(runs({("a", "width"): OPTIMUM, ("b", "width"): MANY}, noise=0.2)).words
    assert loud["no fewer on a"] < loud["no more on a"]


def test_regrets_by_hand() -> None:
    sweep = runs({("few", "width"): FEW, ("many", "width"): MANY}, noise=0.0, seeds={"many": 7})
    costs = regrets(sweep.runs)
    np.testing.assert_allclose(costs.loc[[1, 4, 16], "few"], [0, 0.2 / 0.9, 0.5 / 0.9], atol=1e-12)
    np.testing.assert_allclose(costs.loc[[1, 4, 16], "many"], [0.5 / 0.9, 0.1 / 0.9, 0], atol=1e-12)
    best, task, spread = least_worst(sweep.runs)
    assert (best, task) == (4, "few")
    assert spread.centre == pytest.approx(0.2 / 0.9)


def test_the_best_number_is_chosen_by_other_seeds() -> None:
    errors = {1: [0.2, 0.2, 0.2], 4: [0.0, 0.1, 0.35]}  # 4 is the best by the mean, but not without the first seed
    rows = [
        {"task": "a", "arm": "width", "n_heads": n, "seed": seed, "error": error, "chance": 1.0}
        for n, own in errors.items()
        for seed, error in enumerate(own)
    ]
    cost = regrets(pd.DataFrame(rows)).loc[1, "a"]
    assert cost == pytest.approx((0 + 0.1 - 0.15) / 3 / (1 - 0.15))


def test_nothing_is_lost_on_average_where_tasks_do_not_differ() -> None:
    rng, found = np.random.default_rng(0), []
    for _ in range(30):
        table = runs({(task, "width"): FLAT for task in "abcd"}, noise=0.0).runs
        noisy = table.assign(error=table["error"] + 0.05 * rng.standard_normal(len(table)))
        found.append(float(least_worst(noisy)[2].centre))
    assert abs(np.mean(found)) < 0.015  # the largest of four chosen by its own errors would be 0.05


def test_the_answer_is_one_line_and_the_table_names_the_worst() -> None:
    sweep = runs({("few", "width"): FEW, ("many", "width"): MANY}, noise=1e-6, width=32)
    measured = CLAIM.measure(sweep)
    said = CLAIM.say(measured.words)
    assert "At a width of 32, 4 heads of 8 dimensions cost least on their worst task, few: 22.2%" in said.en
    assert "幅32では" in said.ja
    for told in (CLAIM.tabled(measured.table).en, CLAIM.tabled(measured.table).ja):
        rows = [line.strip("| ").split(" | ") for line in told.splitlines() if line.startswith("|")]
        assert rows[2:] == [
            ["1", "0.0%", "55.6%", "55.6%"], ["**4**", "22.2%", "11.1%", "22.2%"], ["16", "55.6%", "0.0%", "55.6%"],
        ]  # fmt: skip
    assert isinstance(CLAIM.draw(measured.table), Figure)


def test_more_tasks_than_markers_are_all_drawn() -> None:
    tasks = {(f"task {place}", "width"): FEW for place in range(15)}
    labels = CLAIM.draw(runs(tasks).runs).axes[0].get_legend_handles_labels()[1]
    assert {f"task {place}" for place in range(15)} <= {*labels}


def test_one_task_says_nothing_of_tasks() -> None:
    with pytest.raises(InputError, match="one task alone"):
        CLAIM.measure(runs({("a", "width"): FLAT}))


def test_the_table_stands_on_the_page_of_each_subject_in_both_languages() -> None:
    made = []
    for width in (64, 32):
        sweep = runs({("few", "width"): FEW, ("many", "width"): MANY}, noise=1e-6, width=width)
        facts = {"versions": {}, "date": "2026-01-02", "machine": "m"}
        made.append(Rulings(f"reference, {width} wide", (rule("C10", CLAIM, lambda own=sweep: [own], ""),), facts))
    for language, head in (("en", "| heads | few | many | worst |"), ("ja", "| ヘッド数 | few | many | 最悪 |")):
        written = page("C10", made, language=language)
        assert written.count(head) == 2
        assert "32" in written
