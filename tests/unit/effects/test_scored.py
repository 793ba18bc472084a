"""What is scored: the tokens that labels keep, at positions that are theirs; against the loss by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from headscope.anatomy import discover
from headscope.effects.metrics import Kl, Loss, Metric, resolve_metric
from headscope.errors import MetricError
from tests.families import build_further
from tests.models import VOCABULARY, build, make_batches
from tests.reference.likelihood import log_softmax


def test_labels_say_which_tokens_are_scored() -> None:
    model, (batch, *_) = build("llama"), make_batches("llama")
    labels = batch["input_ids"].clone()
    labels[:, :4] = -100
    with torch.no_grad():
        output = model(**{name: value for name, value in batch.items() if name != "document"})
    kept = batch["attention_mask"].bool()
    want = []
    for logits, tokens, own in zip(output.logits, labels, kept, strict=True):
        places = [n for n in range(len(tokens) - 1) if own[n] and own[n + 1] and tokens[n + 1] >= 0]
        want.append(np.mean([-log_softmax(logits[n])[int(tokens[n + 1])] for n in places]))
    np.testing.assert_allclose(Loss().measure(output, {**batch, "labels": labels}), want, rtol=1e-5)
    assert not np.allclose(Loss().measure(output, batch), want, rtol=1e-3), "the case is not trivial"


def test_labels_of_an_encoder_decoder_need_the_decoders_tokens() -> None:
    model = build_further("t5")
    batch = {"input_ids": torch.randint(1, 50, (2, 6)), "labels": torch.randint(1, 50, (2, 4))}
    anatomy = discover(model, {**batch, "decoder_input_ids": batch["labels"]})
    for metric in ("auto", "loss", "kl", "drift"):
        with pytest.raises(
            MetricError, match=r"labels and no decoder_input_ids.*prepare_decoder_input_ids_from_labels"
        ):
            resolve_metric(metric, model, anatomy, batch)


@pytest.mark.parametrize("metric", [Loss(), Kl()])
def test_logits_at_other_positions_than_the_tokens_are_refused(metric: Metric) -> None:
    output = SimpleNamespace(logits=torch.randn(2, 9, VOCABULARY))
    batch = {"input_ids": torch.randint(1, VOCABULARY, (2, 6))}
    with pytest.raises(MetricError, match=r"logits have 9 positions where the batch has 6 tokens"):
        metric.measure(output, batch, output)
