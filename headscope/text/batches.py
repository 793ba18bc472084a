"""Batches as models take them: dicts of tensors, with an optional "document" (batch,) that only headscope reads."""

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from headscope.errors import HeadscopeError, InputError, ModelError

__all__ = [
    "Batch",
    "accepts",
    "check_takes",
    "device_of",
    "digest",
    "document_ids",
    "evaluating",
    "kept_positions",
    "last_logits",
    "n_rows",
    "probe_example",
    "row_lengths",
    "run_model",
]

_PROBE_ROWS, _PROBE_TOKENS = 2, 16
_ROWS = ("input_ids", "inputs_embeds", "pixel_values", "attention_mask")
_UNNAMED = -(2**62)  # from here on, documents of rows that name none: far from any number that a user would give

Batch = Mapping[str, Any]


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter; the CPU for a model without parameters."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def accepts(model: nn.Module, name: str) -> bool:
    """Whether the model's forward names this argument."""
    return name in inspect.signature(model.forward).parameters


def last_logits(model: nn.Module) -> dict[str, int]:
    """The argument that keeps a language model from making logits that nobody looks at; {} for other models."""
    return {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}


def run_model(model: nn.Module, batch: Batch, **extra: Any) -> Any:
    """The model's output on one batch, tensors moved to its device, "document" left out, no KV cache made.

    Args:
        model: the model.
        batch: its arguments by name.
        extra: further arguments; they win over the batch's.

    Raises:
        ModelError: its forward failed; the message says how, and what it was given.
    """
    device = device_of(model)
    inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    inputs.pop("document", None)
    if accepts(model, "use_cache"):
        inputs.setdefault("use_cache", False)
    try:
        return model(**(inputs | extra))
    except (HeadscopeError, MemoryError, torch.OutOfMemoryError):
        raise  # what went wrong is known, and other batches would not mend it
    except Exception as error:
        shapes = {name: tuple(value.shape) for name, value in inputs.items() if isinstance(value, Tensor)}
        raise ModelError(
            f"a forward pass of {type(model).__name__} on {shapes} failed with {type(error).__name__}: {error}; pass "
            "batches (or example=) that its forward takes, as dicts of its arguments"
        ) from error


def check_takes(model: nn.Module, batch: Batch) -> None:
    """Refuse a batch that a second model does not take, which was made for another one.

    Raises:
        InputError: its forward pass fails on the batch.
    """
    try:
        with evaluating(model), torch.no_grad():
            run_model(model, batch)
    except ModelError as error:
        cause = error.__cause__
        raise InputError(
            f"the other model, {type(model).__name__}, does not take these batches ({type(cause).__name__}: {cause}); "
            "two models are compared on the same tokens, so they need one vocabulary and room for as many positions"
        ) from error


def digest(batches: Iterable[Batch]) -> str:
    """SHA-256 over the names and the numbers of all tensors, batch by batch: the same for the same text."""
    summed = hashlib.sha256()
    for batch in batches:
        for name, value in sorted(batch.items()):
            if isinstance(value, Tensor):
                summed.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                summed.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return summed.hexdigest()


def n_rows(batch: Batch) -> int:
    """Rows of a batch: the first axis of its tokens, pixels or mask; without them, of its first tensor.

    Raises:
        InputError: it is no mapping, or holds no tensor.
    """
    if not isinstance(batch, Mapping):
        raise InputError(f"a batch must be a dict of tensors as the model takes them; got {type(batch).__name__}")
    first = [name for name in _ROWS if name in batch]  # position_ids, say, may be one row for all
    for name in (*first, *batch):
        value = batch[name]
        if isinstance(value, Tensor) and name != "document" and value.ndim:
            return int(value.shape[0])
    raise InputError(f"a batch must hold at least one tensor; got {sorted(batch)}")


def kept_positions(batch: Batch, kind: str, length: int) -> Bool[Tensor, "batch position"]:
    """Which query positions of a site count: those that the mask of its side keeps; all where there is no mask.

    Args:
        batch: the model's arguments.
        kind: the site's kind; in an encoder-decoder "causal" and "cross" sites query from the decoder's side.
        length: number of query positions at the site.
    """
    names = ["attention_mask"]
    if kind in ("causal", "cross") and "decoder_input_ids" in batch:
        names = ["decoder_attention_mask"]
    for name in names:
        mask = batch.get(name)
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == length:
            return mask.bool().cpu()
    return torch.ones(n_rows(batch), length, dtype=torch.bool)


def document_ids(batches: Iterable[Batch]) -> Iterable[tuple[Batch, Int[Tensor, " batch"]]]:
    """Each batch with the document of each row; where a batch names none, each row is a document of its own."""
    unnamed = _UNNAMED
    for batch in batches:
        given = batch.get("document") if isinstance(batch, Mapping) else None
        if given is not None:
            shape, dtype = tuple(getattr(given, "shape", ())), getattr(given, "dtype", type(given).__name__)
            if not isinstance(given, Tensor) or shape != (n_rows(batch),) or given.is_floating_point():
                raise InputError(
                    f"document is a tensor of ({n_rows(batch)},) whole numbers here, the document of each row; it was "
                    f"{shape} of {dtype}"
                )
            yield batch, given.cpu()
            continue
        rows = n_rows(batch)
        yield batch, torch.arange(unnamed, unnamed + rows)
        unnamed += rows


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode while open; every module's own mode comes back."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode


def probe_example(model: nn.Module, batch: Batch) -> dict[str, Any] | None:
    """What to probe a model with: None where it can be made up (models of transformers), else a corner of a batch."""
    if getattr(model, "main_input_name", None) in ("input_ids", "pixel_values"):
        return None
    n_rows(batch)
    ids = batch.get("input_ids")
    length = ids.shape[1] if isinstance(ids, Tensor) and ids.ndim == 2 else None

    def corner(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        value = value[:_PROBE_ROWS]
        return value[:, :_PROBE_TOKENS] if value.ndim == 2 and value.shape[1] == length else value

    return {name: corner(value) for name, value in batch.items() if name != "document"}


def row_lengths(batch: Batch) -> Int[Tensor, " batch"]:
    """How many positions of each row count: those of its mask, tokens or embeddings; 1 where it has none of these.

    Of an encoder-decoder, the decoder's: what it says is what a metric judges.
    """
    if isinstance(decoder := batch.get("decoder_input_ids"), Tensor):
        return kept_positions(batch, "causal", decoder.shape[1]).sum(1)
    known = (batch.get(name) for name in ("attention_mask", "input_ids", "inputs_embeds"))
    length = next((own.shape[1] for own in known if isinstance(own, Tensor) and own.ndim in (2, 3)), 1)
    return kept_positions(batch, "self", length).sum(1)
