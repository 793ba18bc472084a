"""What is scored of a batch: which tokens, at which positions; one side of an encoder-decoder is the decoder's."""

from typing import NamedTuple

from jaxtyping import Bool, Int
from torch import Tensor, nn

from headscope._support.running import is_two_sided
from headscope.errors import MetricError
from headscope.text.batches import Batch, kept_positions, labels_of, token_ids

__all__ = ["Scored", "check_sides", "counting", "scored", "tells_next", "tokens_of"]


def check_sides(model: nn.Module, batch: Batch) -> None:
    """Refuse an encoder-decoder's labels without the decoder's tokens: the model makes these of them by itself.

    Raises:
        MetricError: there are labels, and no decoder_input_ids.
    """
    if is_two_sided(model) and "labels" in batch and "decoder_input_ids" not in batch:
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
    """Which positions of these tokens count: those that are no padding."""
    return kept_positions(batch, "causal", tokens_of(batch).shape[1])


class Scored(NamedTuple):
    """What positions are to tell: (batch, position) token ids, and which of these positions are scored."""

    targets: Int[Tensor, "batch position"]
    kept: Bool[Tensor, "batch position"]


def scored(batch: Batch) -> Scored:
    """The next token of each position that has one: both count, and labels (negative) do not leave it out.

    Labels are the tokens themselves, or these moved on by one already, as a decoder's are and those of one's own
    training loop: each then stands where it is told. Labels of whole rows say nothing about tokens.

    Raises:
        MetricError: labels that are neither, or of another length.
    """
    tokens, kept, labels = tokens_of(batch), counting(batch), labels_of(batch)
    if labels is None or labels.ndim < 2:
        return Scored(tokens[:, 1:], kept[:, :-1] & kept[:, 1:])
    if labels.shape != tokens.shape:
        raise MetricError(
            f"labels in the batches are {tuple(labels.shape)} and the tokens {tuple(tokens.shape)}; give as many, -100 "
            "where there is none"
        )
    given = (labels >= 0).cpu()
    if _agree(labels, tokens, given & kept) is not False:
        return Scored(labels.clamp(min=0)[:, 1:], kept[:, :-1] & kept[:, 1:] & given[:, 1:])
    moved, decodes = _agree(labels[:, :-1], tokens[:, 1:], given[:, :-1] & kept[:, 1:]), "decoder_input_ids" in batch
    if moved or (moved is None and decodes):
        return Scored(labels.clamp(min=0), kept & given)
    advice = (
        "decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels) fit them"
        if decodes
        else "the metric 'cross_entropy' judges each position by the label that stands there"
    )
    raise MetricError(
        f"labels in the batches are neither {'decoder_input_ids' if decodes else 'the tokens'} nor these moved on by "
        f"one, so what a position is to tell is not known; {advice}"
    )


def tells_next(batch: Batch) -> bool:
    """Whether what each position is to tell is the next token, as far as labels say."""
    try:
        scored(batch)
    except MetricError:
        return False
    return True


def _agree(labels: Tensor, tokens: Tensor, where: Tensor) -> bool | None:
    """Whether labels are these tokens; None where there is nothing to tell it by."""
    return bool((labels == tokens).cpu()[where].all()) if bool(where.any()) else None
