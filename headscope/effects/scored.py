"""What is scored of a batch: which tokens, at which positions; one side of an encoder-decoder is the decoder's."""

from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor, nn

from headscope.errors import MetricError
from headscope.text.batches import Batch, kept_positions

__all__ = ["check_sides", "counting", "counting_next", "labels_of", "tokens_of"]


def check_sides(model: nn.Module, batch: Batch) -> None:
    """Refuse an encoder-decoder's labels without the decoder's tokens: the model makes these of them by itself.

    Raises:
        MetricError: there are labels, and no decoder_input_ids.
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False) and "labels" in batch and "decoder_input_ids" not in batch:
        raise MetricError(
            f"the batches of {type(model).__name__} hold labels and no decoder_input_ids, so what its decoder reads "
            "is not there to be judged: add decoder_input_ids="
            "model.prepare_decoder_input_ids_from_labels(labels) and decoder_attention_mask=labels != -100"
        )


def tokens_of(batch: Batch) -> Int[Tensor, "batch position"]:
    """The tokens that the logits belong to: the decoder's, where there is one."""
    for name in ("decoder_input_ids", "input_ids"):
        if isinstance(batch.get(name), Tensor):
            return batch[name]
    raise MetricError(f"the batches hold no 'input_ids' to score (they hold {sorted(batch)}); use metric='drift'")


def counting(batch: Batch) -> Bool[Tensor, "batch position"]:
    return kept_positions(batch, "causal", tokens_of(batch).shape[1])


def counting_next(batch: Batch) -> Bool[Tensor, "batch position"]:
    """Positions that have a next token: both count, and labels, where the batch brings them, do not leave it out."""
    kept, labels = counting(batch), labels_of(batch)
    nexts = kept[:, :-1] & kept[:, 1:]
    return nexts if labels is None else nexts & (labels[:, 1:] >= 0).cpu()


def labels_of(batch: Batch) -> Tensor | None:
    """Labels of a language model, token by token as transformers has them (-100: left out); not a decoder's."""
    labels = batch.get("labels")
    beside = isinstance(labels, Tensor) and "decoder_input_ids" not in batch and labels.shape == tokens_of(batch).shape
    return labels if beside else None
