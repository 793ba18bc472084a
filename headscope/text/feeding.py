"""Feeding: batches as people have them (tensors, pairs, loaders, datasets) as dicts of what a model's forward takes."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from headscope._support.running import ASIDE, LABELS, arguments, is_two_sided, unwrapped
from headscope.errors import InputError
from headscope.text.batches import Batch, MadeOnDemand, n_rows

__all__ = ["Batches", "feed", "feed_one"]

Batches = Iterable[Any]
"""What the verbs take as batches; see `feed`."""

_SIZE = 8  # rows of a batch, where the data come as one
_FILL = {"labels": -100}  # what fills up shorter rows; 0 elsewhere
_CLOSE = 0.85  # from this likeness on, a name is taken for another one misspelled


@dataclass(frozen=True, eq=False)
class _Fed(MadeOnDemand):
    """Batches made of something else."""

    many: int
    maker: Callable[[int], Batch]

    def __len__(self) -> int:
        return self.many

    def make(self, index: int) -> dict[str, Any]:
        return dict(self.maker(index))


@overload
def feed(model: nn.Module, data: Batches, *, again: Literal[True] = ...) -> Sequence[Batch]: ...
@overload
def feed(model: nn.Module, data: Batches, *, again: bool) -> Iterable[Batch]: ...
def feed(model: nn.Module, data: Any, *, again: bool = True) -> Iterable[Batch]:
    """Batches that can be gone through again, as dicts of what the model's forward takes.

    Args:
        model: what they are for.
        data: dicts of tensors, one by one in a list, a generator (read once, and kept) or a loader; or a dict alone; a
            tensor alone, or several in a tuple (the input first), cut into batches of rows; the same as batches of a
            list or a loader; a dataset of PyTorch, or of `datasets`. See `feed_one`.
        again: off: once is enough, and what is read only once is not kept.

    Raises:
        InputError: it is none of these, holds no row, or names an argument that the model does not have; or a tuple of
            tensors that may be batches as well as an input with its labels.
    """
    if isinstance(data, (str, bytes)) or data is None:
        raise InputError(f"batches are a list of what the model takes, and this is {data!r:.60}")
    if isinstance(data, tuple) and hasattr(data, "_asdict"):
        data = data._asdict()
    if isinstance(data, Mapping):
        return _checked(model, [data if _is_plain(model, data) else feed_one(model, data)])
    if isinstance(data, (Tensor, np.ndarray)) or _is_one_pair(model, data):
        parts = data if isinstance(data, tuple) else (data,)
        rows = len(parts[0])
        if any(len(part) != rows for part in parts):
            raise InputError(f"a tuple holds an input and what belongs to its rows, here {', '.join(_sizes(parts))}")

        def cut(number: int) -> Batch:
            return feed_one(model, tuple(part[number * _SIZE : (number + 1) * _SIZE] for part in parts))

        return _checked(model, _Fed(-(-rows // _SIZE), cut))
    if hasattr(data, "column_names") and hasattr(data, "__getitem__"):  # of `datasets`: a slice of it is a dict

        def taken(number: int) -> Batch:
            return feed_one(model, data[number * _SIZE : (number + 1) * _SIZE])

        return _checked(model, _Fed(-(-len(data) // _SIZE), taken))
    if isinstance(data, Dataset):
        data = DataLoader(data, batch_size=_SIZE)
    if not isinstance(data, Iterable):
        raise InputError(f"batches are a list of what the model takes, and this is a {type(data).__name__}")
    if not again and not isinstance(data, Sequence):
        return _one_by_one(model, data)
    listed: Any = data if isinstance(data, Sequence) else list(data)
    if all(_is_plain(model, one) for one in (listed if type(listed) in (list, tuple) else _first(listed))):
        return _checked(model, listed)
    return _checked(model, _Fed(len(listed), lambda number: feed_one(model, listed[number])))


def feed_one(model: nn.Module, item: Any) -> Batch:
    """One batch as a dict of what the model's forward takes.

    Args:
        model: what it is for.
        item: a dict of tensors, of arrays, or of lists of numbers (rows of unlike length are filled up and masked); a
            tensor: the first argument of the forward; or several: those that the forward needs or that are masks by
            position, others as "labels". A name for labels is the one that the forward has for them.

    Raises:
        InputError: it is none of these, or names an argument that the model does not have.
    """
    if isinstance(item, Mapping) and item and all(map(_is_text, item.values())):
        item = next(iter(item.values()))
    if _is_text(item):
        raise InputError(
            "a batch holds what the model takes, and this is text; "
            "hs.text_batches(tokenizer, texts) makes batches of it, and hs.analyze takes texts= and tokenizer="
        )
    if isinstance(item, tuple) and hasattr(item, "_asdict"):
        item = item._asdict()
    if isinstance(item, Mapping):
        return _named(model, {str(name): value for name, value in item.items()})
    if isinstance(item, (Tensor, np.ndarray)):
        item = (item,)
    if isinstance(item, (list, tuple)) and item and all(isinstance(one, (Tensor, np.ndarray)) for one in item):
        return _named(model, _placed(model, [_tensor(one) for one in item]))
    raise InputError(
        f"a batch is a dict of tensors as the model takes them, a tensor, or a tuple of tensors; it was a "
        f"{type(item).__name__}{f' of {type(item[0]).__name__}' if isinstance(item, (list, tuple)) and item else ''}"
    )


def _is_text(item: Any) -> bool:
    return isinstance(item, str) or (isinstance(item, (list, tuple)) and bool(item) and isinstance(item[0], str))


def _one_by_one(model: nn.Module, data: Iterable[Any]) -> Iterator[Batch]:
    for number, item in enumerate(data):
        batch = item if _is_plain(model, item) else feed_one(model, item)
        if number == 0:
            _checked(model, [batch])
        yield batch


def _is_one_pair(model: nn.Module, data: Any) -> bool:
    """Whether a tuple is one input with what belongs to its rows, and no sequence of batches.

    Raises:
        InputError: it may be either.
    """
    if type(data) is not tuple or len(data) < 2:
        return False
    tensors = [isinstance(one, (Tensor, np.ndarray)) for one in data]
    if isinstance(data[0], Mapping) and any(tensors):
        raise InputError(
            "a tuple of a dict and a tensor may be a batch with its labels or two batches; put labels into the dict "
            "under a name of their own, as in {…, 'labels': …}, and batches into a list"
        )
    if not all(tensors) or any(_tensor(one).ndim == 0 for one in data):
        return False
    first, *others = map(_tensor, data)
    if not all(_is_alike(first, one) for one in others):
        return True
    if any(len(one) != len(first) for one in others):
        return False  # batches of unlike numbers of rows
    beside, takes = list(_placed(model, [first, *others]))[1:], arguments(model)
    if all(name in takes and (takes[name].default is inspect.Parameter.empty or name not in LABELS) for name in beside):
        return True  # what the forward needs, or a mask
    if _is_told_by(first, others[-1]):
        return True
    names = ", ".join("abcdefgh"[: len(data)])
    raise InputError(
        f"a tuple of {len(data)} tensors of one kind ({_kind(first)}, {_kind(others[0])}) may be {len(data)} batches "
        f"or an input with its labels; batches=[{names}] are {len(data)} batches, and batches=[({names})] is one with "
        "labels"
    )


def _is_alike(first: Tensor, other: Tensor) -> bool:
    """Whether both may be what one argument of a forward takes: whole numbers of unlike length too, as tokens are."""
    if first.dtype != other.dtype or first.ndim != other.ndim:
        return False
    return not first.is_floating_point() or first.shape[1:] == other.shape[1:]


def _is_told_by(tokens: Tensor, other: Tensor) -> bool:
    """Whether numbers are labels of these tokens for sure: no tokens, the same ones, or each the one that follows."""
    if tokens.is_floating_point() or other.is_floating_point():
        return False
    moved = tokens.ndim > 1 and tokens.shape == other.shape and torch.equal(tokens[:, 1:], other[:, :-1])
    return moved or torch.equal(tokens, other) or bool((other < 0).any())


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _sizes(parts: Iterable[Any]) -> list[str]:
    return [f"{len(part)} rows" for part in parts]


def _is_plain(model: nn.Module, item: Any) -> bool:
    """Whether it is a batch as it stands."""
    if type(item) is not dict or not all(isinstance(one, (Tensor, Mapping)) or one is None for one in item.values()):
        return False
    return not _lacks_decoder(model, item)


def _lacks_decoder(model: nn.Module, batch: Batch) -> bool:
    """Whether an encoder-decoder is to make what its decoder reads of the labels by itself."""
    return is_two_sided(model) and isinstance(batch.get("labels"), Tensor) and batch.get("decoder_input_ids") is None


def _with_decoder(model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
    """With the labels moved on by one as what the decoder reads, as the model itself would have it."""
    labels, inner = batch["labels"], unwrapped(model)
    prepare: Any = getattr(inner, "prepare_decoder_input_ids_from_labels", None)
    if prepare is not None:
        read = prepare(labels=labels)
    else:
        config: Any = getattr(inner, "config", None)
        start, pad = (getattr(config, name, None) for name in ("decoder_start_token_id", "pad_token_id"))
        if start is None or pad is None:
            raise InputError(
                f"the batches of {type(inner).__name__} hold labels and no decoder_input_ids, and its config has no "
                "decoder_start_token_id and pad_token_id to make them by; add decoder_input_ids"
            )
        moved = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], 1)
        read = moved.masked_fill(moved < 0, pad)
    return batch | {"decoder_input_ids": read, "decoder_attention_mask": (labels >= 0).long()}


def _first(listed: Sequence[Any]) -> list[Any]:
    return [listed[0]] if len(listed) else []


def _checked(model: nn.Module, batches: Sequence[Any]) -> Sequence[Batch]:
    """Batches whose first has a row, and no name that is another one misspelled."""
    for first in _first(batches):
        if not isinstance(first, Mapping):
            raise InputError(f"a batch must be a dict of tensors as the model takes them; got {type(first).__name__}")
        _check_names(model, first)
        _check_rows(first)
        if n_rows(first) == 0:
            raise InputError("the first batch has no rows")
    return batches


def _check_names(model: nn.Module, batch: Batch) -> None:
    known = arguments(model)
    free = [name for name in known if name not in batch]
    for name in (name for name in batch if name not in known and name not in (*LABELS, *ASIDE)):
        meant = difflib.get_close_matches(name, free, 1, _CLOSE)
        if meant:
            raise InputError(
                f"the batches hold {name!r}, which {type(model).__name__} does not take; is {meant[0]!r} meant?"
            )


def _check_rows(batch: Batch) -> None:
    """Refuse what is no batch but one row of it, by its labels or tokens: what a dataset holds at a place."""
    least = dict.fromkeys(LABELS, 1) | {"input_ids": 2, "decoder_input_ids": 2}
    for name, axes in least.items():
        value = batch.get(name)
        if isinstance(value, Tensor) and value.ndim < axes:
            raise InputError(
                f"a batch has an axis for rows, and this is one row: {name} is {tuple(value.shape)}; "
                "torch.utils.data.DataLoader(data, batch_size=8) makes batches of rows"
            )


def _placed(model: nn.Module, parts: Sequence[Tensor]) -> dict[str, Any]:
    """Tensors without names: what each is to the forward."""
    takes = [one for one in arguments(model).values() if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    if not takes:
        raise InputError(f"the forward of {type(model).__name__} names no argument; give batches as dicts")
    placed: dict[str, Any] = {takes[0].name: parts[0]}
    for number, part in enumerate(parts[1:], 1):
        own = takes[number] if number < len(takes) else None
        if own is not None and len(placed) == number and _is_meant(own, part, parts[0]):
            placed[own.name] = part
        else:
            placed["labels" if "labels" not in placed else f"labels_{number}"] = part
    return placed


def _is_meant(argument: inspect.Parameter, part: Tensor, first: Tensor) -> bool:
    """Whether a tensor is for an argument at its position: one that is needed, labels, or a mask that it looks like."""
    if argument.default is argument.empty or argument.name in LABELS:
        return True
    is_mask = part.shape == first.shape[: part.ndim] and part.ndim > 1 and bool(((part == 0) | (part == 1)).all())
    return "mask" in argument.name and is_mask


def _named(model: nn.Module, batch: dict[str, Any]) -> Batch:
    """A batch with its numbers as tensors, shorter rows filled up, and labels by the model's own name for them."""
    lengths = [_lengths(value) for name, value in batch.items() if name not in ASIDE]
    ragged = next((own for own in lengths if len(set(own)) > 1), None)
    made = {name: _filled(name, value) for name, value in batch.items()}
    if ragged is not None and "attention_mask" not in batch:
        name = "attention_mask" if "attention_mask" in arguments(model) else "kept"
        made[name] = (torch.arange(max(ragged)) < torch.tensor(ragged)[:, None]).long()
    takes = arguments(model)
    for own in ("label", "label_ids"):
        if own in made and own not in takes and "labels" in takes and "labels" not in made:
            made["labels"] = made.pop(own)
    if _lacks_decoder(model, made):
        made = _with_decoder(model, made)
    needed = [one for one in takes.values() if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    if len(needed) == 1 and needed[0].name not in made and _is_dict(needed[0].annotation):
        return {needed[0].name: made}  # as SentenceTransformer takes it
    return made


def _is_dict(annotation: Any) -> bool:
    return annotation in (dict, Mapping) or str(annotation).startswith(("dict[", "Dict[", "typing.Dict", "Mapping["))


def _lengths(value: Any) -> tuple[int, ...]:
    """How long each row of a column of lists is; () for anything else, as for a list of tensors that a model takes."""
    rows = value if isinstance(value, list) else []
    return tuple(len(row) for row in rows) if rows and all(isinstance(row, list) for row in rows) else ()


def _filled(name: str, value: Any) -> Any:
    lengths = _lengths(value)
    if lengths:
        rows = [torch.as_tensor(row) for row in value]
        if len(set(lengths)) == 1 or any(row.ndim != 1 for row in rows):
            return torch.stack(rows) if len({row.shape for row in rows}) == 1 else value
        fill = _FILL.get(name, 0)
        return torch.stack([torch.nn.functional.pad(row, (0, max(lengths) - len(row)), value=fill) for row in rows])
    return _tensor(value)


def _tensor(value: Any) -> Any:
    """An array, or a list of numbers, as a tensor; anything else as it is."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value)
    if isinstance(value, list) and value and all(isinstance(one, (bool, int, float)) for one in value):
        return torch.tensor(value)
    return value
