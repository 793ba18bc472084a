"""The support matrix as a table: a row for each model type, facts, files, and what it comes to in numbers."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from headscope._support.folders import whole_file
from headscope.errors import StorageError
from headscope.studies.families.results import YES, Result

__all__ = ["FamilyTable"]


@dataclass(frozen=True)
class FamilyTable:
    """What came of each model type.

    Attributes:
        rows: results.
        facts: versions and date; JSON values only.
    """

    rows: tuple[Result, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, model_type: str) -> Result:
        return next(row for row in self.rows if row.model_type == model_type)

    def write(self, path: str | Path) -> None:
        """Write NAME.csv, a row a type, and NAME.json beside it with the facts.

        Args:
            path: of the CSV file; what stands there is replaced.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as new, new.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [one.name for one in fields(Result)], lineterminator="\n")
            writer.writeheader()
            writer.writerows(row.to_row() for row in self.rows)
        with whole_file(path.with_suffix(".json")) as new:
            new.write_text(json.dumps(self.facts, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read back what `write` wrote.

        Raises:
            StorageError: it is not there, or no such table.
        """
        path = Path(path)
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = tuple(Result.from_row(row) for row in csv.DictReader(file))
            facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{path} is no table of model types: {type(error).__name__}: {error}") from error
        return cls(rows, facts)

    def counts(self) -> dict[str, int]:
        """How many types: built, run, dispatch, … and by what became of captures and cuts."""
        rows = self.rows
        found = {
            "types": len(rows),
            "built": sum(row.built == YES for row in rows),
            "run": sum(row.forward == YES for row in rows),
            "dispatch": sum(row.dispatches for row in rows),
            "attention found": sum(row.sites > 0 for row in rows),
            "all of it": sum(row.found == "all" for row in rows),
        }
        for column in ("captured", "cut"):
            for status in dict.fromkeys(getattr(row, column) for row in rows):
                if status:
                    found[f"{column} {status}"] = sum(getattr(row, column) == status for row in rows)
        for column in ("saved", "trained", "generated", "copied", "exported"):
            found[column] = sum(getattr(row, column) == YES for row in rows)
        return found
