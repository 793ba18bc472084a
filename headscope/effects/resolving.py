"""Resolving: which metric a name, an object or a function stands for, and which fits a model that names none."""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from headscope._support.objects import find_object, importable
from headscope._support.running import LABELS, accepts, last_logits, run_model
from headscope.anatomy.weights import weight_of
from headscope.effects.labelled import CrossEntropy, ErrorRate, labelled
from headscope.effects.metrics import Drift, Kl, Loss, MaskedLoss, Metric, UserMetric, first_of
from headscope.effects.own_loss import own_loss
from headscope.effects.scored import check_sides, tells_next
from headscope.errors import MetricError, ModelError, UnknownNameError
from headscope.sites import Anatomy
from headscope.text.batches import Batch, n_rows, token_ids

__all__ = ["METRICS", "resolve_metric"]

_MOST_LOGITS = 2**26  # 256 MB in float32: a vocabulary of 262,144 costs more than the rest of a small model

METRICS: dict[str, type[Metric]] = {
    "loss": Loss, "mlm": MaskedLoss, "kl": Kl, "drift": Drift, "error": ErrorRate, "cross_entropy": CrossEntropy,
}  # fmt: skip


def resolve_metric(
    metric: str | Metric | Callable[..., Tensor], model: nn.Module, anatomy: Anatomy, batch: Batch
) -> Metric:
    """A Metric from a name, an object or a function, or "package.module:name" of one of these.

    "auto" is "mlm" where there is a masked-language head, "loss" for a causal model with logits over tokens or for one
    that returns a loss of its own, "cross_entropy" where the batch holds classes that its logits fit, else "drift".
    "loss" of a model without logits over tokens is the one that it returns itself.

    Raises:
        UnknownNameError: no metric of that name.
        MetricError: the model cannot be judged by it.
    """
    if isinstance(metric, str) and ":" in metric:
        with importable():
            metric = find_object(metric, MetricError)
    if isinstance(metric, (str, Metric)) and not isinstance(metric, UserMetric):
        check_sides(model, batch)
    if isinstance(metric, str):
        resolved = _named(metric, model, anatomy, batch)
    else:
        resolved = metric if isinstance(metric, Metric) else _from_function(metric)
    resolved.check(anatomy)
    return resolved


def _named(name: str, model: nn.Module, anatomy: Anatomy, batch: Batch) -> Metric:
    fitting = _fitting(model, anatomy, batch) if name in ("auto", "loss") else name
    own: Metric | None = None
    if name == "auto" and fitting == "drift":
        own = _by_labels(model, batch)
    elif name == "loss" and fitting != "loss":
        own = own_loss(model, batch)
    if own is not None:
        return own
    chosen = fitting if name == "auto" else name
    if chosen not in METRICS:
        raise UnknownNameError(
            f"there is no metric {chosen!r}; there are: auto, {', '.join(METRICS)}, of each of which lower is better "
            "(error is 1 − accuracy)",
            python="another one is a function of yours of (output, batch), metric=function",
            shell="another one is a function of yours of (output, batch), --metric package.module:function",
        )
    kind = METRICS[chosen]
    if not issubclass(kind, (Loss, Kl)):
        return kind()
    made = kind(positions=_affordable(model, batch))
    return _of_all_positions(made, model, batch)


def _of_all_positions(metric: Loss | Kl, model: nn.Module, batch: Batch) -> Metric:
    """The metric, or the model's own loss where it gives logits of all positions only if it is given labels.

    Raises:
        MetricError: it does, and the batch holds none.
    """
    told, tokens = next((name for name in LABELS if accepts(model, name)), None), token_ids(batch)
    if told is None or tokens is None or accepts(model, "logits_to_keep"):
        return metric
    row = _first_row(batch)
    if _positions(model, metric.inputs(model, row)) != 1 or _positions(model, {**row, told: tokens[:1]}) == 1:
        return metric
    if told in batch or (told == "labels" and isinstance(metric, Kl)):  # which these metrics withhold
        return (own_loss(model, batch) if isinstance(metric, Loss) else None) or metric
    given = next(name for name, value in batch.items() if value is tokens)
    raise MetricError(
        f"{type(model).__name__} gives logits of the last position alone unless it is given {told}, so {metric.name!r} "
        f"has nothing to judge the others by; put {told} in the batches: {{{given!r}: x, {told!r}: y}}, y as your "
        "training has it"
    )


def _positions(model: nn.Module, batch: Batch) -> int:
    """Of how many positions a model gives logits; 0 where it gives none by position, or does not run."""
    try:
        with torch.no_grad():
            logits = _logits_of(run_model(model, batch))
    except ModelError:
        return 0
    return logits.shape[1] if isinstance(logits, Tensor) and logits.ndim == 3 else 0


def _first_row(batch: Batch) -> dict[str, object]:
    return {name: value[:1] if isinstance(value, Tensor) and value.ndim else value for name, value in batch.items()}


def _logits_of(output: object) -> object:
    return first_of(output) if getattr(output, "logits", None) is None else output.logits  # type: ignore[attr-defined]


def _by_labels(model: nn.Module, batch: Batch) -> Metric | None:
    """What judges a model by the labels that a batch brings: its own loss, or the cross-entropy of classes."""
    if not any(name in batch for name in LABELS):
        return None
    try:
        own = own_loss(model, batch)
    except MetricError:
        own = None
    if own is not None:
        return own
    with torch.no_grad():
        output = run_model(model, batch)
    try:
        labelled(output, batch)
    except MetricError as error:
        raise MetricError(
            f"the batches hold labels, and they judge nothing here: {error}. Correct them, give a metric of your own, "
            "or name one that does without them, as drift"
        ) from error
    return CrossEntropy()


def _from_function(function: Callable[..., Tensor]) -> UserMetric:
    if not callable(function):
        raise MetricError(f"a metric is a name, a Metric or a function; it was a {type(function).__name__}")
    given = list(inspect.signature(function).parameters.values())
    required = [
        one for one in given if one.default is one.empty and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    ]
    if len(required) not in (2, 3):
        raise MetricError("a metric of your own takes (output, batch) or (output, batch, intact)")
    by_name = len(given) > 2 and given[2].name == "intact" and given[2].kind is given[2].POSITIONAL_OR_KEYWORD
    name = getattr(function, "__name__", "own metric")
    return UserMetric(function, name, takes_intact=by_name or len(required) == 3)


def _fitting(model: nn.Module, anatomy: Anatomy, batch: Batch) -> str:
    if type(model).__name__.endswith(("ForMaskedLM", "ForPreTraining")):
        return "mlm"
    kinds = {site.kind for site in anatomy.sites}
    if "causal" not in kinds or ("self" in kinds and "decoder_input_ids" in batch):
        return "drift"
    rows = _first_row(batch)
    with torch.no_grad():
        output = run_model(model, rows, **last_logits(model, rows))
    logits = _logits_of(output)
    tokens = token_ids(batch)
    if not isinstance(logits, Tensor) or logits.ndim != 3 or tokens is None or int(tokens.max()) >= logits.shape[-1]:
        return "drift"
    if not tells_next(batch):
        return "drift"  # unless its labels judge it
    # a bare tensor holds logits unless it is as wide as the residual stream, which every head writes into
    widths = {weight_of(model, site.output).shape[0] for site in anatomy.sites if site.output is not None}
    named = getattr(output, "logits", None) is not None
    return "loss" if named or logits.shape[-1] not in widths else "drift"


def _affordable(model: nn.Module, batch: Batch) -> int | None:
    """How many positions of a row are scored so that the logits of a batch stay within `_MOST_LOGITS`; None for all."""
    config = getattr(model, "config", None)
    vocabulary = getattr(config, "vocab_size", None) or 1
    most = max(1, _MOST_LOGITS // (n_rows(batch) * int(vocabulary)))
    ids = token_ids(batch)
    return None if ids is None or most >= ids.shape[1] else most
