"""Shares of heads beyond a size: how many surely are, how many surely are not, and how many cannot be told."""

import numpy as np
import pandas as pd

from headscope.studies.bilingual import Both
from headscope.tables import HeadTable

__all__ = ["SHARE_INTERVAL", "count_beyond", "head_rows"]

SHARE_INTERVAL = Both(
    "95%, by the bootstrap over documents, all heads together: from the share that stands above even after as many are "
    "taken off as noise alone may have put there, to what is left when those below are taken off in the same way. "
    "Where many heads lie near the line the share that is counted errs itself; the interval allows for that, and is "
    "rather too wide than too narrow",
    "95%区間。偶然だけで基準の線を越えうるヘッドの個数を、文書についてのブートストラップ(全ヘッド一括)"
    "で見積もる。その個数を差し引いても線を超えると言えるヘッドの割合が下端、"
    "同じように数えて線を下回ると言えるヘッドを除いた割合が上端。線の近くに多くのヘッドがあると、"
    "数えた割合そのものがずれる。区間はそのずれも見込んでいるので、広めに出る",
)
"""What the ends of `headscope.uncertainty.resampling.share_above` mean."""


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
