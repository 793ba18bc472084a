"""Shares of heads beyond a size, with ends that follow from each head's own interval."""

from math import nan

import numpy as np
import pandas as pd

from headscope.tables import HeadTable

__all__ = ["head_rows", "share_beyond"]


def head_rows(table: HeadTable, name: str) -> pd.DataFrame:
    """A row for each head that has a score: layer, head, NAME, NAME_low, NAME_high.

    Args:
        table: of scores.
        name: what the score is called in the rows.
    """
    frame = table.to_frame().rename(columns={"score": name, "low": f"{name}_low", "high": f"{name}_high"})
    return frame.loc[frame[name].notna(), ["layer", "head", name, f"{name}_low", f"{name}_high"]].reset_index(drop=True)


def share_beyond(table: pd.DataFrame, name: str, size: float) -> tuple[float, float, float]:
    """Share of heads above a size: by their score, by the low ends of their intervals, and by the high ends.

    Args:
        table: see `head_rows`.
        name: of the number.
        size: in its unit.

    Returns:
        Three shares in [0, 1]; NaN for the last two where a head has no interval, and for all where there is no head.
    """
    if table.empty:
        return nan, nan, nan
    every = table[[name, f"{name}_low", f"{name}_high"]].to_numpy(np.float64)
    middle, low, high = np.where(np.isnan(every).any(0), nan, (every > size).mean(0)).tolist()
    return middle, low, high
