"""The sweep over the number of heads: rates are chosen, learners trained and measured, several at a time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import Parallel, cpu_count, delayed

from headscope._support.environment import machine, today, versions
from headscope._support.kept import Kept
from headscope._support.progress import Progress
from headscope.errors import InterruptedWorkError, NumericalError
from headscope.studies.headcount.earlier import joined, pieces_of
from headscope.studies.headcount.measuring import MEASURED, is_whole, run_case
from headscope.studies.headcount.results import Sweep
from headscope.studies.headcount.settings import Case, Settings
from headscope.studies.tasks import Task, kind_of, task_named
from headscope.studies.training import one_thread
from headscope.text.texts import Texts

__all__ = ["beyond", "sweep"]

_WIDER = 2  # how often the range of learning rates grows, where the best is at its end
_MAP = 16  # numbers of a head's map for one query, roughly


def sweep(
    folder: str | Path,
    settings: Settings | None = None,
    *,
    texts: Texts | None = None,
    earlier: Sweep | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Train the same small transformer with few heads and many, and measure each.

    Finished runs are kept in the folder: the same call goes on where another was stopped, to the same table.

    Args:
        folder: of the finished runs; made if need be.
        settings: what is tried; the full sweep without them (hours; see `Settings.quick`).
        texts: what the language task learns; the documentation of the running Python without them.
        earlier: a finished sweep: its runs and its choice of learning rates are taken, and only what is missing, such
            as further seeds, is trained. The result holds both.
        workers: runs at a time, one thread each, so that numbers do not depend on how many there are; as many as there
            are cores without it.
        progress: told of each run.

    Raises:
        InputError: settings that do not fit, a text too short for the language task, or an earlier sweep that trained
            otherwise.
        StorageError: the folder holds other work.
        InterruptedWorkError: it was stopped from outside; what is finished is kept.
    """
    settings = Settings() if settings is None else settings
    tasks = {label: task_named(label, texts, settings.width) for label in settings.tasks}  # too short a text is said
    source = None if texts is None else texts.source
    known = {} if earlier is None else pieces_of(earlier, settings, source)
    kept = Kept(
        folder, {**settings.to_json(), "text": None if texts is None else texts.sha256, "training": _training(settings)}
    )
    work = _Work(known, kept, texts, settings.width, cpu_count() if workers is None else workers, progress)
    try:
        tuned = work.finish("learning rates", settings.tuning())
        for number in range(_WIDER):  # an optimum at the end of what was tried is none
            tuned |= work.finish(f"further rates, {number + 1}", beyond(tuned))
        rates = _choose(tuned)
        places = settings.runs(rates)
        found = work.finish("runs", sorted({*places.values()}))
    except KeyboardInterrupt:
        raise InterruptedWorkError(
            f"stopped; every finished run is kept in {kept.folder}, and the same command goes on from there"
        ) from None
    made = Sweep(
        runs=_run_rows(places, found, tasks),
        rates=_rate_rows(tuned, rates),
        removal=_removal_rows(places, found),
        facts=_facts(settings, source),
    )
    return made if earlier is None else joined(earlier, made)


@dataclass(frozen=True)
class _Work:
    """Where runs come from: known, kept, or made by so many workers."""

    known: Mapping[Case, dict[str, Any]]
    kept: Kept
    texts: Texts | None
    width: int
    workers: int
    progress: Progress | None

    def finish(self, stage: str, cases: Sequence[Case]) -> dict[Case, dict[str, Any]]:
        """What was found of each case: read where it is known or kept, made where not."""
        begun = {case: piece for case in cases if (piece := self._found(case)) is not None}
        found = {case: piece for case, piece in begun.items() if is_whole(case, piece)}
        if self.progress is not None and found:
            self.progress(stage, len(found), len(cases))
        # the longest first, so that no worker is left with a long one at the end
        missing = sorted((case for case in cases if case not in found), key=_length, reverse=True)
        made: Iterable[tuple[Case, dict[str, Any]]] = Parallel(
            self.workers, return_as="generator_unordered", batch_size=1
        )(delayed(_work)(case, begun.get(case), self.texts, self.width) for case in missing)
        for case, piece in made:
            self.kept.put(str(case), piece)
            found[case] = piece
            if self.progress is not None:
                self.progress(stage, 1, len(cases))
        return {case: found[case] for case in cases}

    def _found(self, case: Case) -> dict[str, Any] | None:
        kept = self.kept.get(str(case))
        return self.known.get(case) if kept is None else kept


def _length(case: Case) -> tuple[float, Case]:
    """How long a run takes, roughly: the bytes that its maps and its heads' values fill."""
    kind = kind_of(case.task)
    return kind.steps * kind.rows * kind.n_layers * case.n_heads * (_MAP + case.head_dim), case


def _work(case: Case, begun: dict[str, Any] | None, texts: Texts | None, width: int) -> tuple[Case, dict[str, Any]]:
    """In a process of its own, on one thread."""
    task = _task(case.task, texts, width)
    try:
        with one_thread():
            return case, run_case(task, case, begun)
    except NumericalError:
        if case.tuning:
            return case, {"loss": None, "error": None}  # a rate too high is one that is not chosen
        return case, {"loss": None, "error": task.chance, **dict.fromkeys((*MEASURED, "removal"))}  # it learnt nothing


@lru_cache(maxsize=8)
def _task(label: str, texts: Texts | None, width: int) -> Task:
    return task_named(label, texts, width)


def beyond(tuned: Mapping[Case, Mapping[str, Any]]) -> list[Case]:
    """One rate further, at each place whose best rate is the highest or the lowest that was tried there.

    Args:
        tuned: what came of each rate that was tried.
    """
    further = []
    for (label, n_heads, head_dim), best in _choose(tuned).items():
        own = [case for case in tuned if (case.task, case.n_heads, case.head_dim) == (label, n_heads, head_dim)]
        tried = sorted(case.learning_rate for case in own)
        if best == tried[-1]:
            further.append(replace(own[0], learning_rate=_round(best * best / tried[-2])))
        elif best == tried[0]:
            further.append(replace(own[0], learning_rate=_round(best * best / tried[1])))
    return sorted(further)


def _round(rate: float) -> float:
    return float(f"{rate:.1g}")


def _choose(tuned: Mapping[Case, Mapping[str, Any]]) -> dict[tuple[str, int, int], float]:
    """The rate of the smallest loss at each place that was tuned; errors that are counted differ by too few."""
    tried: dict[tuple[str, int, int], list[tuple[float, float]]] = {}
    for case, piece in tuned.items():
        place = tried.setdefault((case.task, case.n_heads, case.head_dim), [])
        if piece["loss"] is not None:
            place.append((piece["loss"], case.learning_rate))
    for (label, n_heads, head_dim), place in tried.items():
        if not place:
            raise NumericalError(
                f"{label} with {n_heads} heads of {head_dim} dimensions came to NaN at every learning rate; "
                "try lower ones"
            )
    return {key: min(place)[1] for key, place in tried.items()}


def _run_rows(
    places: Mapping[tuple[str, str, int, int], Case], found: Mapping[Case, Mapping[str, Any]], tasks: Mapping[str, Task]
) -> pd.DataFrame:
    chance = {label: task.chance for label, task in tasks.items()}
    rows = [
        {
            "task": label, "arm": arm, "n_heads": n_heads, "head_dim": case.head_dim, "seed": seed,
            "learning_rate": case.learning_rate, "error": found[case]["error"], "unit": tasks[label].unit,
            "chance": chance[label], "loss": _nan(found[case]["loss"]),
            **{name: _nan(found[case][name]) for name in MEASURED},
        }
        for (label, arm, n_heads, seed), case in places.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _rate_rows(tuned: Mapping[Case, Mapping[str, Any]], rates: Mapping[tuple[str, int, int], float]) -> pd.DataFrame:
    columns = ["task", "n_heads", "head_dim", "learning_rate", "error", "loss", "chosen"]
    rows = [
        (
            case.task, case.n_heads, case.head_dim, case.learning_rate, _nan(piece["error"]), _nan(piece["loss"]),
            rates[case.task, case.n_heads, case.head_dim] == case.learning_rate,
        )
        for case, piece in tuned.items()
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _removal_rows(
    places: Mapping[tuple[str, str, int, int], Case], found: Mapping[Case, Mapping[str, Any]]
) -> pd.DataFrame:
    rows = [
        (label, arm, n_heads, seed, share, error)
        for (label, arm, n_heads, seed), case in places.items()
        for share, error in [(0.0, found[case]["error"]), *(found[case]["removal"] or ())]
    ]
    return pd.DataFrame(rows, columns=["task", "arm", "n_heads", "seed", "share", "error"])


def _nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _training(settings: Settings) -> dict[str, Any]:
    """How each task is trained: runs of another length, or another learner, are other work."""
    kinds = {label: kind_of(label) for label in settings.tasks}
    return {label: [settings.width, kind.n_layers, kind.steps, kind.rows] for label, kind in kinds.items()}


def _facts(settings: Settings, source: str | None) -> dict[str, Any]:
    return {
        "settings": settings.to_json(),
        "text": source,
        "versions": versions(),
        "machine": machine(),
        "date": today(),
    }
