"""similarity() and importance(): what goes in, what the tables say about it, and that settings reach the engines."""

import numpy as np
import pytest
import torch

import headscope as hs
from headscope.errors import InputError, UnknownNameError
from headscope.scoring.scores import SCORES
from headscope.scoring.scores.needed import Needed
from headscope.scoring.scores.replaceability import Replaceability
from headscope.statistics.prediction import RIDGE
from tests import models


@pytest.mark.parametrize("score", sorted(SCORES))
def test_every_score_covers_every_head_and_says_what_it_saw(score: str) -> None:
    model, batches = models.build("llama"), models.make_batches("llama")
    table = hs.importance(model, batches, score=score)
    assert table.heads == hs.discover(model).heads
    assert np.isfinite(table.score).all()
    assert table.facts["documents"] == len({int(d) for batch in batches for d in batch["document"]})
    assert table.facts["tokens"] == sum(int(batch["attention_mask"].sum()) for batch in batches)
    again = hs.importance(model, batches, score=score)
    np.testing.assert_array_equal(again.score, table.score)


def test_little_text_is_a_caution_of_what_is_fitted_and_of_what_is_made_of_it() -> None:
    model, batches = models.build("llama"), models.make_batches("llama")
    replaced, needed, norm = (
        hs.importance(model, batches, score=name).facts for name in ("replaceability", "needed", "norm")
    )
    assert "too low for want of text" in replaced["caution"]
    assert needed["caution"] == f"too high where restored is {replaced['caution']}"
    assert "caution" not in norm


def test_a_setting_reaches_the_engine() -> None:
    model, batches = models.build("gpt2"), models.make_batches("gpt2")
    zero = hs.importance(model, batches, score=hs.Ablation(mode="zero"))
    mean = hs.importance(model, batches, score=hs.Ablation(mode="mean"))
    assert zero.facts["mode"] == "zero"
    assert mean.facts["mode"] == "mean"
    assert not np.allclose(zero.score, mean.score)


def test_a_score_that_needs_another_has_it_made_once_and_with_its_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = models.build("gpt2"), models.make_batches("gpt2")
    made = []
    rate = Replaceability.rate
    monkeypatch.setattr(Replaceability, "rate", lambda self, seen: made.append(self.ridge) or rate(self, seen))
    strict = hs.importance(model, batches, score=Needed(ridge=10.0))
    assert made == [10.0]
    assert not np.allclose(strict.score, hs.importance(model, batches, score="needed").score)
    made.clear()
    hs.analyze(model, batches=models.make_batches("gpt2", n_batches=4), budget=hs.Budget(ablation_tokens=40))
    assert made == [RIDGE]


def test_an_object_of_a_class_that_is_not_registered_is_refused() -> None:
    class Bare(Needed):
        """Not registered."""

    with pytest.raises(UnknownNameError, match="not an object of a registered score"):
        hs.importance(models.build("gpt2"), models.make_batches("gpt2"), score=Bare())


def test_a_metric_of_ones_own() -> None:
    model, batches = models.build("gpt2"), models.make_batches("gpt2")

    def size(output: object, batch: object) -> torch.Tensor:
        return output.logits.square().mean((1, 2))  # type: ignore[attr-defined]

    table = hs.importance(model, batches, metric=size)
    head = table.heads[3]
    by_hand = []
    with torch.no_grad():
        for batch in batches:
            inputs = {name: value for name, value in batch.items() if name != "document"}
            before = size(model(**inputs), batch)
            with hs.ablate(model, [head]):
                by_hand.append(size(model(**inputs), batch) - before)
    assert table[head] == pytest.approx(float(torch.cat(by_hand).double().mean()), rel=1e-6)
    assert table.facts["metric"] == "size"


def test_scopes() -> None:
    model, batches = models.build("bert"), models.make_batches("bert")
    within = hs.similarity(model, batches, scope="layer")
    across = hs.similarity(model, batches, scope="model")
    layers = np.array([head.layer for head in within.heads])
    same = layers[:, None] == layers[None]
    assert np.isnan(within.matrix[~same]).all()
    assert np.isfinite(across.matrix).all()
    np.testing.assert_allclose(within.matrix[same], across.matrix[same], rtol=1e-9)


@pytest.mark.parametrize("of", ["q", "k", "v", "z", "contribution"])
def test_what_is_compared(of: str) -> None:
    model, batches = models.build("llama"), models.make_batches("llama")
    table = hs.similarity(model, batches, of=of)
    site = hs.discover(model).sites[0]
    n_heads = site.n_kv_heads if of in ("k", "v") else site.n_heads
    assert table.matrix.shape == (2 * n_heads, 2 * n_heads)
    np.testing.assert_allclose(np.diagonal(table.matrix), 1, rtol=1e-9)
    assert table.of == of


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m, b: hs.similarity(m, b, measure="ckaa"), UnknownNameError, "did you mean 'cka'"),
        (lambda m, b: hs.similarity(m, b, scope="head"), UnknownNameError, "layer, model"),
        (lambda m, b: hs.similarity(m, b, of="zz"), UnknownNameError, "it compares: z, q, k"),
        (lambda m, b: hs.importance(m, b, score="ablatoin"), UnknownNameError, "did you mean 'ablation'"),
        (lambda m, b: hs.importance(m, b, metric="perplexity"), UnknownNameError, "auto, loss"),
        (lambda m, b: hs.importance(m, []), InputError, "no batch"),
        (lambda m, b: hs.similarity(m, []), InputError, "no batch"),
    ],
)
def test_what_does_not_exist_is_named(call: object, error: type[Exception], words: str) -> None:
    model, batches = models.build("gpt2"), models.make_batches("gpt2")
    with pytest.raises(error, match=words):
        call(model, batches)  # type: ignore[operator]


def test_positions_are_left_out_of_statistics_only_and_a_score_by_metric_says_so() -> None:
    model, batches = models.build("gpt2"), models.make_batches("gpt2")
    for score in ("ablation", "gradient", "needed"):
        with pytest.raises(InputError, match=f"and {score} is measured by .*, or ask for norm or replaceability"):
            hs.importance(model, batches, score, skip_first=2)
    left = hs.importance(model, batches, "norm", skip_first=2)
    assert left.facts["tokens"] == sum(int((batch["attention_mask"].sum(1) - 2).sum()) for batch in batches)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("n_documents", [1, 2, 3, 4])
def test_where_there_is_no_interval_the_table_says_why(name: str, n_documents: int) -> None:
    model = models.build("gpt2")
    batch = models.make_batches("gpt2", n_batches=1, rows=8, padded=False)[0]
    batch = {**batch, "document": torch.arange(len(batch["input_ids"])) % n_documents}
    table = hs.importance(model, [batch], name)
    assert np.isnan(table.low).all() == ("why_no_interval" in table.facts)
    assert np.isnan(table.low).all() == (n_documents < SCORES[name].least_documents)
    assert np.isnan(table.score).all() == ("why_no_value" in table.facts)


def test_where_effects_are_not_tested_the_table_says_why() -> None:
    model, batches = models.build("bert"), models.make_batches("bert")
    plain, sized = (hs.importance(model, batches, hs.Ablation(size=size)) for size in (None, 0.01))
    assert not plain.columns
    assert "never negative" in plain.facts["why_no_test"]
    assert set(sized.columns) == {"p_value", "q_value"}
    assert "why_no_test" not in sized.facts


def test_one_batch_is_as_good_as_a_list_with_it() -> None:
    model, batches = models.build("llama"), models.make_batches("llama")
    one, listed = (hs.importance(model, given, score="norm") for given in (batches[0], [batches[0]]))
    np.testing.assert_array_equal(one.score, listed.score)
    np.testing.assert_array_equal(hs.similarity(model, batches[0]).matrix, hs.similarity(model, [batches[0]]).matrix)
