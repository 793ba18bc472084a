"""Runs of an earlier sweep, taken into another one that trains only what is missing."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from headscope.errors import InputError
from headscope.studies.headcount.measuring import MEASURED
from headscope.studies.headcount.results import Sweep
from headscope.studies.headcount.settings import ARMS, Case, Settings
from headscope.studies.tasks import WIDTH

__all__ = ["joined", "pieces_of"]

_SAME = ("share", "width", "head_dim")  # of two sweeps whose runs may stand in one table


def pieces_of(earlier: Sweep, settings: Settings, text: str | None) -> dict[Case, dict[str, Any]]:
    """What an earlier sweep found, run by run, as a run itself tells it.

    Args:
        earlier: the sweep.
        settings: of the one that takes it up.
        text: what that one learns a language from.

    Raises:
        InputError: the two trained otherwise, so that their runs can't be compared; or both together would have other
            numbers of heads for one task than for another.
    """
    before = {"width": WIDTH, **earlier.facts["settings"], "text": earlier.facts["text"]}
    now = {**settings.to_json(), "text": text}
    apart = [f"{name} {before[name]} there, {now[name]} here" for name in (*_SAME, "text") if before[name] != now[name]]
    if apart:
        raise InputError(f"runs of the earlier sweep cannot be taken: {'; '.join(apart)}")
    _check_heads(earlier, settings)
    share = settings.share
    tuned = {
        Case.of_tuning(row["task"], row["n_heads"], row["head_dim"], row["learning_rate"], share): {
            name: _none(row[name]) for name in ("loss", "error")
        }
        for row in earlier.rates.to_dict("records")
    }
    removal = dict(list(earlier.removal.groupby(["task", "arm", "n_heads", "seed"])))
    runs = {
        Case(row["task"], row["n_heads"], row["head_dim"], row["learning_rate"], row["seed"], share): {
            "error": row["error"],
            **{name: _none(row[name]) for name in ("loss", *MEASURED) if not _unasked(row, name)},
            "removal": _removal(removal.get(tuple(row[name] for name in ("task", "arm", "n_heads", "seed")))),
        }
        for row in earlier.runs.to_dict("records")
    }
    return tuned | runs


def joined(earlier: Sweep, later: Sweep) -> Sweep:
    """Both in one, the later's rows where both have one; its facts tell of both.

    Args:
        earlier, later: sweeps of which the later took up the earlier.
    """
    tables: dict[str, pd.DataFrame] = {}
    before, after = earlier.facts["settings"], later.facts["settings"]
    tasks = _both(before["tasks"], after["tasks"])
    for name in ("runs", "rates", "removal"):
        old, new = getattr(earlier, name), getattr(later, name)
        keys = [key for key in ("task", "arm", "n_heads", "head_dim", "seed", "learning_rate") if key in new]
        keys = [key for key in keys if name != "runs" or key not in ("head_dim", "learning_rate")]
        known = pd.MultiIndex.from_frame(new[keys].drop_duplicates())
        kept = old[~pd.MultiIndex.from_frame(old[keys]).isin(known)]
        table = pd.concat([kept, new], ignore_index=True) if len(kept) else new
        tables[name] = _ordered(table, tasks)
    seeds = int(tables["runs"].groupby(["task", "arm", "n_heads"])["seed"].nunique().min())
    settings = {**after, "seeds": seeds, "tasks": tasks, "heads": sorted(_both(before["heads"], after["heads"]))}
    facts = {**later.facts, "settings": settings, "earlier": _made(earlier.facts)}
    return Sweep(**tables, facts=facts)


def _check_heads(earlier: Sweep, settings: Settings) -> None:
    """Refuse what would leave tasks with unlike numbers of heads, before anything is trained."""
    counts = {str(task): {*own} for task, own in earlier.runs.groupby("task", sort=False)["n_heads"]}
    for task in settings.tasks:
        counts[task] = counts.get(task, set()) | {*settings.heads}
    told = {task: ", ".join(map(str, sorted(own))) for task, own in counts.items()}
    if len({*told.values()}) > 1:
        raise InputError(
            "both sweeps together would have other numbers of heads for one task than for another "
            f"({'; '.join(f'{task}: {own}' for task, own in told.items())}); name all tasks and all numbers",
            shell="--task for each task, and --heads with all of them",
        )


def _ordered(table: pd.DataFrame, tasks: list[str]) -> pd.DataFrame:
    """Tasks and arms in the order in which sweeps tell them, then by numbers."""
    places = {"task": tasks, "arm": [*ARMS]}
    by = [name for name in ("task", "arm", "n_heads", "head_dim", "seed") if name in table]
    return table.sort_values(
        by, key=lambda own: own.map(places[str(own.name)].index) if own.name in places else own, kind="stable",
        ignore_index=True,
    )  # fmt: skip


def _both(before: list[Any], after: list[Any]) -> list[Any]:
    return [*before, *(one for one in after if one not in before)]


def _made(facts: Mapping[str, Any]) -> dict[str, Any]:
    """When and with what an earlier sweep was made."""
    return {name: facts[name] for name in ("versions", "machine", "date")}


def _removal(rows: pd.DataFrame | None) -> list[tuple[float, float]] | None:
    own = None if rows is None else rows[rows["share"] > 0]
    if own is None or own.empty:
        return None
    return list(zip(own["share"].tolist(), own["error"].tolist(), strict=True))


def _unasked(row: Mapping[str, Any], name: str) -> bool:
    """Whether it was not asked of a run: an earlier version knows it of trained learners alone."""
    trained = name.removesuffix("_untrained")
    return name not in row or (trained != name and _none(row[name]) is None and _none(row[trained]) is not None)


def _none(value: float) -> float | None:
    return None if value != value else float(value)
