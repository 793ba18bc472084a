"""Memory: what comparing every two heads of a model holds at once, as a share of what it was allowed to hold."""

import ctypes
import gc
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from headscope.anatomy import discover
from headscope.likeness.comparing import similarity
from headscope.likeness.passes import parse_memory
from headscope.studies.benchmark import plain_pass
from headscope.text.batches import Batch

__all__ = ["bench_memory", "peak_memory"]

_HELD = Path("/proc/self/status")
_EVERY = 0.01  # seconds between two looks


def bench_memory(model: nn.Module, batches: Sequence[Batch], name: str, allowed: Sequence[str]) -> pd.DataFrame:
    """CKA of every two heads under several settings of `memory`.

    What is held beyond what one plain pass over the same text holds, as a share of `memory`.

    Args:
        model: the model.
        batches: the text.
        name: what the model is called.
        allowed: settings of `memory`, such as "1GB".

    Returns:
        Columns as of `headscope.studies.benchmark.bench_watching`, seconds NaN; no row where the system does not tell
        what a process holds (it does on Linux).
    """
    anatomy = discover(model, batches[0])
    plain = partial(plain_pass, model, batches)
    rows: list[dict[str, Any]] = []
    if _HELD.exists():
        plain()  # what a first pass makes once and keeps
        passing = peak_memory(plain)
        for memory in allowed:
            held = peak_memory(partial(similarity, model, batches, scope="model", memory=memory, anatomy=anatomy))
            share = (held - passing) / parse_memory(memory)
            rows.append({"case": name, "arm": f"memory={memory}", "ratio": share, "goal": "at most 1"})
    return pd.DataFrame(rows).assign(work="every two heads, memory held of that allowed", seconds=float("nan"))


def peak_memory(run: Callable[[], Any]) -> float:
    """Most bytes that the process holds while `run` runs, beyond what it holds before: seen every 10 ms, on Linux.

    What the process has freed, but keeps at hand, is given back first: used again it would not be seen.
    """
    gc.collect()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):  # of glibc
        ctypes.CDLL(None).malloc_trim(0)
    seen = [_held()]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_EVERY):
            seen.append(_held())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        over.set()
        watcher.join()
    return max(seen) - seen[0]


def _held() -> float:
    line = next(line for line in _HELD.read_text(encoding="ascii").splitlines() if line.startswith("VmRSS:"))
    return float(line.split()[1]) * 1024
