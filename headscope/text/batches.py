"""Batches as models take them: dicts of tensors, with an optional "document" (batch,) that only headscope reads."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headscope._support.running import ASIDE, LABELS
from headscope.errors import InputError

__all__ = [
    "ASIDE",
    "Batch",
    "MadeOnDemand",
    "Remade",
    "digest",
    "document_ids",
    "encoded_lengths",
    "kept_positions",
    "labels_of",
    "n_rows",
    "row_length",
    "row_lengths",
    "token_ids",
    "token_names",
]

_ROWS = ("input_ids", "inputs_embeds", "pixel_values", "attention_mask")
_NO_TOKENS = re.compile(  # in names of other whole numbers
    r"mask|position|type|segment|length|cache|valid|size|grid|box|^label|(^|_)(pad|padding|pos|lens?|document)(_|$)"
)
_UNNAMED = -(2**62)  # from here on, documents of rows that name none: far from any number that a user would give

Batch = Mapping[str, Any]
"""The model's arguments by name. Two names are not for the model: "document" (batch,), the document of each row, and
"kept" (batch, position), True where a position counts, where no mask of the model's own says so."""


def digest(batches: Iterable[Batch]) -> str:
    """SHA-256 over the names and the numbers of all tensors, batch by batch: the same for the same text."""
    summed = hashlib.sha256()
    for batch in batches:
        for name, value in sorted(batch.items()):
            if isinstance(value, Tensor):
                summed.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                summed.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return summed.hexdigest()


class MadeOnDemand(Sequence[dict[str, Any]], ABC):
    """Batches that are made anew whenever they are asked for."""

    @abstractmethod
    def make(self, index: int) -> dict[str, Any]:
        """The batch at an index, from 0."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What is known of them, as JSON values."""
        return {}

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self.make(place) for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no batch {index}: there are {len(self)}")
        return self.make(index % len(self))


@dataclass(frozen=True, eq=False)
class Remade(MadeOnDemand):
    """Batches, each changed when it is asked for.

    Attributes:
        base: the batches as they were.
        change: makes another one of each.
    """

    base: Sequence[Batch]
    change: Callable[[Batch], Batch]

    def __len__(self) -> int:
        return len(self.base)

    def make(self, index: int) -> dict[str, Any]:
        return dict(self.change(self.base[index]))


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
        if isinstance(value, Tensor) and name not in ASIDE and value.ndim:
            return int(value.shape[0])
    for value in batch.values():  # a batch inside: some models take a dict, or a list
        parts = dict(enumerate(value)) if isinstance(value, (list, tuple)) else value
        if isinstance(parts, Mapping) and any(isinstance(part, (Tensor, Mapping)) for part in parts.values()):
            return n_rows({str(name): part for name, part in parts.items()})
    raise InputError(f"a batch must hold at least one tensor; got {sorted(map(str, batch))}")


def kept_positions(batch: Batch, kind: str, length: int) -> Bool[Tensor, "batch position"]:
    """Which query positions of a site count: those that the mask of its side keeps; all where there is no mask.

    Args:
        batch: the model's arguments.
        kind: the site's kind; in an encoder-decoder "causal" and "cross" sites query from the decoder's side.
        length: number of query positions at the site.
    """
    masks = _masks(batch, kind)
    return next(
        (mask.bool().cpu() for mask in masks if mask.shape[1] == length),
        torch.ones(n_rows(batch), length, dtype=torch.bool),
    )


def fits_no_mask(batch: Batch, kind: str, length: int) -> bool:
    """Whether there is padding, and no mask tells which of a site's positions it is: they are others than the text's.

    Args:
        batch, kind, length: as in `kept_positions`.
    """
    masks = _masks(batch, kind)
    return bool(masks) and all(mask.shape[1] != length for mask in masks) and any(not mask.all() for mask in masks)


def _masks(batch: Batch, kind: str) -> list[Tensor]:
    decodes = kind in ("causal", "cross") and "decoder_input_ids" in batch
    names = ("decoder_attention_mask",) if decodes else ("kept", "attention_mask")
    return [mask for name in names if isinstance(mask := _named(batch, name), Tensor) and mask.ndim == 2]


def _named(batch: Batch, name: str) -> Any:
    """An argument of a batch, or of the batch inside it."""
    inside = (value.get(name) for value in batch.values() if isinstance(value, Mapping))
    return batch[name] if name in batch else next((value for value in inside if value is not None), None)


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


def row_lengths(batch: Batch) -> Int[Tensor, " batch"]:
    """How many positions of each row count: those of its mask, tokens or embeddings; 1 where it has none of these.

    Of an encoder-decoder, the decoder's: what it says is what a metric judges.
    """
    if isinstance(decoder := batch.get("decoder_input_ids"), Tensor):
        return kept_positions(batch, "causal", decoder.shape[1]).sum(1)
    return encoded_lengths(batch)


def encoded_lengths(batch: Batch) -> Int[Tensor, " batch"]:
    """The same of the side that reads, where an encoder and a decoder have rows of their own."""
    return kept_positions(batch, "self", row_length(batch)).sum(1)


def row_length(batch: Batch) -> int:
    """How many positions a row has, padding included: as its mask, tokens or embeddings; 1 where it has none."""
    known = [_named(batch, name) for name in ("kept", "attention_mask", "input_ids", "inputs_embeds")]
    known.append(token_ids(batch))
    return next((int(own.shape[1]) for own in known if isinstance(own, Tensor) and own.ndim in (2, 3)), 1)


def token_ids(batch: Batch) -> Tensor | None:
    """The tokens of a batch, (row, position): the decoder's, where there are any; None where it holds none."""
    names = token_names(batch)
    name = names.get("causal", names.get("self"))
    return None if name is None else batch[name]


def labels_of(batch: Batch) -> Tensor | None:
    """What is to be told, by any of the names that batches have for it; None where a batch does not say."""
    return next((batch[name] for name in LABELS if isinstance(batch.get(name), Tensor)), None)


def token_names(batch: Batch) -> dict[str, str]:
    """Which entries of a batch are token ids, by row and position, and by the kind of layers that read them.

    "self": what a model of one side reads, or the encoder; "causal": the decoder. Under a name of the model's own they
    are the only whole numbers by row and position that are no mask, no label and no decoder's tokens.
    """
    sides = dict(_TOKENS)
    if not _may_be_tokens(batch.get(sides["self"])):
        own = [name for name, value in batch.items() if _is_own_name(name) and _may_be_tokens(value)]
        sides["self"] = own[0] if len(own) == 1 else ""
    return {kind: name for kind, name in sides.items() if _may_be_tokens(batch.get(name))}


_TOKENS = {"self": "input_ids", "causal": "decoder_input_ids"}


def _may_be_tokens(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2 and value.dtype in (torch.int32, torch.int64)


def _is_own_name(name: str) -> bool:
    return name not in (*ASIDE, *LABELS, *_TOKENS.values()) and not _NO_TOKENS.search(name)
