"""The corner of a user's batch that is enough to probe a model with."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from headscope.anatomy.check import tolerance
from headscope.anatomy.operations import floats_in, tensors_in
from headscope.errors import InputError, ModelError
from headscope.text.batches import ASIDE, Batch, n_rows

__all__ = ["corner", "mapped"]

_ROWS = 2


def corner(
    example: Batch, run: Callable[[Batch], Any], run_short: Callable[[Batch], Any] | None = None, tokens: int = 16
) -> Batch:
    """The first two rows of an example, and of text the first tokens that count: enough to probe a model with.

    What is an axis of rows is proven: the model must give for two rows what it gave for them among all. A row that is
    alone gets another one beside it. Positions are cut only where nothing but text is there, and the model runs on it.

    Args:
        example: arguments of the model's forward.
        run: runs the model.
        run_short: the same, for fewer positions.
        tokens: how many positions of a text are enough.
    """
    example = {name: value for name, value in example.items() if name not in ASIDE}
    rows = _count_rows(example)
    if rows is None:
        return example
    small = example
    if rows != _ROWS:
        want = run(example)
        change = _first_rows if rows > _ROWS else _with_another
        for have_rows in _HYPOTHESES:
            tried = mapped(example, functools.partial(change, rows=rows, have_rows=have_rows))
            if _gives(run, tried, want, min(rows, _ROWS)):
                small = tried
                break
    shorter = _shortened(small, tokens)
    if shorter is not None and _runs(run_short or run, shorter):
        return shorter
    return small


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """An example with every tensor in it, however deep, put through a function."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {name: mapped(part, function) for name, part in value.items()}
    return type(value)(mapped(part, function) for part in value) if type(value) in (list, tuple) else value


def _count_rows(example: Batch) -> int | None:
    """Rows of an example: the first axis of its first tensor of two axes or more."""
    tensors = tensors_in(dict(example))
    first = [tensor for tensor in tensors if tensor.ndim > 1] or [tensor for tensor in tensors if tensor.ndim]
    try:
        return n_rows(example)
    except InputError:
        return int(first[0].shape[0]) if first else None


_HaveRows = Callable[[Tensor], bool]
# which arguments have rows, of those whose first axis is as long as there are rows: all; not those of one axis, which
# are positions; nor square masks
_HYPOTHESES: tuple[_HaveRows, ...] = (
    lambda value: value.ndim > 0,
    lambda value: value.ndim > 1,
    lambda value: value.ndim > 2 or (value.ndim == 2 and value.dtype in (torch.int32, torch.int64)),
)


def _first_rows(value: Tensor, rows: int, have_rows: _HaveRows) -> Tensor:
    return value[:_ROWS] if have_rows(value) and value.shape[0] == rows else value


def _with_another(value: Tensor, rows: int, have_rows: _HaveRows) -> Tensor:
    """The row and the same turned by one place: another one, made of what a model takes."""
    return torch.cat([value, value.roll(1, -1)]) if have_rows(value) and value.shape[0] == rows else value


def _gives(run: Callable[[Batch], Any], example: Batch, want: Any, rows: int) -> bool:
    """Whether a model gives for the first rows of an example what it gave for them before."""
    try:
        out = run(example)
    except ModelError:
        return False
    pairs = list(zip(floats_in(want), floats_in(out), strict=False))
    if not pairs:
        return False
    wanted, given = pairs[0]
    if wanted.ndim == 0 or wanted.shape[1:] != given.shape[1:]:
        return False
    wanted, given = wanted[:rows].float(), given[:rows].float()
    finite = wanted.isfinite() & given.isfinite()
    if wanted.shape != given.shape or not bool(finite.any()):
        return False
    size = max(float(wanted[finite].abs().max()), 1e-12)
    return float((wanted - given)[finite].abs().max()) <= 10 * tolerance(pairs[0][0].dtype) * size


def _runs(run: Callable[[Batch], Any], example: Batch) -> bool:
    try:
        run(example)
    except ModelError:
        return False
    return True


def _shortened(example: Batch, tokens: int) -> Batch | None:
    """Of text alone, as many positions as are needed; None where there is more than text, or no more of it."""
    values = list(example.values())
    texts = [v for v in values if isinstance(v, Tensor) and v.ndim == 2 and not v.is_floating_point()]
    lengths = list(dict.fromkeys(int(text.shape[1]) for text in texts))
    if not lengths or max(lengths) <= tokens or not all(_is_text(value, lengths) for value in values):
        return None
    mask = example.get("attention_mask")
    starts = {}
    for length in lengths:
        padded_left = isinstance(mask, Tensor) and mask.shape == texts[0].shape and not bool(mask[:, 0].all())
        starts[length] = max(length - tokens, 0) if padded_left and length == texts[0].shape[1] else 0
    # on two sides of a decoder, different numbers of them
    stops = {length: min(length, starts[length] + tokens - 3 * place) for place, length in enumerate(lengths)}

    def cut(value: Tensor) -> Tensor:
        for axis, size in enumerate(value.shape):
            if size in starts and not (
                axis == 0 and value.ndim > 1 and value.shape[1] in starts and size != value.shape[1]
            ):
                value = value.narrow(axis, starts[size], stops[size] - starts[size])
        return value

    return {name: cut(value) if isinstance(value, Tensor) else value for name, value in example.items()}


def _is_text(value: Any, lengths: list[int]) -> bool:
    """Whether all axes of an argument but the first are positions (or one)."""
    if not isinstance(value, Tensor):
        return not isinstance(value, (Mapping, list, tuple))
    return all(size in (1, *lengths) for size in value.shape[1:]) and value.ndim <= 4
