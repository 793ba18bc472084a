"""Shares of heads beyond a size: how many surely are, how many surely are not, and how many cannot be told."""

import numpy as np
import pandas as pd

from headscope.tables import HeadTable

__all__ = ["count_beyond", "head_rows"]


def head_rows(table: HeadTable, name: str) -> pd.DataFrame:
    """A row for each head that has a score: layer, head, NAME, NAME_low, NAME_high.

    Args:
        table: of scores.
        name: what the score is called in the rows.
    """
    frame = table.to_frame().rename(columns={"score": name, "low": f"{name}_low", "high": f"{name}_high"})
    return frame.loc[frame[name].notna(), ["layer", "head", name, f"{name}_low", f"{name}_high"]].reset_index(drop=True)


def count_beyond(table: pd.DataFrame, name: str, size: float) -> dict[str, float]:
    """How many heads' whole intervals lie above a size, below it, and across it.

    Args:
        table: a row a head; columns NAME, NAME_low, NAME_high.
        name: of the number.
        size: in its unit.

    Returns:
        above, below, across: counts; a head without an interval lies across.
    """
    low, high = (table[f"{name}_{end}"].to_numpy(np.float64) for end in ("low", "high"))
    above, below = int((low > size).sum()), int((high < size).sum())
    return {"above": float(above), "below": float(below), "across": float(len(table) - above - below)}
