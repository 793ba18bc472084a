"""Tables in files: rows as CSV and Parquet, and beside them what they are about as JSON."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.errors import StorageError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["read_table", "write_table"]


def write_table(folder: Path, name: str, frame: "pd.DataFrame", about: Mapping[str, Any]) -> None:
    """Rows as NAME.csv and NAME.parquet; what they are about as NAME.json, and in the parquet file too.

    Raises:
        StorageError: there is no such folder.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not folder.is_dir():
        raise StorageError(f"there is no folder {folder} to write the table {name!r} into; make it first")
    frame.to_csv(folder / f"{name}.csv", index=False)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    facts = {**(table.schema.metadata or {}), b"headscope": json.dumps(about, allow_nan=False).encode()}
    pq.write_table(table.replace_schema_metadata(facts), folder / f"{name}.parquet")
    (folder / f"{name}.json").write_text(json.dumps(about, indent=1, allow_nan=False), encoding="utf-8")


def read_table(
    folder: Path, name: str, columns: set[str], words: Collection[str] = ()
) -> "tuple[pd.DataFrame, dict[str, Any]]":
    """Read back what `write_table` wrote, from CSV and JSON.

    Args:
        folder: where the files are.
        name: of the table.
        columns: that must be there.
        words: columns of text; the others hold numbers, or the names and counts that every table has.

    Raises:
        StorageError: a file or a column is missing or spoilt.
    """
    import pandas as pd

    try:
        about = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        text = {"layer", "head", "head_a", "head_b", "block", "block_a", "block_b", "n_documents", "n_tokens", *words}
        path = folder / f"{name}.csv"
        numbers = {column: _read_number for column in pd.read_csv(path, nrows=0) if column not in text}
        frame = pd.read_csv(path, converters=numbers)
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read the table {name!r} in {folder}: {error}") from error
    if missing := sorted(columns - set(frame)):
        raise StorageError(
            f"the table {folder / name}.csv has no column {missing[0]!r}: it is not as it was saved, or an earlier "
            "version of headscope saved it; make it again"
        )
    return frame, about


def _read_number(cell: str) -> float:
    """A cell of a CSV file, "" = NaN; a converter, since pandas' own reader is off in the last place now and then."""
    return float(cell) if cell else float("nan")
