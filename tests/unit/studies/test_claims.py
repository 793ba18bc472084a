"""Claims: measured right (against a computation by hand, or a model made to break it), and decided by their rule."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from transformers import SqueezeBertConfig, SqueezeBertModel

from headscope.errors import AnatomyError, InputError, UnknownNameError
from headscope.models.reference import Transformer, example
from headscope.reporting.figures import styling
from headscope.studies.asking import ask_model, ask_reference, names_of
from headscope.studies.claims import CLAIMS, KINDS, VERDICTS, ModelClaim, claim_named
from headscope.studies.provenance import made_of
from headscope.studies.rulings import Rulings
from headscope.studies.scaling import scale_model
from headscope.studies.subjects import Subject
from tests.spellings import Spelled

FACTS = ("about", "says", "means", "measured", "unit", "rule", "drawn", "limits")  # in both languages
PAPER_HEADINGS = (
    "マルチヘッドアテンションの概要", "クエリ、キー、バリューの生成", "アテンションスコアの計算",
    "アテンション出力の生成",
    "ヘッドの連結と最終出力の生成", "シーケンス全体に対するアテンション計算", "ヘッド数が多すぎる場合の問題点", "結論",
)  # fmt: skip
OF_A_MODEL = [name for name in CLAIMS if issubclass(CLAIMS[name], ModelClaim)]


def make_subject(model: nn.Module | None = None, batches: Any = None) -> Subject:
    own, rows = example()
    return Subject("small", own if model is None else model, rows if batches is None else batches, quick=True)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return make_subject()


@pytest.fixture(scope="module")
def asked(subject: Subject) -> Rulings:
    return ask_model(subject)


def test_every_claim_of_the_paper_is_there() -> None:
    assert {f"C{number}" for number in range(1, 18)} <= set(CLAIMS)


def japanese(text: str) -> bool:
    return any("぀" <= sign <= "ヿ" or "一" <= sign <= "鿿" for sign in text)


@pytest.mark.parametrize("name", list(CLAIMS))
def test_a_claim_says_what_it_says(name: str) -> None:
    claim = CLAIMS[name]()
    assert claim.kind in KINDS
    for fact in FACTS:
        words = getattr(claim, fact)
        assert words.en.strip(), fact
        assert japanese(words.ja), fact
    for fact in ("interval", "follows"):
        words = getattr(claim, fact)
        assert bool(words.en) == japanese(words.ja), fact
    assert claim.rule.en.startswith(("it holds if", "it holds in part, "))
    assert len(re.findall(r"[.?](?= |$)", claim.means.en)) in (2, 3), "the page adds what came out, a line a subject"
    assert {*claim.where_ja.split("」と「")} <= {*PAPER_HEADINGS}
    low, high = claim.bounds
    assert low < high


def test_a_model_is_asked_what_can_be_asked_of_one(asked: Rulings) -> None:
    assert [ruling.claim for ruling in asked.rulings] == names_of([*OF_A_MODEL, "C5"])
    for ruling in asked.rulings:
        assert ruling.verdict.word in VERDICTS
        assert bool(ruling.verdict.where) == (ruling.verdict.word in ("holds in part", "not decided"))
        assert japanese(ruling.sentence.ja)
        assert bool(ruling.follows.en) == japanese(ruling.follows.ja)
        assert np.isfinite(ruling.effect), ruling.sentence
        low, high = CLAIMS[ruling.claim].bounds
        assert np.isnan(ruling.low) or low <= ruling.low <= ruling.high <= high
        assert ruling.sentence.en.endswith(".")


def test_what_the_reference_must_come_to(asked: Rulings) -> None:
    words = {ruling.claim: ruling.verdict.word for ruling in asked.rulings}
    assert [words[name] for name in ("C1", "C2", "C3", "C4", "C13")] == ["holds"] * 5
    assert (words["C14"], words["C16"]) == ("does not hold", "holds in part")  # heads read all; the future is hidden


@pytest.mark.parametrize("name", list(CLAIMS))
def test_a_figure_is_drawn_from_the_table_alone(name: str, asked: Rulings) -> None:
    if name in asked:
        with styling():
            assert isinstance(CLAIMS[name]().draw(asked[name].table), Figure)


def test_the_same_call_gives_the_same_table(asked: Rulings) -> None:
    timed = {"C5"}
    again = ask_model(make_subject(), [r.claim for r in asked.rulings if r.claim not in timed])
    for ruling in again.rulings:
        pd.testing.assert_frame_equal(ruling.table, asked[ruling.claim].table)
        assert (ruling.effect, ruling.sentence) == (asked[ruling.claim].effect, asked[ruling.claim].sentence)


def test_results_come_back_bit_equal(asked: Rulings, tmp_path: Any) -> None:
    asked.save(tmp_path / "a")
    again = Rulings.load(tmp_path / "a")
    pd.testing.assert_frame_equal(again.to_frame(), asked.to_frame(), check_exact=True)
    for ruling in asked.rulings:
        pd.testing.assert_frame_equal(again[ruling.claim].table, ruling.table, check_exact=True, check_dtype=False)
    assert (again.subject, again.facts) == (asked.subject, asked.facts)


def test_claims_that_are_not_there_are_refused_with_a_list() -> None:
    with pytest.raises(UnknownNameError, match=r"C99.*C1, C2, C3, .*C9, C10, C11"):
        names_of(["C99"])
    assert names_of(["c10", "C2"]) == ["C2", "C10"]


def test_a_model_is_not_asked_how_many_heads_to_train_with(subject: Subject) -> None:
    with pytest.raises(InputError, match=r"C7.*leave the model out"):
        ask_model(subject, ["C7", "C1"])


def test_what_a_model_cannot_be_asked_is_left_open_with_the_reason() -> None:
    one_head = Transformer(50, width=16, n_layers=1, n_heads=1, length=32, causal=True).eval()
    ruling = ask_model(make_subject(one_head), ["C6"]).rulings[0]
    assert (ruling.verdict.word, np.isnan(ruling.effect)) == ("not decided", True)
    assert "two heads" in ruling.sentence.en


@pytest.mark.slow
def test_the_reference_is_asked_everything(tmp_path: Any) -> None:
    made = ask_reference(tmp_path / "sweep", quick=True)
    assert [ruling.claim for ruling in made.rulings] == names_of(None)
    words = {ruling.claim: ruling.verdict.word for ruling in made.rulings}
    assert [words[name] for name in ("C7", "C10", "C11")] == ["not decided"] * 3
    assert [words[name] for name in ("C1", "C2", "C3", "C4", "C13")] == ["holds"] * 5
    assert all(np.isfinite(ruling.effect) for ruling in made.rulings)
    for ruling in made.rulings:
        with styling():
            assert isinstance(CLAIMS[ruling.claim]().draw(ruling.table), Figure)


def test_a_subject_without_tokens_is_told_so() -> None:
    model, _ = example()
    pictures = [{"pixel_values": torch.zeros(2, 1, 8, 8)}]
    subject = Subject("pictures", model, pictures)
    with pytest.raises(InputError, match="no row of tokens"):
        scale_model(subject)


@pytest.mark.parametrize("name", [name for name in OF_A_MODEL if CLAIMS[name].interval])
def test_without_an_interval_nothing_is_decided(name: str) -> None:
    own, rows = example()
    one = [{**batch, "document": torch.zeros(len(batch["input_ids"]), dtype=torch.int64)} for batch in rows]
    ruling = ask_model(make_subject(own, one), [name]).rulings[0]
    takes = "more or other text" if name == "C9" else "more documents, for an interval"
    assert ruling.verdict.told() == f"not decided ({takes})"
    assert np.isfinite(ruling.effect) == (name != "C9")  # fits are tried on other documents, and there are none


def test_twins_are_no_diversity() -> None:
    torch.manual_seed(0)
    model = Transformer(50, width=16, n_layers=1, n_heads=2, length=32).eval()
    attention: Any = model.blocks[0].attention
    for layer in (attention.query, attention.key, attention.value):
        layer.weight.data[8:], layer.bias.data[8:] = layer.weight.data[:8], layer.bias.data[:8]
    ruling = ask_model(make_subject(model), ["C6"]).rulings[0]
    assert ruling.effect == pytest.approx(0, abs=1e-6)
    assert ruling.verdict.word == "does not hold"


def test_one_head_divides_nothing() -> None:
    model = Transformer(50, width=16, n_layers=1, n_heads=1, length=32).eval()
    ruling = ask_model(make_subject(model), ["C14"]).rulings[0]
    assert ruling.verdict.word == "not decided"
    assert "two heads" in ruling.sentence.en


def test_a_claim_that_was_not_asked_is_no_ruling(asked: Rulings) -> None:
    with pytest.raises(KeyError, match="C7"):
        asked["C7"]


def test_a_distance_without_unit_has_none_in_the_figure_after_it_was_read_back(tmp_path: Any) -> None:
    own, rows = example()
    ask_model(Subject("small", own, rows, "kl", quick=True), ["C12"]).save(tmp_path / "kl")
    ask_model(Subject("small", own, rows, "drift", quick=True), ["C12"]).save(tmp_path / "drift")
    for name, label in (("kl", "cost of removing the head, nats/token"), ("drift", "cost of removing the head")):
        with styling():
            figure = claim_named("C12").draw(Rulings.load(tmp_path / name)["C12"].table)
        assert figure.axes[0].get_xlabel() == label


class _Sequences(nn.Module):
    """PyTorch's attention by itself, whose projection is no module that runs; beside a layer that has one."""

    def __init__(self, only: bool) -> None:
        super().__init__()
        self.tokens, self.first, self.only = nn.Embedding(50, 24), nn.MultiheadAttention(24, 4, batch_first=True), only
        self.second = nn.Identity() if only else Spelled("sequence first")

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(input_ids)
        return self.second(self.first(x, x, x, need_weights=False)[0])


def test_contributions_sum_to_what_any_kind_of_projection_puts_out() -> None:
    torch.manual_seed(0)
    ids = [{"input_ids": torch.randint(3, 50, (4, 7))}]
    config = SqueezeBertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        embedding_size=32,
    )  # fmt: skip
    for model in (SqueezeBertModel(config).eval(), _Sequences(only=False).eval()):  # features second; positions first
        made = CLAIMS["C4"]().measure(Subject("small", model, ids))
        assert made.effect < 1e-5
    with pytest.raises(AnatomyError, match="it is no module of its own"):
        CLAIMS["C4"]().measure(Subject("small", _Sequences(only=True).eval(), ids))


def test_why_there_are_no_untrained_copies_is_told(tmp_path: Path) -> None:
    model, rows = example()
    model.blocks[0].own = nn.Parameter(torch.ones(3))  # which no module knows how to draw
    made = ask_model(Subject("small", model, rows, "kl", quick=True), ["C6", "C9"], keep=tmp_path / "kept")
    assert "blocks.0.own" in made.facts["why_not_untrained"]
    again = ask_model(Subject("small", model, rows, "kl", quick=True), ["C6", "C9"], keep=tmp_path / "kept")
    assert again.facts["why_not_untrained"] == made.facts["why_not_untrained"]  # though nothing was measured again
    assert made["C9"].verdict.told() in ("not decided (untrained copies to hold it against)", "not decided (more text)")
    told = made_of(made, [claim_named("C9")])
    assert "Untrained copies are missing: " in told.en
    assert "blocks.0.own" in told.ja
    assert "missing" not in made_of(ask_model(make_subject(), ["C6"]), [claim_named("C6")]).en
