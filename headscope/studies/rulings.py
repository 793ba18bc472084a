"""Rulings: what claims come to, on the reference or on a named model; saved, read back, shown as a table."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from headscope.errors import HeadscopeError, InterruptedWorkError, StorageError
from headscope.folders import new_folder
from headscope.intervals import mean_spread
from headscope.shown import Shown
from headscope.studies.claims import EXACT, UNDECIDED, Measured
from headscope.tables import read_table, write_table

__all__ = ["Ruling", "Rulings", "pool", "read_claims", "rule"]

_TABLES = "tables"  # folder of what is behind the claims
_COLUMNS = ["claim", "about", "says", "verdict", "effect", "low", "high", "unit", "over", "sentence", "command"]
_WORDS = tuple(name for name in _COLUMNS if name not in ("effect", "low", "high"))


@dataclass(frozen=True, eq=False)
class Ruling:
    """What one claim comes to.

    Attributes:
        claim: its name, as "C7".
        about: what it is about, in a few words.
        says: what the paper says.
        verdict: one of `headscope.studies.claims.VERDICTS`.
        effect, low, high: the number that decides, and its 95% interval; NaN where there is none.
        unit: of the effect, in words.
        over: what the interval is over.
        sentence: what was found.
        command: what shows it.
        table: what the figure is drawn from.
    """

    claim: str
    about: str
    says: str
    verdict: str
    effect: float
    low: float
    high: float
    unit: str
    over: str
    sentence: str
    command: str
    table: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass(frozen=True, eq=False, repr=False)
class Rulings(Shown):
    """What claims come to for one subject.

    Attributes:
        subject: what was asked: "reference", or a model's name.
        rulings: in the order of the claims' numbers.
        facts: versions, machine, text, date; JSON values only.
    """

    subject: str
    rulings: tuple[Ruling, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, claim: str) -> Ruling:
        return next(ruling for ruling in self.rulings if ruling.claim == claim)

    def __contains__(self, claim: object) -> bool:
        return any(ruling.claim == claim for ruling in self.rulings)

    @property
    def slug(self) -> str:
        """The subject as it stands in names of files and folders."""
        return re.sub(r"[^\w]+", "-", self.subject)

    def to_frame(self) -> pd.DataFrame:
        """A row a claim: claim, about, says, verdict, effect, low, high, unit, over, sentence, command."""
        rows = [[getattr(ruling, name) for name in _COLUMNS] for ruling in self.rulings]
        return pd.DataFrame(rows, columns=_COLUMNS)

    def _tables(self) -> dict[str, pd.DataFrame]:
        shown = self.to_frame()[["claim", "about", "verdict", "effect", "low", "high", "over"]]
        return {f"claims of the paper, asked of {self.subject}": shown}

    def save(self, folder: str | Path, *, force: bool = False) -> None:
        """Write claims (a row a claim) and the table behind each as .csv, .parquet and .json into a new folder.

        Raises:
            StorageError: the folder has other content and `force` is off.
        """
        with new_folder(folder, force=force) as new:
            self.write(new)

    def write(self, folder: Path) -> None:
        """`save` into a folder that may be there already."""
        folder.mkdir(exist_ok=True)
        about = {"subject": self.subject, "facts": dict(self.facts)}
        write_table(folder, "claims", self.to_frame(), about)
        (folder / _TABLES).mkdir(exist_ok=True)
        for ruling in self.rulings:
            if not ruling.table.empty:
                write_table(folder / _TABLES, ruling.claim, ruling.table, {"claim": ruling.claim, **about})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read back what `save` wrote; floats return bit-equal.

        Raises:
            StorageError: it is no such folder, or a part of it is spoilt.
        """
        frame, about = read_claims(Path(folder))
        rulings = tuple(
            Ruling(**row, table=_behind(Path(folder) / _TABLES, row["claim"])) for row in frame.to_dict("records")
        )
        return cls(about["subject"], rulings, about["facts"])


def rule(name: str, claim: Any, evidence: Callable[[], Iterable[Any]], command: str) -> Ruling:
    """Measure a claim and decide it.

    Args:
        name: of the claim, as "C7".
        claim: the claim, of whichever kind.
        evidence: what its `measure` takes: one of each training seed, or one alone.
        command: what shows it.

    A model that cannot be asked leaves the claim undecided, and the sentence says why.

    Raises:
        InterruptedWorkError: evidence was being made, and was stopped; what is finished of it is kept.
        StorageError: evidence that was made before cannot be read, or is of other work.
    """
    about = {"claim": name, "about": claim.about, "says": claim.says, "unit": claim.unit, "command": command}
    try:
        measured = pool([claim.measure(one) for one in evidence()])
    except (InterruptedWorkError, StorageError):
        raise  # nothing that the claim or the model is to blame for
    except HeadscopeError as error:
        nothing = float("nan")
        return Ruling(
            **about, verdict=UNDECIDED, effect=nothing, low=nothing, high=nothing, over="", sentence=str(error)
        )
    least, most = claim.bounds
    measured = replace(measured, low=max(measured.low, least), high=min(measured.high, most))
    words = measured.words
    return Ruling(
        **about,
        verdict=claim.decide(words),
        effect=measured.effect,
        low=measured.low,
        high=measured.high,
        over=measured.over,
        sentence=claim.say(words),
        table=measured.table,
    )


def read_claims(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows that `Rulings.write` wrote, and what they are about; columns as of `Rulings.to_frame`.

    Raises:
        StorageError: there are none, or they are spoilt.
    """
    frame, about = read_table(folder, "claims", {*_COLUMNS}, _WORDS)
    return frame.fillna(dict.fromkeys(_WORDS, "")), about


def pool(each: Sequence[Measured]) -> Measured:
    """What was measured over several training seeds: means, with intervals over the seeds.

    Where the interval of one model, over its text, is wider on average, it counts as well: neither spread is hidden.
    """
    if len(each) == 1:
        return each[0]
    spread = mean_spread(np.array([one.effect for one in each]), np.arange(len(each)))
    low, high = (float(end) for end in spread.interval())
    low = min(low, float(np.mean([one.low for one in each])))  # NaN, where there is none, is never less
    high = max(high, float(np.mean([one.high for one in each])))
    numbers = {name: float(np.mean([one.numbers[name] for one in each])) for name in each[0].numbers}
    tables = [one.table.assign(training_seed=seed) for seed, one in enumerate(each)]
    over = EXACT if all(one.over == EXACT for one in each) else f"{len(each)} seeds"
    return Measured(float(spread.centre), low, high, over, numbers, pd.concat(tables, ignore_index=True))


def _behind(folder: Path, claim: str) -> pd.DataFrame:
    if not (folder / f"{claim}.csv").exists():
        return pd.DataFrame()
    try:
        cells = pd.read_csv(folder / f"{claim}.csv", dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {folder / claim}.csv: {error}") from error
    return cells.apply(_numbers)


def _numbers(column: pd.Series) -> pd.Series:
    """A column of cells as whole numbers or floats, bit-equal to what was written, where they are; else as text."""
    for kind in (int, float):
        try:
            return column.map(lambda cell, kind=kind: kind(cell) if cell or kind is int else np.nan)
        except ValueError:
            continue
    return column
