"""Metrics of labels: how often another class is told than the label, and the cross-entropy of the labels."""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headscope._support.running import LABELS
from headscope.effects.metrics import Metric, first_of
from headscope.errors import MetricError
from headscope.text.batches import Batch, labels_of, n_rows

__all__ = ["CrossEntropy", "ErrorRate", "labelled"]

_OWN = (
    "a metric of your own is a function of (output, batch), one number a row:\n  def metric(output, batch):\n      "
    'return F.cross_entropy(output.logits, batch["labels"], reduction="none")\n'
    "metric=metric in Python, --metric module:metric on the command line"
)


@dataclass(frozen=True)
class ErrorRate(Metric):
    """Share of the labels of a row for which another class has the largest logit, in [0, 1].

    Negative labels are left out. It moves in steps, and so has no gradient.
    """

    name: str = "error"
    unit: str = ""

    def measure(self, output: Any, batch: Batch, intact: Any = None) -> Float[Tensor, " batch"]:
        logits, labels = labelled(output, batch)
        return _mean((logits.argmax(1) != labels).double(), labels)


@dataclass(frozen=True)
class CrossEntropy(Metric):
    """Cross-entropy of the labels of a row, nats per label; negative ones are left out."""

    name: str = "cross_entropy"
    unit: str = "nats/label"

    def measure(self, output: Any, batch: Batch, intact: Any = None) -> Float[Tensor, " batch"]:
        logits, labels = labelled(output, batch)
        # -100, or -1 as some have it
        return _mean(F.cross_entropy(logits.float(), labels.clamp(min=0), reduction="none").double(), labels)


def labelled(output: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits with the classes along axis 1, and the label of each place: (batch, class, …) and (batch, …).

    Args:
        output: the model's: logits by that name, a bare tensor, or what stands first in a tuple.
        batch: labels by one of their usual names, whole numbers.

    Raises:
        MetricError: there are none, or they do not fit the logits.
    """
    labels = labels_of(batch)
    logits = getattr(output, "logits", None)
    logits = first_of(output) if logits is None else logits
    if labels is None or not isinstance(logits, Tensor):
        lack = "labels" if labels is None else "logits in the model's output"
        held = f"the batches hold {', '.join(sorted(batch))}; " if labels is None else ""
        raise MetricError(f"there are no {lack} to judge by ({held}labels go by {', '.join(LABELS)}); {_OWN}")
    if labels.shape[:1] != (n_rows(batch),):
        raise MetricError(f"labels are {tuple(labels.shape)}, and the batch has {n_rows(batch)} rows; {_OWN}")
    if not labels.is_floating_point():
        labels = labels.to(logits.device).long()
        most = int(labels.max())
        if logits.shape[:-1] == labels.shape and most < logits.shape[-1]:
            return logits.movedim(-1, 1), labels
        if logits.ndim == labels.ndim + 1 and logits.shape[2:] == labels.shape[1:] and most < logits.shape[1]:
            return logits, labels
    kind = str(labels.dtype).removeprefix("torch.")
    raise MetricError(
        f"labels of {tuple(labels.shape)} {kind} are no classes of logits of {tuple(logits.shape)}; {_OWN}"
    )


def _mean(values: Tensor, labels: Tensor) -> Float[Tensor, " batch"]:
    kept = (labels >= 0).to(values.dtype).flatten(1) if labels.ndim > 1 else (labels >= 0).to(values.dtype)[:, None]
    counts = kept.sum(1)
    if not bool(counts.all()):
        raise MetricError(f"row {int((counts == 0).int().argmax())} of a batch has no label to judge by; leave it out")
    return (values.flatten(1) if values.ndim > 1 else values[:, None]).mul(kept).sum(1) / counts
