"""C12: decided by counts of heads, beside noise of their length; the task of documents counts pairs right."""

from dataclasses import replace
from math import nan

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from headscope.anatomy import discover
from headscope.anatomy.weights import output_weights
from headscope.effects.metrics import Drift
from headscope.effects.noise import noise_effects, with_noise
from headscope.effects.sweep import Effects
from headscope.errors import InputError
from headscope.models.reference import Transformer, example
from headscope.studies.claims.every_head import EveryHead
from headscope.studies.same_document import mistaken, pairs_of_passages, same_document_effects
from headscope.studies.subjects import Subject
from headscope.text.corpus import text_batches
from headscope.text.texts import Document, Texts
from headscope.watching.observation import capture

COUNTS = {
    "heads": 10.0, "above": 8.0, "below": 0.0, "across": 2.0, "louder": 6.0, "quieter": 1.0, "largest": 0.02,
    "distance": 0.0, "helped": 0.0, "task_intact": nan, "task_above": nan, "task_largest": nan,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, "holds"),
        ({"louder": nan, "quieter": nan}, "not decided (noise to hold it against)"),
        ({"below": 1.0}, "holds in part (clearly above the size: 8 of 10 heads)"),
        ({"above": 4.0, "across": 6.0}, "holds in part (clearly above the size: 4 of 10 heads)"),
        ({"above": 2.0, "below": 3.0}, "does not hold"),
        ({"louder": 4.0}, "holds in part (removal is felt, more than noise: 4 of 10 heads)"),
        ({"task_above": 5.0}, "holds"),
        ({"task_above": 4.0, "task_below": 6.0}, "holds in part (embeddings move, the task hardly suffers)"),
        ({"task_above": 4.0, "task_below": 1.0}, "holds in part (embeddings move, the task cannot tell)"),
    ],
)
def test_it_is_decided_by_counts(change: dict[str, float], told: str) -> None:
    assert EveryHead().decide({**COUNTS, **change}).told() == told


def test_the_number_and_what_the_verdict_counts_are_told_apart() -> None:
    """The number counts heads by their mean, the verdict those whose whole interval is above."""
    claim, words = EveryHead(), {**COUNTS, "above": 4.0, "across": 6.0, "effect": 0.9}
    said, verdict = claim.say(words), claim.decide(words)
    assert "9 of 10 heads cost more than 0.1% of the loss in the mean over documents" in said.en
    assert "By their whole interval 4 cost more" in said.en
    assert "10個中9個" in said.ja
    assert "区間全体で見ると、超えるのは4個" in said.ja
    assert verdict.told() == "holds in part (clearly above the size: 4 of 10 heads)"
    assert verdict.told("ja") == "一部で成り立つ(基準を明らかに超えるのは10個中4個)"
    assert "the verdict counts only heads whose whole interval is above it" in claim.unit.en


def small() -> Subject:
    torch.manual_seed(1)
    model = Transformer(vocabulary=64, width=16, n_layers=2, n_heads=3, head_dim=4, length=8, causal=False).eval()
    return Subject("encoder", model, text_of(14, 2), "drift", seed=3, quick=True)


def test_clearly_more_than_noise_is_beyond_what_documents_and_turns_explain() -> None:
    subject = small()
    words = EveryHead().measure(subject).words
    own = subject.effects
    turned = [
        noise_effects(subject.model, subject.sample, subject.judged_by, subject.anatomy, seed).values
        for seed in (12, 13, 14, 15)
    ]
    louder = quieter = 0
    for head, cost in enumerate(own.values):
        each = np.array([turn[head] for turn in turned])
        gaps = [(cost - each.mean(0))[own.document == document].mean() for document in np.unique(own.document)]
        by_text = stats.t.ppf(0.975, len(gaps) - 1) * np.std(gaps, ddof=1) / len(gaps) ** 0.5
        by_turn = stats.t.ppf(0.975, 3) * np.std(each.mean(1), ddof=1) / 4**0.5
        louder += np.mean(gaps) > (by_text**2 + by_turn**2) ** 0.5
        quieter += -np.mean(gaps) > (by_text**2 + by_turn**2) ** 0.5
    assert (words["louder"], words["quieter"]) == (louder, quieter)


def test_one_turn_that_hurts_says_nothing_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removal costs more than noise on every document alike, but turns lie further apart than that."""
    subject = small()
    of_turns = iter([0.0, 0.0, 0.0, 3.0])

    def drawn(*_: object) -> Effects:
        return replace(subject.effects, values=subject.effects.values - 1.0 + next(of_turns))

    monkeypatch.setattr("headscope.studies.claims.every_head.noise_effects", drawn)
    words = EveryHead().measure(subject).words
    assert (words["louder"], words["quieter"]) == (0, 0)


def test_noise_is_as_long_as_the_head_and_stays_where_the_head_writes() -> None:
    model, rows = example()
    anatomy, batch = discover(model, rows[0]), {k: v for k, v in rows[0].items() if k != "document"}
    head = anatomy.heads[3]
    weights = output_weights(model, anatomy.apart)[head.layer][3]
    with torch.no_grad(), capture(model, ("contribution",), [head.layer], anatomy=anatomy) as seen:
        model(**batch)
        before = seen[head.layer].contribution.clone()
        with with_noise(model, anatomy, head, weights, seed=0):
            model(**batch)
        after = seen[head.layer].contribution
    moved = after - before
    assert moved[:, [0, 1, 2]].abs().max() == 0
    torch.testing.assert_close(moved[:, 3].norm(dim=-1), before[:, 3].norm(dim=-1), rtol=1e-4, atol=1e-6)
    basis = torch.linalg.qr(weights.float())[0]
    torch.testing.assert_close(moved[:, 3] @ basis @ basis.T, moved[:, 3], rtol=1e-3, atol=1e-5)
    across = (moved[:, 3] * before[:, 3]).sum(-1).abs() / before[:, 3].square().sum(-1)
    assert float(across.max()) < 1e-3, "at a right angle: noise neither adds to the head nor takes from it"


def test_noise_repeats_for_a_seed() -> None:
    model, rows = example()
    anatomy = discover(model, rows[0])
    first, again, other = (noise_effects(model, rows, Drift(), anatomy, seed).values for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0


def test_pairs_are_counted_as_by_hand() -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((7, 5))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    documents = np.array([0, 0, 1, 1, 1, 2, 2])
    want = []
    for row in range(7):
        wrong = [
            embeddings[row] @ embeddings[other] > embeddings[row] @ embeddings[same]
            for same in range(7)
            for other in range(7)
            if same != row and documents[same] == documents[row] and documents[other] != documents[row]
        ]
        want.append(np.mean(wrong))
    np.testing.assert_allclose(mistaken(embeddings, documents), want)


def test_ties_of_pairs_count_half() -> None:
    same = np.array([[1.0, 0.0]] * 4)
    np.testing.assert_array_equal(mistaken(same, np.array([0, 0, 1, 1])), np.full(4, 0.5))


def text_of(documents: int, rows: int) -> list[dict[str, torch.Tensor]]:
    """Every document has tokens of its own."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for document in range(documents):
        tokens = torch.randint(4 * document, 4 * document + 4, (rows, 8), generator=generator)
        found.append({"input_ids": tokens, "document": torch.full((rows,), document)})
    return found


def test_only_documents_of_several_passages_are_asked() -> None:
    assert pairs_of_passages(text_of(7, 2), 0, 96) == []
    assert pairs_of_passages(text_of(9, 1), 0, 96) == []
    taken = pairs_of_passages(text_of(9, 5), 0, 20)
    documents = torch.cat([batch["document"] for batch in taken])
    assert (documents.unique(return_counts=True)[1] == 3).all()
    assert len(documents) <= 20


class Plain:
    """A token a word; no special ones."""

    bos_token_id = pad_token_id = None

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}


def test_strangers_come_from_other_essays() -> None:
    """Sections of one essay share its subject: one of them at the most is asked."""
    essays = [
        Document(
            f"essay {essay}: {section}", " ".join(str(100 * essay + section) for _ in range(64)), section_of=f"{essay}"
        )
        for essay in range(9)
        for section in range(3)
    ]
    batches = text_batches(Plain(), Texts("essays", tuple(essays), ""), length=16, windows=None)
    taken = pairs_of_passages(batches, 0, 96)
    tokens = torch.cat([batch["input_ids"][:, 0] for batch in taken])
    assert sorted((tokens // 100).unique().tolist()) == list(range(9))
    assert len(tokens.unique()) == 9, "one section of each essay"
    assert len(tokens) == 9 * 3
    few = text_batches(Plain(), Texts("essays", tuple(essays[:21]), ""), length=16, windows=None)
    assert pairs_of_passages(few, 0, 96) == [], "seven essays, whatever their sections"


def test_the_task_of_documents_sees_what_a_head_is_for() -> None:
    torch.manual_seed(0)
    model = Transformer(vocabulary=64, width=16, n_layers=1, n_heads=2, length=8, causal=False).eval()
    subject = Subject("encoder", model, text_of(16, 3), "drift", quick=True)
    found = same_document_effects(subject)
    assert found is not None
    intact, spread = found
    assert 0 <= intact < 0.2  # documents share no token
    assert spread.centre.shape == (2,)
    assert same_document_effects(Subject("encoder", model, text_of(16, 3), "kl")) is None


def test_the_figure_shows_noise_and_the_task_where_they_were_measured() -> None:
    rng = np.random.default_rng(0)
    effect = rng.lognormal(-6, 1, 12)
    table = pd.DataFrame(
        {"effect": effect, "effect_low": effect / 2, "effect_high": effect * 2, "size": 0.001, "unit": "nats"}
    )
    assert len(EveryHead().draw(table).axes) == 1
    both = EveryHead().draw(table.assign(noise=effect / 3, task=effect, task_low=effect / 2, task_high=effect * 2))
    assert len(both.axes) == 2
    told = ["removed", "noise of its length", "the size that counts, 0.001"]
    assert [text.get_text() for text in both.axes[0].get_legend().get_texts()] == told
    assert both.axes[0].get_ylim()[0] == 0


def test_a_share_of_no_loss_is_refused() -> None:
    model, rows = example()
    subject = Subject("small", model, rows, lambda output, batch: torch.zeros(len(batch["input_ids"])), quick=True)
    with pytest.raises(InputError, match="is 0 on this text, and effects are told as shares of it"):
        EveryHead().measure(subject)


def test_each_panel_shows_the_size_that_counts_and_a_line_from_edge_to_edge() -> None:
    table = pd.DataFrame({"effect": [0.004, 0.002, 0.02, -0.001], "task": [0.0005, 0.002, 0.0, 1e-19], "size": 0.001})
    for name in ("effect", "task"):
        table = table.assign(**{f"{name}_low": table[name] - 0.001, f"{name}_high": table[name] + 0.001})
    figure = EveryHead().draw(table.assign(unit="", noise=[0.001, 0.003, 0.01, 0.0]))
    assert len(figure.axes) == 2
    for ax, name in zip(figure.axes, ("effect", "task"), strict=True):
        lines = {line.get_label(): line for line in ax.lines}
        assert list(lines["the size that counts, 0.001"].get_xdata()) == [0.001, 0.001]
        x, y = (np.asarray(numbers) for numbers in lines["removed"].get_data())
        assert (x[0], x[-1]) == ax.get_xlim()
        assert 0 == y[-1] < y[0]
        for size in (0.0007, 0.003, 0.015):
            assert np.interp(size, x, y) == (table[name] > size).mean()
        assert ax.get_xlim()[0] > 1e-5  # what rounding leaves of 0 has no place
