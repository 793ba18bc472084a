"""Rulings: verdicts by their rules from planted numbers, pooled over training seeds, and what leaves a claim open."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headscope.errors import InterruptedWorkError, StorageError
from headscope.studies.bilingual import Both
from headscope.studies.claims import FAILS, HOLDS, Measured, claim_named
from headscope.studies.rulings import Ruling, Rulings, own_folder, pool, rule
from tests.unit.studies.claims.planted import ARMS, FLAT, VARYING, runs


def test_options_stand_in_the_commands_that_they_belong_to() -> None:
    commands = {name: f"headscope claims --out {own_folder(name, 'a')}" for name in ("C1", "C7")}
    made = [
        Ruling(name, "", "", "", HOLDS, 0.0, 0.0, 0.0, "", "", Both("", ""), command)
        for name, command in commands.items()
    ]
    asked = Rulings("a", tuple(made)).asked_with("--seed 1", "--sweep heads", "b on c")
    assert asked.subject == "b on c"
    assert asked["C1"].command == "headscope claims --out claims-C1-b-on-c --seed 1"
    assert asked["C7"].command == "headscope claims --out claims-C7-b-on-c --seed 1 --sweep heads"
    assert Rulings("a", tuple(made)).asked_with("")["C1"].command == "headscope claims --out claims-C1-a"


def test_a_sweep_that_cannot_tell_leaves_the_claim_open() -> None:
    maps = runs({("maps-8", arm): FLAT for arm in ARMS})
    ruling = rule("C10", claim_named("C10"), lambda: [maps], "")
    assert (ruling.verdict.word, np.isnan(ruling.effect)) == ("not decided", True)
    assert "one task alone" in ruling.sentence.en


@pytest.mark.parametrize("stop", [InterruptedWorkError, StorageError])
def test_what_no_claim_is_to_blame_for_is_passed_on(stop: type[Exception]) -> None:
    def evidence() -> list[Any]:
        raise stop("stopped")

    with pytest.raises(stop):
        rule("C7", claim_named("C7"), evidence, "")


def test_over_seeds_neither_spread_is_hidden() -> None:
    def one(effect: float, half: float) -> Measured:
        numbers = {"more": effect, "largest": effect, "least": effect}
        return Measured(effect, "text", numbers, pd.DataFrame({"x": [effect]}), effect - half, effect + half)

    wide = pool([one(0.5, 0.2), one(0.5, 0.2), one(0.5, 0.2)])
    assert (wide.effect, wide.low, wide.high, wide.over) == pytest.approx((0.5, 0.3, 0.7, "3 seeds"))
    apart = pool([one(0.4, 0.0), one(0.5, 0.0), one(0.6, 0.0)])
    half = 4.302652729911275 * 0.1 / 3**0.5  # Student's t with 2 degrees of freedom
    assert (apart.low, apart.high) == pytest.approx((0.5 - half, 0.5 + half))
    both = pool([one(0.4, 0.2), one(0.5, 0.2), one(0.6, 0.2)])
    assert (both.low, both.high) == pytest.approx((0.5 - (half**2 + 0.04) ** 0.5, 0.5 + (half**2 + 0.04) ** 0.5))
    further = [
        Measured(0.5, "text", {"more": more, "more_low": more - 0.1, "more_high": more + 0.1})
        for more in (-0.5, -0.5, -0.5, -0.5, 1.2)
    ]
    words = pool(further).words
    assert words["more"] == pytest.approx(-0.16)
    half = 2.7764451 * np.std([-0.5] * 4 + [1.2], ddof=1) / 5**0.5
    assert words["more_high"] == pytest.approx(-0.16 + np.hypot(half, 0.1))  # seeds that disagree tell nothing
    partly = pool([one(0.5, 0.2), one(0.5, 0.2), one(0.5, float("nan"))])
    assert (partly.low, partly.high) == pytest.approx((0.3, 0.7))
    unknown = pool([one(0.5, float("nan")), one(0.5, float("nan"))])
    assert (unknown.low, unknown.high) == (0.5, 0.5)
    assert apart.table["training_seed"].tolist() == [0, 1, 2]
    assert apart.numbers == pytest.approx({"more": 0.5, "largest": 0.6, "least": 0.4})


def test_saved_results_are_told_by_todays_rules_and_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = runs({("maps-8", arm): FLAT for arm in ARMS} | {("b", arm): FLAT for arm in ARMS})
    made = Rulings("a", (rule("C11", claim_named("C11"), lambda: [maps], ""),), {})
    made.save(tmp_path / "a")
    assert Rulings.load(tmp_path / "a")["C11"].sentence == made["C11"].sentence
    monkeypatch.setattr(
        type(claim_named("C11")), "say", lambda self, words: Both(f"{words['effect']:.3f}.", "新しい文。")
    )
    monkeypatch.setattr(type(claim_named("C11")), "decide", lambda self, words: FAILS)
    again = Rulings.load(tmp_path / "a")["C11"]
    assert (again.verdict, again.sentence) == (FAILS, Both(f"{made['C11'].effect:.3f}.", "新しい文。"))
    assert again.effect == made["C11"].effect


def test_a_number_that_an_earlier_version_did_not_save_is_asked_for(tmp_path: Path) -> None:
    maps = runs({("maps-8", arm): FLAT for arm in ARMS} | {("b", arm): FLAT for arm in ARMS})
    ruling = rule("C11", claim_named("C11"), lambda: [maps], "headscope claims --claim C11 --out again")
    numbers = {name: value for name, value in ruling.numbers.items() if name != "most"}
    Rulings("a", (replace(ruling, numbers=numbers),), {}).save(tmp_path / "a")
    with pytest.raises(StorageError, match=r"C11 was measured by an earlier version.* 'most'") as stopped:
        Rulings.load(tmp_path / "a")
    assert "headscope claims --claim C11 --out again" in stopped.value.on_command_line


def test_a_folder_without_claims_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"claims\.json") as stopped:
        Rulings.load(tmp_path)
    assert "headscope claims MODEL --out FOLDER" in stopped.value.on_command_line


def test_a_sweep_that_leaves_balance_open_says_how_many_seeds_it_would_take() -> None:
    noisy = {(task, arm): VARYING for task in ("a", "b") for arm in ARMS}
    ruling = rule("C10", claim_named("C10"), lambda: [runs(noisy)], "")
    assert ruling.verdict.told() == "not decided (10 seeds or more)"


def test_numbers_that_nobody_knows_are_nobodys_largest() -> None:
    nan = float("nan")
    each = [Measured(0.5, "text", {"largest_x": own, "least_x": own, "x": own}) for own in (nan, 2.0, 1.0)]
    words = pool(each).words
    assert (words["largest_x"], words["least_x"], np.isnan(words["x"])) == (2.0, 1.0, True)
