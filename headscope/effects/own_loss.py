"""The model's own loss, row by row: what it returns beside (or in place of) its logits where it is given labels."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headscope._support.running import run_model
from headscope.effects.metrics import Metric
from headscope.errors import MetricError
from headscope.text.batches import Batch, document_ids, labels_of, n_rows

__all__ = ["OwnLoss", "own_loss"]

_ALIKE = 1e-3  # of the loss: how far the mean over rows may be from the loss of the batch


@dataclass(frozen=True)
class OwnLoss(Metric):
    """The loss that the model itself returns, of each row alone."""

    name: str = "loss"
    unit: str = ""

    def parts(self, batches: Iterable[Batch]) -> Iterable[Batch]:
        for batch, documents in document_ids(batches):
            for row in range(n_rows(batch)):
                yield _row(batch, row) | {"document": documents[row : row + 1]}

    def measure(self, output: Any, batch: Batch, intact: Any = None) -> Float[Tensor, " batch"]:
        loss = _scalar(output)
        if loss is None or n_rows(batch) != 1:
            raise MetricError("the model returned no loss of its own for a row of the batches")
        return loss.reshape(1)


def own_loss(model: nn.Module, batch: Batch) -> OwnLoss | None:
    """The model's own loss; None where it returns none on a batch.

    Args:
        model: run as it is.
        batch: with what the model takes its loss of.

    Raises:
        MetricError: its loss is none of rows: their mean, by itself or by their numbers of labels, is not that of the
            batch, as where rows are set against each other.
    """
    with torch.no_grad():
        whole = _scalar(run_model(model, batch))
        if whole is None:
            return None
        rows = [_scalar(run_model(model, _row(batch, row))) for row in range(n_rows(batch))]
    if any(row is None for row in rows):
        raise MetricError(f"{type(model).__name__} returns a loss of a batch, and none of a row alone")
    each = torch.stack([row.reshape(()) for row in rows if row is not None]).double()
    means = [each.mean(), *((each * counts).sum() / counts.sum() for counts in _counts(batch, each))]
    if all(abs(float(mean - whole)) > _ALIKE * max(abs(float(whole)), 1e-6) for mean in means):
        raise MetricError(
            f"the loss that {type(model).__name__} returns is {float(whole):.4g} for a batch and "
            f"{float(each.mean()):.4g} in the mean over its rows alone: rows are set against each other there, and "
            "effects are by row; pass a metric of your own, a function of (output, batch) that gives one number a row"
        )
    return OwnLoss()


def _counts(batch: Batch, like: Tensor) -> list[Tensor]:
    """How many labels each row has; and without its first, which a model that moves them on by itself leaves out."""
    labels = labels_of(batch)
    if labels is None or labels.ndim < 2:
        return []
    return [(own.flatten(1) >= 0).sum(1).to(like) for own in (labels, labels[:, 1:])]


def _scalar(output: Any) -> Tensor | None:
    """A loss: by its name, or the one number in a tuple."""
    loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    if isinstance(output, (tuple, list)) and loss is None:
        numbers = [one for one in output if isinstance(one, Tensor) and one.numel() == 1 and one.is_floating_point()]
        numbers = [one for one in numbers if one.ndim == 0] or numbers
        loss = numbers[0] if len(numbers) == 1 else None
    if isinstance(output, Tensor) and output.ndim == 0:
        loss = output
    return loss if isinstance(loss, Tensor) and loss.numel() == 1 else None


def _row(batch: Batch, row: int) -> dict[str, Any]:
    rows = n_rows(batch)
    return {
        name: value[row : row + 1] if isinstance(value, Tensor) and value.ndim and len(value) == rows else value
        for name, value in batch.items()
    }
