"""Units: what a sweep measured on one batch, kept in a folder as it comes, so that one that stopped goes on there."""

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from headscope._support.kept import Kept
from headscope.text.batches import Batch, digest

__all__ = ["Unit", "keeping", "unit_of"]

Floats = npt.NDArray[np.float64]


@dataclass
class Unit:
    """What was measured on one batch so far.

    Attributes:
        intact: (row,) the metric of the intact model; None before it was run.
        without: for one group of heads after another, (row,) the effect of removing it.
    """

    intact: Floats | None = None
    without: list[Floats] = field(default_factory=list)


@dataclass(frozen=True)
class _Store:
    kept: Kept
    model: str


_OPEN: ContextVar[_Store | None] = ContextVar("units", default=None)


@contextmanager
def keeping(folder: str | Path, model: nn.Module) -> Iterator[None]:
    """While open, sweeps keep what they measure in a folder, and read there what was measured before.

    What is read was measured with the same weights, metric, heads and batch; all of these make its name.

    Args:
        folder: where; made if need be.
        model: whose heads are switched off.

    Raises:
        StorageError: the folder holds something else, or what another version of headscope, Python or torch measured.
    """
    token = _OPEN.set(_Store(Kept(folder, {"work": "effects of heads"}), _weights(model)))
    try:
        yield
    finally:
        _OPEN.reset(token)


@contextmanager
def unit_of(about: Sequence[Any], batch: Batch) -> Iterator[Unit]:
    """What was measured on a batch before; what is added to it while open is kept, also where an error ends it.

    Args:
        about: what is measured, so that no two measurements are taken for one: metrics, tensors and plain values.
        batch: what it is measured on.
    """
    store = _OPEN.get()
    if store is None:
        yield Unit()
        return
    plain = {name: repr(value) for name, value in batch.items() if not isinstance(value, Tensor)}
    whole = json.dumps([store.model, _spelled(about), digest([batch]), plain], sort_keys=True)
    name = hashlib.sha256(whole.encode()).hexdigest()[:32]
    found = store.kept.get(name) or {"intact": None, "without": []}
    intact = None if found["intact"] is None else np.array(found["intact"], dtype=np.float64)
    unit = Unit(intact, [np.array(row, dtype=np.float64) for row in found["without"]])
    before = len(unit.without)
    try:
        yield unit
    finally:
        if unit.intact is not None and len(unit.without) > before:
            store.kept.put(name, {"intact": unit.intact.tolist(), "without": [row.tolist() for row in unit.without]})


def _weights(model: nn.Module) -> str:
    """Digest of everything that a model is saved by."""
    summed = hashlib.blake2b(type(model).__name__.encode())
    for name, value in model.state_dict().items():
        summed.update(name.encode())
        summed.update(_bytes(value) if isinstance(value, Tensor) else repr(value).encode())
    return summed.hexdigest()[:32]


def _bytes(value: Tensor) -> bytes:
    try:
        flat = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        return flat.numpy().tobytes()
    except (RuntimeError, TypeError, NotImplementedError):  # a tensor of a kind of its own
        return repr(value).encode()


def _spelled(value: Any) -> Any:
    """A value in words that are the same in another process."""
    if isinstance(value, Tensor):
        return digest([{"": value}])
    if is_dataclass(value) and not isinstance(value, type):
        own = {one.name: _spelled(getattr(value, one.name)) for one in fields(value)}
        return [type(value).__name__, own]
    if inspect.isroutine(value) or inspect.isclass(value):
        return _spelled_code(value)
    if isinstance(value, Mapping):
        return {str(name): _spelled(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_spelled(one) for one in value]
    return (
        repr(value) if not callable(value) else [_spelled_code(type(value)), _spelled(getattr(value, "__dict__", {}))]
    )


def _spelled_code(value: Any) -> list[str]:
    """A function by its name, its code and what it has closed over."""
    try:
        code = inspect.getsource(value)
    except (OSError, TypeError):
        code = repr(getattr(getattr(value, "__code__", None), "co_code", ""))
    cells = [
        repr(cell.cell_contents) for cell in getattr(value, "__closure__", None) or () if cell.cell_contents != ...
    ]
    return [getattr(value, "__qualname__", type(value).__name__), code, *cells]
