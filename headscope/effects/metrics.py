"""Metrics: from a model's output to one number a row; lower is better.

"loss" and "mlm" stand on their own. "kl" and "drift" are distances to the intact model on the same batch: they are
zero and flat there, so effects measured by them are never negative and gradients are of second order.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from headscope._support.objects import line_of, reason_of
from headscope._support.running import accepts, last_logits
from headscope.effects.scored import counting, scored, tokens_of
from headscope.errors import HeadscopeError, MetricError
from headscope.sites import Anatomy
from headscope.text.batches import Batch, fits_no_mask, kept_positions, n_rows, token_names

__all__ = ["Drift", "Kl", "Loss", "MaskedLoss", "Metric", "UserMetric", "first_of"]

_OWN = "name a function of yours, --metric package.module:function"


class Metric(ABC):
    """One number a row of a batch.

    Attributes:
        name, unit: for tables ("" where the number has no unit).
        is_distance: measures against the intact model's output on the same batch.
    """

    name: str
    unit: str
    is_distance: ClassVar[bool] = False

    def inputs(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """The arguments to run the model with: the batch's, and what this metric asks of the output."""
        return dict(batch)

    @abstractmethod
    def measure(self, output: Any, batch: Batch, intact: Any = None) -> Float[Tensor, " batch"]:
        """The metric of each row; `intact` is the intact model's output on the same inputs."""

    def direction(self, output: Any, batch: Batch, generator: torch.Generator) -> Float[Tensor, " batch"]:
        """For a distance: a random scalar a row, half of whose squared derivative has the second-order term as mean."""
        raise MetricError(f"{self.name!r} is no distance; its gradient is taken of the metric itself")

    def parts(self, batches: Iterable[Batch]) -> Iterable[Batch]:
        """The batches as this metric is measured on them: as they are, or row by row."""
        return batches

    def check(self, anatomy: Anatomy) -> None:
        """Refuse a model that cannot be judged this way.

        Raises:
            MetricError: it cannot.
        """


@dataclass(frozen=True)
class _AtPositions:
    """Which positions are scored: a seeded subset, the same for the intact model and every ablated one."""

    positions: int | None
    seed: int

    def choose(self, keep: Bool[Tensor, "batch position"]) -> Int[Tensor, " chosen"]:
        """Columns to score, ascending; a row in which none of those drawn counts adds one of its own."""
        columns = torch.nonzero(keep.any(0)).flatten()
        if self.positions is None or self.positions >= len(columns):
            return columns
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * keep.shape[1])
        shuffled = columns[torch.randperm(len(columns), generator=generator)]
        drawn = shuffled[: self.positions]
        missed = keep[~keep[:, drawn].any(1)][:, shuffled]
        return torch.cat([drawn, shuffled[missed.int().argmax(1)]]).unique()


@dataclass(frozen=True)
class Loss(Metric):
    """Next-token cross-entropy, nats per token, averaged over a row's scored positions.

    Attributes:
        positions: how many positions of a row are scored, a seeded draw; None for all. The vocabulary is then paid
            for these alone, where the model can be asked for them (`logits_to_keep`).
        seed: of the draw.
    """

    positions: int | None = None
    seed: int = 0
    name: str = "loss"
    unit: str = "nats/token"

    def inputs(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        return _ask_for_logits(model, batch, self._columns(batch))

    def measure(self, output: Any, batch: Batch, intact: Any = None) -> Float[Tensor, " batch"]:
        columns, (targets, kept) = self._columns(batch), scored(batch)
        logits = _logits_at(output, batch, columns)
        losses = _cross_entropy(logits, targets[:, columns].to(logits.device))
        return _row_means(losses, kept[:, columns].to(logits.device))

    def check(self, anatomy: Anatomy) -> None:
        if not any(site.kind == "causal" for site in anatomy.sites):
            raise MetricError(
                f"{anatomy.model_class} sees the tokens ahead, so a next-token loss says nothing about it",
                python="use metric='drift' ('mlm' where it has a masked-language head, 'cross_entropy' or 'error' "
                "where the batches hold classes), or a function of your own",
                shell="use --metric drift (mlm where it has a masked-language head, cross_entropy or error where the "
                f"batches hold classes), or {_OWN}",
            )

    def _columns(self, batch: Batch) -> Int[Tensor, " chosen"]:
        return _AtPositions(self.positions, self.seed).choose(scored(batch).kept)


@dataclass(frozen=True)
class Kl(Metric):
    """Kullback-Leibler divergence from the intact model's next-token distribution, nats per token."""

    positions: int | None = None
    seed: int = 0
    name: str = "kl"
    unit: str = "nats/token"
    is_distance: ClassVar[bool] = True

    def inputs(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        return _ask_for_logits(model, batch, self._columns(batch))

    def measure(self, output: Any, batch: Batch, intact: Any = None) -> Float[Tensor, " batch"]:
        columns = self._columns(batch)
        new = _log_softmax(_logits_at(output, batch, columns))
        old = _log_softmax(_logits_at(intact, batch, columns))
        divergence = (old.exp() * (old - new)).sum(-1)
        return _row_means(divergence, counting(batch)[:, columns].to(divergence.device))

    def direction(self, output: Any, batch: Batch, generator: torch.Generator) -> Float[Tensor, " batch"]:
        """log p of labels drawn from the model itself: its squared score is the Fisher information."""
        columns = self._columns(batch)
        logp = _log_softmax(_logits_at(output, batch, columns))
        drawn = torch.multinomial(logp.detach().exp().flatten(0, 1).cpu(), 1, generator=generator).to(logp.device)
        kept = counting(batch)[:, columns].to(logp.device)
        chosen = logp.gather(-1, drawn.view(*kept.shape, 1)).squeeze(-1)
        return (chosen * kept).sum(1) / kept.sum(1).clamp(min=1).sqrt()

    def _columns(self, batch: Batch) -> Int[Tensor, " chosen"]:
        return _AtPositions(self.positions, self.seed).choose(counting(batch))


@dataclass(frozen=True)
class MaskedLoss(Metric):
    """Cross-entropy of masked tokens, nats per masked token.

    Attributes:
        mask_token_id: what stands in for a masked token; where None, the batches bring "labels" (-100 elsewhere).
        share: of the positions that are masked, a seeded draw.
        seed: of the draw.
    """

    mask_token_id: int | None = None
    share: float = 0.15
    seed: int = 0
    name: str = "mlm"
    unit: str = "nats/token"

    def inputs(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        if self.mask_token_id is not None:
            name = _read_first(batch)
            inputs[name] = batch[name].masked_fill(self._masked(batch), self.mask_token_id)
        return inputs

    def measure(self, output: Any, batch: Batch, intact: Any = None) -> Float[Tensor, " batch"]:
        if self.mask_token_id is None:
            if "labels" not in batch:
                raise MetricError(
                    "the metric 'mlm' needs a token that masks, or labels",
                    python="use MaskedLoss(mask_token_id=…), or batches with 'labels'",
                    shell="save a tokenizer with a mask token in the model's folder, or bring batches with 'labels'",
                )
            labels = batch["labels"]
            masked, targets = labels >= 0, labels.clamp(min=0)
        else:
            masked, targets = self._masked(batch), batch[_read_first(batch)]
        logits = _logits(output)
        losses = _cross_entropy(logits, targets.to(logits.device))
        return _row_means(losses, masked.to(logits.device))

    def _masked(self, batch: Batch) -> Bool[Tensor, "batch position"]:
        kept = counting(batch)
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * kept.shape[1])
        draw = torch.rand(kept.shape, generator=generator).masked_fill(~kept, 2.0)
        # at least one position of each row, or the row would have no number
        return (draw < self.share) | (draw == draw.min(dim=1, keepdim=True).values) & kept


def _read_first(batch: Batch) -> str:
    """The name of the tokens that an encoder reads, or a model of one side."""
    tokens_of(batch)  # refuses a batch without any
    return next(iter(token_names(batch).values()))


@dataclass(frozen=True)
class Drift(Metric):
    """1 - cosine between the pooled embedding and the intact model's; pooled: mean of last hidden states that count.

    Of a model without these, its embeddings of a row (CLIP's two, side by side), or else what it puts out of a row.
    """

    name: str = "drift"
    unit: str = ""
    is_distance: ClassVar[bool] = True

    def inputs(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        inputs = {**batch, **last_logits(model, batch)}  # they are not looked at
        embeddings = getattr(model, "get_output_embeddings", lambda: None)  # T5 with a head has no base model
        has_head = getattr(model, "base_model", model) is not model or embeddings() is not None
        if has_head and hasattr(model, "config"):
            inputs["output_hidden_states"] = True
        return inputs

    def measure(self, output: Any, batch: Batch, intact: Any = None) -> Float[Tensor, " batch"]:
        new, old = self.embed(output, batch), self.embed(intact, batch)
        # ½‖a − b‖² of unit vectors is 1 − cosine without the cancellation near zero
        return 0.5 * (new - old).square().sum(-1)

    def direction(self, output: Any, batch: Batch, generator: torch.Generator) -> Float[Tensor, " batch"]:
        pooled = self.embed(output, batch)
        towards = torch.randn(pooled.shape, generator=generator, dtype=pooled.dtype).to(pooled.device)
        return (pooled * towards).sum(-1)

    def embed(self, output: Any, batch: Batch) -> Float[Tensor, "batch width"]:
        """The pooled embedding of each row, of length 1.

        Args:
            output: of the model, on the batch.
            batch: tells which positions count.
        """
        hidden = _hidden(output)
        if hidden is None:
            return _row_vectors(output, n_rows(batch))
        # the last hidden states are the decoder's, where there is one
        if fits_no_mask(batch, "causal", hidden.shape[1]):
            raise MetricError(
                f"the model puts out {hidden.shape[1]} positions and no mask in the batch has as many, so which of "
                'them are padding cannot be told; "kept" in the batches, (row, position), says which do count'
            )
        kept = kept_positions(batch, "causal", hidden.shape[1]).to(hidden.device)
        total = (hidden.double() * kept[..., None]).sum(1)
        return F.normalize(total, dim=-1)


@dataclass(frozen=True)
class UserMetric(Metric):
    """A function of the user's own: `metric(output, batch)`, or `metric(output, batch, intact)`, one value a row."""

    function: Callable[..., Tensor]
    name: str = "own metric"
    unit: str = ""
    takes_intact: bool = False

    def measure(self, output: Any, batch: Batch, intact: Any = None) -> Float[Tensor, " batch"]:
        if self.takes_intact and intact is None:
            raise MetricError(
                f"the metric {self.name!r} looks at the intact model's output, where it is flat, so it has no gradient "
                "to speak of; use a score that needs none, such as ablation"
            )
        given = (output, batch, intact) if self.takes_intact else (output, batch)
        try:
            values = self.function(*given)
        except HeadscopeError:
            raise
        except Exception as error:
            names = "(output, batch, intact)" if self.takes_intact else "(output, batch)"
            raise MetricError(
                f"the metric {self.name!r} failed: {reason_of(error)}{line_of(error)}; it is called with {names}, and "
                f"this batch is a dict of {', '.join(map(repr, batch))}"
            ) from error
        rows = n_rows(batch)
        if not isinstance(values, Tensor) or values.shape != (rows,):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            alone = "; of PyTorch's losses, reduction='none' keeps rows apart" if got == () else ""
            raise MetricError(
                f"the metric {self.name!r} must return one value a row, shape ({rows},); it gave {got}{alone}"
            )
        return values


def _ask_for_logits(model: nn.Module, batch: Batch, columns: Tensor) -> dict[str, Any]:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if accepts(model, "logits_to_keep"):
        # one alone is asked for twice: what a model gives of its last position, unasked, is no answer
        inputs["logits_to_keep"] = columns.repeat(2) if len(columns) == 1 else columns
    return inputs


def _logits(output: Any) -> Tensor:
    logits = getattr(output, "logits", None)
    logits = first_of(output) if logits is None else logits
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        raise MetricError(
            "the model's output holds no logits of shape (batch, position, vocabulary)",
            python="load it with its language-model head, use metric='drift', or pass a function of your own",
            shell=f"name a model with its language-model head, or use --metric drift, or {_OWN}",
        )
    return logits


def _logits_at(output: Any, batch: Batch, columns: Tensor) -> Float[Tensor, "batch position vocabulary"]:
    logits = _logits(output)
    # a model that could be asked gave these columns alone; one that could not gave all
    many, whole = logits.shape[1], tokens_of(batch).shape[1]
    if many not in (whole, max(len(columns), 2)):
        raise MetricError(
            f"the model's logits have {many} positions where the batch has {whole} tokens (a prompt before the text?), "
            "so which belongs to which cannot be told",
            python="pass a metric of your own, or metric='drift'",
            shell=f"use --metric drift, or {_OWN}",
        )
    return logits[:, columns] if many == whole else logits[:, : len(columns)]


def first_of(output: Any) -> Any:
    """A bare tensor itself, or what stands first in a plain tuple that is no single number, as in (loss, logits)."""
    if type(output) not in (tuple, list) or not output:
        return output
    return next((one for one in output if not isinstance(one, Tensor) or one.ndim), output[0])


def _hidden(output: Any) -> Float[Tensor, "batch position width"] | None:
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is None:
        states = getattr(output, "hidden_states", None) or getattr(output, "decoder_hidden_states", None)
        hidden = states[-1] if states else first_of(output)
    return hidden if isinstance(hidden, Tensor) and hidden.ndim == 3 else None


def _row_vectors(output: Any, rows: int) -> Float[Tensor, "batch width"]:
    """What a model puts out of each row as one vector of length 1: its embeddings, or else all of its first tensor."""
    named = dict(output) if isinstance(output, Mapping) else {"": first_of(output)}
    # "logits_per_image" of CLIP sets rows against each other
    own = {n: v for n, v in named.items() if isinstance(v, Tensor) and v.is_floating_point() and len(v.shape) > 1}
    own = {n: v for n, v in own.items() if len(v) == rows and not n.startswith("logits_per")}
    chosen = [v for n, v in own.items() if "embed" in n or "pool" in n] or list(own.values())[:1]
    if not chosen:
        raise MetricError(
            "the model's output holds neither hidden states of shape (batch, position, width) nor a vector for each "
            "row; pass a metric of your own, a function of (output, batch, intact) that gives one number a row"
        )
    parts = [F.normalize(one.double().flatten(1), dim=-1) for one in chosen]
    return torch.cat(parts, 1) / len(parts) ** 0.5


def _cross_entropy(logits: Tensor, targets: Tensor) -> Float[Tensor, "batch position"]:
    # row by row: a float32 copy of all logits at once would be the largest tensor of the run
    pairs = zip(logits, targets, strict=True)
    return torch.stack([F.nll_loss(_log_softmax(row), target, reduction="none") for row, target in pairs])


def _log_softmax(logits: Tensor) -> Float[Tensor, "..."]:
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _row_means(values: Tensor, kept: Tensor) -> Float[Tensor, " batch"]:
    counts = kept.sum(1)
    if not bool(counts.all()):
        empty = int((counts == 0).int().argmax())
        raise MetricError(f"row {empty} of a batch has no position to score: too few of its tokens count; leave it out")
    return (values * kept).sum(1).double() / counts
