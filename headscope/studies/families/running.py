"""Many model types, each in a process of its own with a limit on memory and time; finished ones are kept."""

import multiprocessing
import os
import resource
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]

from headscope._support.environment import today, versions
from headscope._support.kept import Kept
from headscope._support.progress import Progress
from headscope.errors import InputError, InterruptedWorkError
from headscope.studies.families.results import NO, Result
from headscope.studies.families.table import FamilyTable
from headscope.studies.families.trying import FURTHER, Example, try_type

__all__ = ["Limits", "all_types", "run_types"]

# loaded once, before processes are forked
_WARM = (
    "transformers.models.auto.modeling_auto", "transformers.modeling_utils", "transformers.masking_utils",
    "transformers.generation.utils", "transformers.modeling_rope_utils",
)  # fmt: skip
_STAGE = "model types"


@dataclass(frozen=True)
class Limits:
    """What one model type may take.

    Attributes:
        seconds: of time.
        memory: of address space, in bytes.
        at_once: how many types are tried at a time, each on one thread.
    """

    seconds: float = 60.0
    memory: int = 12 << 30
    at_once: int = 1


def all_types() -> tuple[str, ...]:
    """Every model type that the installed transformers maps to a config."""
    return tuple(CONFIG_MAPPING_NAMES)


def run_types(
    types: Sequence[str],
    *,
    exported: Iterable[str] = (),
    keep: str | Path | None = None,
    limits: Limits = Limits(),
    example: Example | None = None,
    progress: Progress | None = None,
) -> FamilyTable:
    """Try headscope on model types, each in a process of its own.

    Args:
        types: as transformers calls them.
        exported: those of them of which torch.export is tried too.
        keep: a folder for what is finished; the same call goes on where another was stopped.
        limits: of each type.
        example: what makes an input for a model; headscope's own where it is None.
        progress: told of each type.

    Returns:
        A row for each type, in their order.

    Raises:
        InputError: there is no such type, or processes cannot be forked here.
        StorageError: the folder holds other work.
        InterruptedWorkError: it was stopped from outside; what is finished is kept.
    """
    types = list(dict.fromkeys(types))
    _check(types)
    kept = None if keep is None else Kept(keep, {"study": "families", "transformers": versions()["transformers"]})
    found = {name: piece for name in types if kept is not None and (piece := kept.get(name)) is not None}
    results = {name: Result.from_json(piece) for name, piece in found.items()}
    if progress is not None and results:
        progress(_STAGE, len(results), len(types))
    todo = [name for name in types if name not in results]
    try:
        for result in _run(todo, limits, partial(_try, exported=frozenset(exported), example=example)):
            results[result.model_type] = result
            if kept is not None:
                kept.put(result.model_type, result.to_json())
            if progress is not None:
                progress(_STAGE, 1, len(types))
    except KeyboardInterrupt:
        told = "nothing was kept" if kept is None else f"what is finished is kept in {kept.folder}"
        raise InterruptedWorkError(f"stopped after {len(results)} of {len(types)} model types; {told}") from None
    return FamilyTable(tuple(results[name] for name in types), {"versions": versions(), "date": today()})


def _check(types: Sequence[str]) -> None:
    known = all_types()
    if unknown := [name for name in types if name not in known]:
        import difflib  # only where something is wrong

        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"transformers {versions()['transformers']} knows no model type {unknown[0]!r}{hint}")
    if "fork" not in multiprocessing.get_all_start_methods():
        raise InputError("each model type is tried in a forked process, which this system does not have")


def _try(name: str, *, exported: frozenset[str], example: Example | None) -> Result:
    return try_type(name, further=FURTHER if name in exported else FURTHER[:1], example=example)


@dataclass(frozen=True, eq=False)
class _Child:
    """A process at work on a model type."""

    name: str
    process: BaseProcess
    begun: float


def _run(todo: Sequence[str], limits: Limits, work: "partial[Result]") -> Iterator[Result]:
    """Results as they come."""
    for module in _WARM:
        import_module(module)
    waiting, running = list(reversed(todo)), dict[Connection, _Child]()
    try:
        while waiting or running:
            while waiting and len(running) < limits.at_once:
                name = waiting.pop()
                ear, child = _start(name, limits, work)
                running[ear] = child
            left = min(child.begun + limits.seconds for child in running.values()) - time.monotonic()
            ready = wait([*running], timeout=max(left, 0.0))
            late = [ear for ear, child in running.items() if time.monotonic() - child.begun >= limits.seconds]
            for ear in [ear for ear in running if ear in ready or ear in late]:
                yield _end(ear, running.pop(ear), limits)
    finally:
        for child in running.values():
            child.process.kill()


def _start(name: str, limits: Limits, work: "partial[Result]") -> tuple[Connection, _Child]:
    context = multiprocessing.get_context("fork")
    ear, mouth = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(mouth, name, limits, work), daemon=True)
    with warnings.catch_warnings():
        # Python warns of threads, which a forked child would miss: here it starts its own, and torch has one
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    mouth.close()
    return ear, _Child(name, process, time.monotonic())


def _child(mouth: Connection, name: str, limits: Limits, work: "partial[Result]") -> None:
    """In the process of its own: no word to the terminal, one thread, so much memory."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))
    warnings.simplefilter("ignore")
    try:
        mouth.send(work(name).to_json())
    except KeyboardInterrupt:
        pass  # the parent says it
    except BaseException as error:
        mouth.send(
            Result(model_type=name, why={"built": f"the study failed with {type(error).__name__}: {error}"}).to_json()
        )


def _end(ear: Connection, child: _Child, limits: Limits) -> Result:
    """What a process found, or why it found nothing."""
    try:
        found = Result.from_json(ear.recv()) if ear.poll() else None
        why = f"it took more than {limits.seconds:g} seconds"
    except EOFError:
        found, why = None, "its process died, perhaps of too little memory"
    child.process.kill()
    child.process.join()
    ear.close()
    if found is not None:
        return found
    return Result(model_type=child.name, built=NO, why={"built": why}, seconds=round(time.monotonic() - child.begun, 1))
