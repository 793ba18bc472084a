"""The masked-language metric against NumPy in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from headscope._support.running import run_model
from headscope.effects.metrics import MaskedLoss
from headscope.errors import MetricError
from tests.models import VOCABULARY, make_batches
from tests.reference.likelihood import log_softmax


def _run(metric: MaskedLoss, model: nn.Module, batch: dict[str, Tensor]) -> object:
    with torch.no_grad():
        return run_model(model, metric.inputs(model, batch))


def _small_masked() -> BertForMaskedLM:
    torch.manual_seed(0)
    return BertForMaskedLM(
        BertConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                   intermediate_size=16, max_position_embeddings=32, initializer_range=0.5)
    ).eval()  # fmt: skip


def test_mlm_is_the_cross_entropy_of_the_tokens_it_masks() -> None:
    model, batch = _small_masked(), make_batches("bert", 1)[0]
    metric = MaskedLoss(mask_token_id=2, share=0.3, seed=1)  # 2 is not among the tokens
    inputs = metric.inputs(model, batch)
    hidden = (inputs["input_ids"] == 2).numpy()
    assert not hidden[batch["attention_mask"].numpy() == 0].any()
    assert hidden.any(1).all()
    assert not torch.equal(inputs["input_ids"], batch["input_ids"])
    output = _run(metric, model, batch)
    logp = log_softmax(output.logits)
    want = [np.mean([-logp[r, t, batch["input_ids"][r, t]] for t in range(12) if hidden[r, t]]) for r in range(3)]
    np.testing.assert_allclose(metric.measure(output, batch), want, rtol=1e-5)


def test_the_share_of_masked_tokens_is_as_asked_and_every_row_has_one() -> None:
    model, ids = _small_masked(), torch.full((40, 500), 5)
    for share in (0.15, 0.5):
        hidden = MaskedLoss(2, share).inputs(model, {"input_ids": ids})["input_ids"] == 2
        assert abs(float(hidden.float().mean()) - share) < 0.01
    assert (MaskedLoss(2, 0.0).inputs(model, {"input_ids": ids})["input_ids"] == 2).sum(1).tolist() == [1] * 40


def test_mlm_takes_labels_where_it_does_not_mask() -> None:
    model, batch = _small_masked(), make_batches("bert", 1)[0]
    labels = torch.full((3, 12), -100)
    labels[:, 1], labels[0, 3] = 7, 9
    batch = {**batch, "labels": labels}
    output = _run(MaskedLoss(), model, batch)
    logp = log_softmax(output.logits)
    want = [-(logp[0, 1, 7] + logp[0, 3, 9]) / 2, -logp[1, 1, 7], -logp[2, 1, 7]]
    np.testing.assert_allclose(MaskedLoss().measure(output, batch), want, rtol=1e-5)
    with pytest.raises(MetricError, match=r"use MaskedLoss.mask_token_id=…., or batches with 'labels'"):
        MaskedLoss().measure(output, make_batches("bert", 1)[0])
