"""What is scored: the tokens that labels keep, at positions that are theirs; against the loss by hand."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import T5Config, T5ForConditionalGeneration

import headscope as hs
from headscope.anatomy import discover
from headscope.effects.metrics import Kl, Loss, Metric
from headscope.effects.resolving import resolve_metric
from headscope.errors import MetricError
from headscope.models.reference import example
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
    # an answer of one token alone
    short = {name: value[:, :1] if name != "input_ids" else value for name, value in batch.items()}
    np.testing.assert_allclose(
        Loss().measure(SimpleNamespace(logits=output.logits[:, :1]), short),
        [-log_softmax(logits[0])[int(own[0])] for logits, own in zip(output.logits, labels, strict=True)],
        rtol=1e-5,
    )
    with pytest.raises(MetricError, match="neither decoder_input_ids nor these moved on by one"):
        Loss().measure(output, batch | {"labels": labels.flip(1)})


_IDS = (torch.arange(0, 12).repeat(4, 1) * torch.tensor([[1], [2], [3], [5]]) + 1) % 50
_X, _Y = _IDS[:, :-1], _IDS[:, 1:]
_ANSWERS = _Y.clone()
_ANSWERS[:, :5] = _ANSWERS[0, :8] = -1  # as nanoGPT leaves positions out


class _Own(nn.Module):
    """A language model of one's own, which takes tokens, and by another name what they are to tell, or not."""

    def __init__(self, returns: str = "logits") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.returns = example()[0], returns

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
        logits = self.inner(idx).logits
        if self.returns == "logits" or targets is None:
            return logits
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


def _by_hand(labels: Tensor) -> list[float]:
    """Effects of the first layer's heads on each position's label, where it stands."""
    model = _Own().eval()

    def rows(heads: list[str]) -> list[float]:
        with torch.no_grad(), hs.ablate(model, heads, example={"idx": _X}):
            logits = model(_X)
        wanted = [[n for n, label in enumerate(own) if label >= 0] for own in labels.tolist()]
        return [
            float(np.mean([-log_softmax(row[n])[int(own[n])] for n in places]))
            for row, own, places in zip(logits, labels, wanted, strict=True)
        ]

    intact = np.array(rows([]))
    return [float((np.array(rows([f"L0H{head}"])) - intact).mean()) for head in range(4)]


@pytest.mark.parametrize("labels", [_Y, _ANSWERS], ids=["all", "answers"])
@pytest.mark.parametrize("given", ["pair", "labels", "targets"])
def test_labels_that_are_moved_on_already_are_told_where_they_stand(given: str, labels: Tensor) -> None:
    """As the loop that trains a model of one's own has them: the second token of a row beside its first."""
    batches = [(_X, labels)] if given == "pair" else [{"idx": _X, given: labels}]
    table = hs.importance(_Own().eval(), batches)
    assert table.facts["metric"] == "loss"
    want = _by_hand(labels)
    np.testing.assert_allclose(table.score[:4], want, rtol=1e-4, atol=1e-7)
    assert np.ptp(want) > 1e-4, "the case is not trivial"
    once_more = labels.roll(-1, 1)
    assert not np.allclose(want, _by_hand(once_more), rtol=1e-2), "nor is it the same one token further on"


_OTHERS = _X.sort(1, descending=True).values  # no next tokens
_LAST = torch.where(torch.arange(11) == 10, _OTHERS[:, [0]], -100)


@pytest.mark.parametrize("labels", [_OTHERS, _LAST], ids=["each", "the last alone"])
def test_labels_that_are_no_next_tokens_are_judged_where_they_stand(labels: Tensor) -> None:
    table = hs.importance(_Own().eval(), [{"idx": _X, "labels": labels}])
    assert table.facts["metric"] == "cross_entropy"
    np.testing.assert_allclose(table.score[:4], _by_hand(labels), rtol=1e-4, atol=1e-7)
    with pytest.raises(MetricError, match=r"neither the tokens nor these moved on by one.*'cross_entropy' judges each"):
        hs.importance(_Own().eval(), [{"idx": _X, "labels": labels}], metric="loss")


def test_labels_that_are_no_next_tokens_go_by_the_model_s_own_loss_if_it_has_one() -> None:
    masked = torch.where(_ANSWERS >= 0, _OTHERS, -1)  # unlike numbers of labels in rows
    table = hs.importance(_Own("loss").eval(), [{"idx": _X, "targets": masked}], metric="loss")
    np.testing.assert_allclose(table.score[:4], _by_hand(masked), rtol=1e-4, atol=1e-7)


def test_labels_of_another_length_than_the_tokens_are_refused() -> None:
    with pytest.raises(MetricError, match=r"labels in the batches are \(\d, 10\) and the tokens \(\d, 11\)"):
        hs.importance(_Own().eval(), [(_X, _Y[:, 1:])], metric="loss")


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
