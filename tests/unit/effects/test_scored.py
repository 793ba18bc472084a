"""What is scored: the tokens that labels keep, at positions that are theirs; against the loss by hand."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from headscope.anatomy import discover
from headscope.effects.metrics import Kl, Loss, Metric
from headscope.effects.resolving import resolve_metric
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


def test_labels_of_a_decoder_stand_where_they_are_told() -> None:
    """As transformers' own collator makes the batch: labels, and these moved on by one for the decoder to read."""
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    model: Any = T5ForConditionalGeneration(T5Config(vocab_size=50, **sizes)).eval()
    labels = torch.randint(2, 50, (3, 5), generator=torch.Generator().manual_seed(0))
    labels[0, 3:] = labels[2, 4:] = -100
    batch = {
        "input_ids": torch.randint(2, 50, (3, 6), generator=torch.Generator().manual_seed(1)), "labels": labels,
        "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels),
    }  # fmt: skip
    with torch.no_grad():
        output = model(**batch)
        rows = [model(**{name: value[row : row + 1] for name, value in batch.items()}).loss for row in range(3)]
    np.testing.assert_allclose(Loss().measure(output, batch), torch.stack(rows), rtol=1e-5)
    # tokens of the decoder's own as labels are told one position before, as those of a decoder alone
    own = batch | {"labels": batch["decoder_input_ids"]}
    alone = {name: value for name, value in batch.items() if name != "labels"}
    torch.testing.assert_close(Loss().measure(output, own), Loss().measure(output, alone))
    with pytest.raises(MetricError, match="neither decoder_input_ids nor these moved on by one"):
        Loss().measure(output, batch | {"labels": labels.flip(1)})


def test_the_last_position_alone_is_no_answer_to_what_was_asked() -> None:
    batch = {"input_ids": torch.randint(1, VOCABULARY, (2, 2))}
    with pytest.raises(MetricError, match="logits have 1 positions where the batch has 2 tokens"):
        Loss().measure(SimpleNamespace(logits=torch.randn(2, 1, VOCABULARY)), batch)
    logits = torch.randn(2, 2, VOCABULARY)
    want = -logits[:, 0].log_softmax(-1).gather(1, batch["input_ids"][:, 1:])[:, 0]
    torch.testing.assert_close(Loss().measure(SimpleNamespace(logits=logits), batch).float(), want)


@pytest.mark.parametrize("metric", [Loss(), Kl()])
def test_logits_at_other_positions_than_the_tokens_are_refused(metric: Metric) -> None:
    output = SimpleNamespace(logits=torch.randn(2, 9, VOCABULARY))
    batch = {"input_ids": torch.randint(1, VOCABULARY, (2, 6))}
    with pytest.raises(MetricError, match=r"logits have 9 positions where the batch has 6 tokens"):
        metric.measure(output, batch, output)
