"""C5: pairs from counted operations, and what grows with the square."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from headscope.studies.claims import claim_named
from headscope.studies.growing import terms
from headscope.studies.scaling import Scaling, scale_costs, scale_model
from headscope.studies.subjects import Subject
from tests.models import build
from tests.words import same_numbers

CLAIM: Any = claim_named("C5")
HEADS, SIZE = 4, 8


def costs(operations: Any, lengths: Any = (16, 32, 64, 128), bytes_: Any = lambda t: 100 * t) -> pd.DataFrame:
    rows = [
        {
            "part": "attention", "against": "length", "arm": "width", "mode": "inference",
            "kernel": kernel, "length": t, "n_heads": HEADS, "head_dim": SIZE, "round": number,
            "seconds": 1e-6 * t**2 * (1 + 0.1 * number), "bytes": bytes_(t), "flops": operations(t),
            "analytic": operations(t),
        }
        for t in lengths
        for kernel in ("sdpa", "eager")
        for number in range(3)
    ]  # fmt: skip
    return pd.DataFrame(rows)


PAIR = 4 * HEADS * SIZE


@pytest.mark.parametrize(
    ("operations", "verdict"),
    [
        (lambda t: 640 * t + PAIR * t**2, "holds"),
        (lambda t: 900 + 640 * t + PAIR * t**2, "holds"),
        (lambda t: 640 * t + PAIR * 0.5 * t**2, "does not hold"),
        (lambda t: 640 * t, "does not hold"),
        (lambda t: 640 * t + PAIR * 1.5 * t**2, "not decided (counts of the maps alone)"),
        (lambda t: 640 * t + PAIR * t**2.5, "not decided (counts that three terms fit)"),
    ],
)
def test_pairs_are_read_off_counted_operations(operations: Any, verdict: str) -> None:
    measured = CLAIM.measure(costs(operations))
    assert CLAIM.decide(measured.words).told() == verdict
    assert np.isfinite(measured.effect) == (not verdict.startswith("not"))
    assert same_numbers(CLAIM.say(measured.words))
    assert same_numbers(CLAIM.follow(measured.words))
    counted = "Operations were counted at 16 to 128 tokens"
    assert (counted in CLAIM.say(measured.words).en) == (not verdict.startswith("not"))
    if verdict == "holds":
        assert measured.effect == pytest.approx(100)


def test_two_lengths_leave_it_open() -> None:
    measured = CLAIM.measure(costs(lambda t: t**2, lengths=(16, 32)))
    assert CLAIM.decide(measured.words).told() == "not decided (three lengths)"
    assert not CLAIM.follow(measured.words)
    assert isinstance(CLAIM.draw(measured.table), Figure)


def test_the_pair_of_a_whole_model_is_that_of_all_its_layers() -> None:
    table = costs(lambda t: 640 * t + 3 * PAIR * t**2)
    assert CLAIM.decide(CLAIM.measure(table).words).word == "not decided"
    assert CLAIM.decide(CLAIM.measure(table.assign(pair=3 * PAIR)).words).word == "holds"


def test_what_is_inferred_is_told_with_the_length_where_the_square_takes_over() -> None:
    told = CLAIM.follow(CLAIM.measure(costs(lambda t: 640 * t + PAIR * t**2)).words)
    assert "640·T + 128·T²; the term of T² overtakes that of T at 5 tokens (by the fit: no such" in told.en
    assert "length was counted) and is 96.2% of all at 128." in told.en
    within = CLAIM.follow(CLAIM.measure(costs(lambda t: 30 * PAIR * t + PAIR * t**2)).words)
    assert "overtakes that of T at 30 tokens and is" in within.en
    assert "30トークンでTの項を超え" in within.ja
    assert "Bytes of memory (eager): 100·T; nothing grows with the square." in told.en
    assert "from 64 to 128 tokens time grew × 4.00 (eager; 4.00 to 4.00)" in told.en
    rough = CLAIM.follow(CLAIM.measure(costs(lambda t: PAIR * t**2, bytes_=lambda t: 2.0**t)).words)
    assert "so that the fit cannot tell" in rough.en


def test_terms_are_told_however_small_and_misses_too() -> None:
    """A fixed part of a two-thousandth, as of logits of one position, and a mask that only longer texts have."""
    whole = costs(
        lambda t: 1000 + 640 * t + PAIR * t**2, bytes_=lambda t: 1000 * t + (t**2 if t > 16 else 0)
    ).assign(part="model", pair=PAIR, masks=lambda own: own["length"] ** 2, last=1.0)  # fmt: skip
    measured = CLAIM.measure(whole)
    told = CLAIM.follow(measured.words)
    assert "Operations: 1,000 + 640·T + 128·T²; the term" in told.en
    assert ", to within 0." in told.en
    assert "Of all bytes at 128 tokens, 16,384 are masks of truth values, 1.00 bytes a pair of tokens." in told.en
    assert "128トークンで使う全バイト数のうち、16,384バイトは真偽値のマスクです" in told.ja
    assert same_numbers(told)
    last = "logits of the last position alone"
    assert last in CLAIM.say(measured.words).en
    assert same_numbers(CLAIM.say(measured.words))
    assert last not in CLAIM.say(CLAIM.measure(whole.assign(last=0.0)).words).en
    assert "masks" not in CLAIM.follow(CLAIM.measure(whole.assign(masks=np.nan)).words).en


def test_every_crossing_in_sight_has_its_line() -> None:
    """Operations cross at 30 tokens, bytes of one kernel at 50, of the other never."""
    table = costs(lambda t: 30 * PAIR * t + PAIR * t**2, bytes_=lambda t: 50 * t + t**2)
    table.loc[table["kernel"] == "sdpa", "bytes"] = 100 * table["length"]
    axes = CLAIM.draw(table).axes
    named = [sorted(text.get_text() for text in ax.texts) for ax in axes]
    assert named == [["T² overtakes T\nat 30 (eager, sdpa)"], ["T² overtakes T\nat 50 (eager)"], []]
    assert not any(ax.texts for ax in CLAIM.draw(costs(lambda t: 640 * t)).axes)  # nothing that grows with the square


def test_a_crossing_is_told_to_two_digits_where_the_fit_is_rough() -> None:
    """869 by one weighting of the lengths is 607 by another."""
    words = CLAIM.measure(costs(lambda t: 869 * t + t**2)).words
    assert "overtakes that of T at 869 tokens" in CLAIM.follow(words).en
    rough = {**words, "eager_flops_gap": 0.03}
    assert "overtakes that of T at about 870 tokens" in CLAIM.follow(rough).en
    assert "約870トークン" in CLAIM.follow(rough).ja
    assert same_numbers(CLAIM.follow(rough))


def test_a_whole_model_with_windows_holds_a_mask_where_no_map_is_written_out() -> None:
    """Layer 0 looks back 8 tokens: from there on a kernel without maps is given a mask of one byte a pair."""
    rows = [{"input_ids": torch.randint(3, 50, (2, 20)), "document": torch.arange(2)}]
    table = scale_model(Subject("small", build("gemma3"), rows, quick=True))
    held = table[table["kernel"] == "sdpa"].groupby("length")["masks"].first()
    assert held[64] == 64**2
    assert (table["last"] == 1).all()
    encoder = scale_model(Subject("small", build("bert"), rows, quick=True))
    assert encoder[encoder["kernel"] == "sdpa"]["masks"].max() < 64**2
    assert (encoder["last"] == 0).all()


def test_a_layer_is_counted_as_one_does_by_hand() -> None:
    scaling = Scaling(width=32, lengths=(8, 16, 32, 64), heads=4, counts=(1, 2), length=16, rounds=2)
    measured = CLAIM.measure(scale_costs(scaling))
    assert CLAIM.decide(measured.words).word == "holds"
    assert measured.effect == pytest.approx(100)
    assert measured.words["eager_flops_crossing"] == pytest.approx(2 * 32)  # twice the width


def test_terms_say_how_well_they_fit() -> None:
    sizes = (8, 16, 32, 64, 128)
    found = terms({t: 7 + 5 * t + 0.25 * t**2 + (1000 if t == 8 else 0) for t in sizes})
    assert (found.fixed, found.linear, found.square) == pytest.approx((7, 5, 0.25))  # the shortest is not fitted
    assert (found.gap, found.shortest, found.longest) == (pytest.approx(0, abs=1e-9), 16, 128)
    assert found.crossing == pytest.approx(20)
    assert terms({t: 5.0 * t for t in sizes}).share == pytest.approx(0, abs=1e-9)
    assert terms({t: 2.0**t for t in sizes}).gap > 0.5
