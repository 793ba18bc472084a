"""What is scored of a batch: which tokens, at which positions; one side of an encoder-decoder is the decoder's."""

from typing import Any, NamedTuple

from jaxtyping import Bool, Int
from torch import Tensor, nn

from headscope.errors import MetricError
from headscope.text.batches import Batch, kept_positions, token_ids

__all__ = ["Scored", "check_sides", "counting", "scored", "tokens_of"]


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
    tokens = token_ids(batch)
    if tokens is None:
        raise MetricError(
            f"the batches hold no tokens to score (they hold {sorted(batch)})",
            python="use metric='drift'",
            shell="use --metric drift",
        )
    return tokens


def counting(batch: Batch) -> Bool[Tensor, "batch position"]:
    return kept_positions(batch, "causal", tokens_of(batch).shape[1])


class Scored(NamedTuple):
    """What positions are to tell: (batch, position) token ids, and which of these positions are scored."""

    targets: Int[Tensor, "batch position"]
    kept: Bool[Tensor, "batch position"]


def scored(batch: Batch) -> Scored:
    """The next token of each position that has one: both count, and labels (-100) do not leave it out.

    A decoder's labels are its tokens moved on by one already, as transformers has them: each stands where it is told.

    Raises:
        MetricError: labels that are neither a decoder's tokens nor these moved on by one.
    """
    tokens, kept, labels = tokens_of(batch), counting(batch), batch.get("labels")
    if not isinstance(labels, Tensor) or labels.shape != tokens.shape:
        return Scored(tokens[:, 1:], kept[:, :-1] & kept[:, 1:])
    given = (labels >= 0).cpu()
    if "decoder_input_ids" in batch and not _agree(labels, tokens):
        if not _agree(labels[:, :-1], tokens[:, 1:]):
            raise MetricError(
                "labels in the batches are neither decoder_input_ids nor these moved on by one, so what a position is "
                "to tell is not known; decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels) fit them"
            )
        return Scored(labels.clamp(min=0), given)
    return Scored(labels.clamp(min=0)[:, 1:], kept[:, :-1] & kept[:, 1:] & given[:, 1:])


def _agree(labels: Tensor, tokens: Tensor) -> bool:
    return bool((labels == tokens)[labels >= 0].all())
