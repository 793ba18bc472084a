"""What a sweep over the number of heads found: tables that are saved and read back, and the shapes of their curves."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pandas as pd

from headscope._support.kept import is_begun
from headscope._support.shown import Shown
from headscope._support.tabular import read_table, write_table
from headscope.errors import StorageError
from headscope.studies.headcount.settings import Settings
from headscope.studies.headcount.shapes import shapes
from headscope.studies.tasks import WIDTH

__all__ = ["Sweep"]

_RUNS = {"task", "arm", "n_heads", "head_dim", "seed", "learning_rate", "error", "chance"}
_LAST = "runs"  # table that is written last
_MADE_BY = "`headscope headcount --out {}`"
_WORDS = ("task", "arm", "unit", "n_heads", "head_dim", "seed", "chosen")  # columns that are no floats


@dataclass(frozen=True, eq=False, repr=False)
class Sweep(Shown):
    """Training runs with few heads and many.

    Attributes:
        runs: a row for each task, arm ("width", "head_dim"), number of heads and seed: n_heads, head_dim, seed,
            learning_rate, error (on what was held out, lower = better), its unit, chance (the error of whoever does not
            look), loss, and what `headscope.studies.headcount.measuring.MEASURED` lists.
        rates: learning rates tried at each place that was tuned, and whether each was chosen.
        removal: error with a share of the heads removed, the least important first.
        facts: settings, versions, machine and date; JSON values only.
    """

    runs: pd.DataFrame
    rates: pd.DataFrame
    removal: pd.DataFrame
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shapes(self) -> pd.DataFrame:
        """How error runs with the number of heads, a row for each task and arm; see `shapes`."""
        return shapes(self.runs)

    @property
    def width(self) -> int:
        """Dimensions of the learners' residual stream; sweeps of before it could be told do not say it."""
        return int(self.facts["settings"].get("width", WIDTH))

    @property
    def decisive(self) -> bool:
        """Whether verdicts may rest on it: five seeds, rates chosen, every task and count of the full one of its width.

        What the paper says holds for tasks at large, or does not; one task alone cannot tell.
        """
        settings, full = self.facts["settings"], Settings.full(self.width)
        whole = settings["seeds"] >= full.seeds and settings["share"] == 1 and len(settings["rates"]) > 1
        return whole and {*full.tasks} <= {*settings["tasks"]} and {*full.heads} <= {*settings["heads"]}

    @staticmethod
    def saved(folder: str | Path) -> bool:
        """Whether a folder holds a sweep that was finished and saved."""
        return (Path(folder) / f"{_LAST}.json").exists()

    @classmethod
    def check_there(cls, folder: str | Path, *, finished: bool = False) -> None:
        """Refuse a folder that holds no sweep.

        Args:
            folder: that is said to hold one.
            finished: refuse one that was begun and not finished, too.

        Raises:
            StorageError: it holds none.
        """
        if cls.saved(folder):
            return
        command = _MADE_BY.format(shlex.quote(str(folder)))
        if not is_begun(folder):
            raise StorageError(f"{folder} holds no sweep, finished or begun", shell=f"{command} makes one")
        if finished:
            raise StorageError(f"the sweep in {folder} is not finished", shell=f"{command} goes on with it")

    @property
    def over(self) -> str:
        """What its intervals are over, in words."""
        each = self.runs.groupby("task")["seed"].nunique()
        least, most = int(each.min()), int(each.max())
        return f"{most} seeds" if least == most else f"{least} to {most} seeds"

    def _tables(self) -> dict[str, pd.DataFrame]:
        return {"error against the number of heads": self.shapes}

    def save(self, folder: str | Path) -> None:
        """Write rates, removal, shapes and runs as .csv, .parquet and .json into an existing folder, runs last."""
        about = {"facts": dict(self.facts)}
        for name in ("rates", "removal", "shapes", _LAST):
            write_table(Path(folder), name, getattr(self, name), {"name": name, **about})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read back what `save` wrote; floats return bit-equal.

        Raises:
            StorageError: a table is missing or spoilt.
        """
        try:
            runs, about = read_table(Path(folder), _LAST, _RUNS, _WORDS)
            rates, _ = read_table(Path(folder), "rates", {"task", "chosen"}, _WORDS)
            removal, _ = read_table(Path(folder), "removal", {"task", "share", "error"}, _WORDS)
        except StorageError as error:
            raise StorageError(
                str(error), shell=f"{_MADE_BY.format(shlex.quote(str(folder)))} makes such a folder"
            ) from error
        return cls(runs, rates, removal, about["facts"])
