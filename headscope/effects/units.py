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

from headscope._support.environment import versions
from headscope._support.kept import Kept
from headscope.errors import StorageError
from headscope.text.batches import Batch, digest

__all__ = ["Store", "Unit", "keeping", "unit_of"]

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


@dataclass
class Store:
    """A folder of units, open for the effects of one model.

    Attributes:
        kept: the folder.
        model: digest of the model.
        resumed: effects that were read there and not measured while it was open.
    """

    kept: Kept
    model: str
    resumed: int = 0
    _own: set[str] = field(default_factory=set)

    def read(self, name: str) -> Unit:
        """What was kept under a name; nothing where it was not, or where the file is spoilt: it is measured again."""
        try:
            found = self.kept.get(name) or {"intact": None, "without": []}
            intact = None if found["intact"] is None else np.array(found["intact"], dtype=np.float64)
            unit = Unit(intact, [np.array(row, dtype=np.float64) for row in found["without"]])
        except (StorageError, KeyError, TypeError, ValueError):
            unit = Unit()
        if name not in self._own:
            self.resumed += len(unit.without)
        self._own.add(name)
        return unit


_OPEN: ContextVar[Store | None] = ContextVar("units", default=None)


@contextmanager
def keeping(folder: str | Path, model: nn.Module) -> Iterator[Store]:
    """While open, sweeps keep what they measure in a folder, and read there what was measured before.

    What is read was measured with the same model (its weights, settings and code), metric, heads and batch; all of
    these make its name. Under a metric of the user's own nothing is kept: two functions of one name cannot be told
    apart.

    Args:
        folder: where; made if need be.
        model: whose heads are switched off.

    Yields:
        The folder, which counts the effects that are taken from before.

    Raises:
        StorageError: the folder holds something else, or what another version of headscope, Python or torch measured.
    """
    kept = Kept(folder, {"work": "effects of heads", "transformers": versions()["transformers"]})
    store = Store(kept, _identity(model))
    token = _OPEN.set(store)
    try:
        yield store
    finally:
        _OPEN.reset(token)


@contextmanager
def unit_of(about: Sequence[Any], batch: Batch) -> Iterator[Unit]:
    """What was measured on a batch before; what is added to it while open is kept, also where an error ends it.

    Args:
        about: what is measured, so that no two measurements are taken for one: metrics, tensors and plain values.
        batch: what it is measured on.
    """
    store, spelled = _OPEN.get(), _spelled(list(about))
    if store is None or spelled is None:
        yield Unit()
        return
    plain = {name: repr(value) for name, value in batch.items() if not isinstance(value, Tensor)}
    whole = json.dumps([store.model, spelled, digest([batch]), plain], sort_keys=True)
    name = hashlib.sha256(whole.encode()).hexdigest()[:32]
    unit = store.read(name)
    before = len(unit.without)
    try:
        yield unit
    finally:
        if unit.intact is not None and len(unit.without) > before:
            store.kept.put(name, {"intact": unit.intact.tolist(), "without": [row.tolist() for row in unit.without]})


def _identity(model: nn.Module) -> str:
    """Digest of what a model does, as far as it can be read: weights, buffers, settings, and the code of its parts."""
    summed = hashlib.blake2b()
    for kind in dict.fromkeys(map(type, model.modules())):
        summed.update(f"{kind.__module__}.{kind.__qualname__} {_source(kind)}".encode())
    config: Any = getattr(model, "config", None)
    summed.update(repr(config.to_dict() if hasattr(config, "to_dict") else config).encode())
    for name, module in model.named_modules():
        own = {key: value for key, value in vars(module).items() if isinstance(value, (bool, int, float, str))}
        summed.update(repr((name, type(module).__qualname__, sorted(own.items()))).encode())
        for held in (module._parameters, module._buffers):
            for key, value in held.items():
                summed.update(key.encode())
                summed.update(b"" if value is None else _bytes(value))
    return summed.hexdigest()[:32]


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""


def _bytes(value: Tensor) -> bytes:
    try:
        flat = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        return flat.numpy().tobytes()
    except (RuntimeError, TypeError, NotImplementedError):  # a tensor of a kind of its own
        return repr(value).encode()


def _spelled(value: Any) -> Any:
    """A value in words that are the same in another process; None where no words tell it from every other.

    Functions and metrics of the user's own have none: what they reach for cannot be read off them.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, Tensor):
        return digest([{"": value}])
    if isinstance(value, Mapping):
        parts = {str(name): _spelled(one) for name, one in value.items()}
        return None if None in parts.values() else parts
    if isinstance(value, (list, tuple)):
        listed = [_spelled(one) for one in value]
        return None if None in listed else listed
    if is_dataclass(value) and not isinstance(value, type) and type(value).__module__.startswith("headscope."):
        own = _spelled({one.name: getattr(value, one.name) for one in fields(value)})
        return None if own is None else [type(value).__qualname__, own]
    return None
