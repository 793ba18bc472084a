"""Metrics of labels, and the model's own loss, against heads switched off by hand and PyTorch's own functions."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

import headscope as hs
from headscope.effects.labelled import CrossEntropy, ErrorRate
from headscope.effects.own_loss import own_loss
from headscope.errors import MetricError

X = torch.randn(20, 6, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (20,), generator=torch.Generator().manual_seed(1))


class _Classifier(nn.Module):
    """A model of one's own on vectors; `returns` says how it gives its loss, if it does."""

    def __init__(self, returns: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Linear(5, 16), nn.Linear(16, 3)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.returns = returns

    def forward(self, x: Tensor, target: Tensor | None = None) -> Any:
        x = self.enter(x)
        logits = self.leave((x + self.attention(x, x, x, need_weights=False)[0]).mean(1)) * 3
        if not self.returns or target is None:
            return logits
        loss = F.cross_entropy(logits, target)
        if self.returns == "contrastive":  # rows against each other: of one row there is nothing to tell
            loss = F.cross_entropy(
                F.normalize(logits, dim=-1) @ F.normalize(x.mean(1)[:, :3], dim=-1).T, torch.arange(len(x))
            )
        ways = {
            "attribute": SimpleNamespace(loss=loss, logits=logits),
            "first": (loss, logits),
            "last": (logits, x, loss),
        }
        return ways.get(self.returns, (loss, logits))


def _effects(model: Any, score: Callable[[], Tensor]) -> list[float]:
    """What switching each head off does, by zeros in the output projection."""
    weight, before, found = model.attention.out_proj.weight, score(), []
    for head in range(4):
        columns = weight.data[:, 4 * head : 4 * head + 4]
        own = columns.clone()
        columns.zero_()
        found.append(float((score() - before).double().mean()))
        columns.copy_(own)
    return found


@pytest.mark.parametrize("metric", ["error", "cross_entropy"])
def test_effects_are_those_of_the_labels(metric: str) -> None:
    model = _Classifier().eval()

    def score() -> Tensor:
        with torch.no_grad():
            logits = model(X)
        return (
            F.cross_entropy(logits, Y, reduction="none")
            if metric == "cross_entropy"
            else (logits.argmax(1) != Y).float()
        )

    table = hs.importance(model, (X, Y), metric=metric)
    np.testing.assert_allclose(table.score, _effects(model, score), atol=1e-6)
    assert table.facts["metric"] == metric
    assert np.ptp(table.score) > 0, "the case is not trivial"


@pytest.mark.parametrize("returns", ["attribute", "first", "last"])
@pytest.mark.parametrize("metric", ["loss", "auto"])
def test_a_model_s_own_loss_is_taken_row_by_row_wherever_it_stands(returns: str, metric: str) -> None:
    model = _Classifier(returns).eval()
    want = hs.importance(_Classifier().eval(), (X, Y), metric="cross_entropy")
    table = hs.importance(model, {"x": X, "target": Y}, metric=metric)
    assert (table.facts["metric"], table.facts["documents"]) == ("loss", 20)
    for own, plain in ((table.score, want.score), (table.low, want.low), (table.high, want.high)):
        np.testing.assert_allclose(own, plain, atol=1e-6)
    slopes, plain = (
        hs.importance(one, {"x": X, "target": Y}, score="gradient", metric=by).score
        for one, by in ((model, "loss"), (_Classifier().eval(), "cross_entropy"))
    )
    np.testing.assert_allclose(slopes, plain, rtol=1e-4, atol=1e-7)


def test_a_loss_that_sets_rows_against_each_other_is_refused() -> None:
    model = _Classifier("contrastive").eval()
    with pytest.raises(MetricError, match="rows are set against each other there"):
        hs.importance(model, {"x": X, "target": Y}, metric="loss")
    assert hs.importance(model, {"x": X, "target": Y}).facts["metric"] == "cross_entropy"


def test_auto_judges_by_labels_where_there_are_some_and_else_by_what_comes_out() -> None:
    model = _Classifier().eval()
    assert hs.importance(model, (X, Y)).facts["metric"] == "cross_entropy"
    table = hs.importance(model, X)
    with torch.no_grad():
        intact = F.normalize(model(X).double(), dim=-1)

    def drift() -> Tensor:
        with torch.no_grad():
            return 1 - (F.normalize(model(X).double(), dim=-1) * intact).sum(-1)

    assert table.facts["metric"] == "drift"
    np.testing.assert_allclose(table.score, _effects(model, drift), atol=1e-7)


def test_two_towers_drift_by_both_their_embeddings() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = sizes | {"vocab_size": 60, "max_position_embeddings": 16, "eos_token_id": 59}
    torch.manual_seed(0)
    model: Any = CLIPModel(
        CLIPConfig(text_config=text, vision_config=sizes | {"image_size": 8, "patch_size": 4}, projection_dim=8)
    ).eval()
    batch = {"input_ids": torch.randint(1, 59, (6, 7)), "pixel_values": torch.randn(6, 3, 8, 8)}
    batch["input_ids"][:, -1] = 59
    table = hs.importance(model, batch)
    with torch.no_grad():
        before = model(**batch)
        weight = model.vision_model.encoder.layers[0].self_attn.out_proj.weight
        weight[:, 4:8] = 0
        after = model(**batch)
    gaps = [1 - F.cosine_similarity(getattr(before, n), getattr(after, n)) for n in ("text_embeds", "image_embeds")]
    own = {str(head): score for head, score in zip(table.heads, table.score, strict=True)}
    sites = {site.module_name: site.layer for site in hs.discover(model, batch).sites}
    (layer,) = (number for name, number in sites.items() if "vision" in name)
    np.testing.assert_allclose(own[f"L{layer}H1"], float(torch.stack(gaps).mean(0).mean()), rtol=1e-4)


def test_an_image_classifier_is_judged_by_its_loss() -> None:
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=16, image_size=16, patch_size=8,
        num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = ViTForImageClassification(config).eval()
    pictures = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    tables = [hs.importance(model, (pictures, Y[:12]), metric=metric) for metric in ("auto", "cross_entropy")]
    assert [table.facts["metric"] for table in tables] == ["loss", "cross_entropy"]
    np.testing.assert_allclose(tables[0].score, tables[1].score, atol=1e-6)


def test_labels_alone_make_what_the_decoder_reads() -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    model: Any = T5ForConditionalGeneration(T5Config(vocab_size=50, **sizes)).eval()
    labels = torch.randint(2, 50, (6, 5), generator=torch.Generator().manual_seed(0))
    labels[::2, 3:] = -100
    batch = {"input_ids": torch.randint(2, 50, (6, 7), generator=torch.Generator().manual_seed(1)), "labels": labels}
    table = hs.importance(model, batch)

    def score() -> float:
        with torch.no_grad():
            rows = [model(**{name: one[row : row + 1] for name, one in batch.items()}).loss for row in range(6)]
        return float(torch.stack(rows).double().mean())

    weight, before = model.decoder.block[0].layer[0].SelfAttention.o.weight, score()
    weight.data[:, 8:] = 0
    (layer,) = (site.layer for site in hs.discover(model, batch).sites if site.kind == "causal")
    own = {str(head): value for head, value in zip(table.heads, table.score, strict=True)}
    np.testing.assert_allclose(own[f"L{layer}H1"], score() - before, atol=1e-5)
    assert table.facts["tokens"] == int((labels >= 0).sum())


SHAPES: dict[str, tuple[Tensor, Tensor]] = {
    "a row each": (torch.randn(4, 3), torch.randint(0, 3, (4,))),
    "a token each": (torch.randn(4, 5, 3), torch.randint(0, 3, (4, 5))),
    "a place each": (torch.randn(4, 3, 6, 5), torch.randint(0, 3, (4, 6, 5))),
}


@pytest.mark.parametrize("left_out", [-100, -1])
@pytest.mark.parametrize("name", SHAPES)
def test_classes_lie_along_the_last_axis_or_the_first_after_rows(name: str, left_out: int) -> None:
    logits, labels = SHAPES[name]
    labels = labels.clone()
    if labels.ndim > 1:
        labels[0].flatten()[0] = left_out
        labels[0, ..., 0] = left_out
    first = logits.movedim(-1, 1) if name != "a place each" else logits
    batch = {"x": torch.zeros(4, 1), "labels": labels}
    losses = F.cross_entropy(first, labels.clamp(min=0), reduction="none").reshape(4, -1)
    kept = (labels >= 0).reshape(4, -1)
    torch.testing.assert_close(CrossEntropy().measure(logits, batch).float(), (losses * kept).sum(1) / kept.sum(1))
    wrong = ((first.argmax(1) != labels).reshape(4, -1) & kept).sum(1) / kept.sum(1)
    torch.testing.assert_close(ErrorRate().measure(logits, batch).float(), wrong)


REFUSED: dict[str, tuple[Any, dict[str, Tensor], str]] = {
    "no labels": (torch.randn(4, 3), {}, "no labels to judge by"),
    "no logits": ({}, {"labels": torch.zeros(4).long()}, "no logits in the model's output"),
    "other rows": (torch.randn(4, 3), {"labels": torch.zeros(2).long()}, "the batch has 4 rows"),
    "more classes": (torch.randn(4, 3), {"labels": torch.full((4,), 3)}, "are no classes of logits"),
    "numbers": (torch.randn(4, 3), {"labels": torch.randn(4)}, "are no classes of logits"),
    "a row without": (torch.randn(4, 5, 3), {"labels": torch.full((4, 5), -100)}, "row 0 of a batch has no label"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_labels_that_do_not_fit_are_refused_with_a_metric_of_one_s_own(name: str) -> None:
    output, labels, told = REFUSED[name]
    with pytest.raises(MetricError, match=told) as refused:
        CrossEntropy().measure(output, {"x": torch.zeros(4, 1), **labels})
    assert "leave it out" in str(refused.value) or "def metric(output, batch):" in str(refused.value)


def test_steps_have_no_gradient() -> None:
    with pytest.raises(MetricError, match="the metric 'error' has no gradient"):
        hs.importance(_Classifier().eval(), (X, Y), metric="error", score="gradient")


def test_a_model_without_a_loss_has_none() -> None:
    assert own_loss(_Classifier().eval(), {"x": X}) is None
