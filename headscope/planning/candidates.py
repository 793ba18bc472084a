"""Candidates: every head with its scores, who could stand in for it, and a reason in words; the cheapest first."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from headscope._support.formatting import number
from headscope._support.tabular import read_table
from headscope.heads import HeadId
from headscope.planning.quadrants import Lines, quadrants
from headscope.tables import NULLS, HeadTable, PairTable, block_columns, head_names

__all__ = ["list_candidates", "load_candidates"]

_WORDS = ("rank", "stand_in", "quadrant", "chosen", "reason")  # columns that are not floats
_BESIDE = ("replaceability", "constant", "restored", *NULLS, "needed", "norm", "gradient")

Floats = npt.NDArray[np.float64]
StandIns = Mapping[HeadId, tuple[HeadId, float]]


def list_candidates(
    scores: Mapping[str, HeadTable],
    similarity: PairTable | None,
    stand_ins: StandIns,
    lines: Lines,
    order: Sequence[HeadId],
    n_chosen: int,
) -> pd.DataFrame:
    """One row per head, from the first to cut to the last: the cheapest by itself first, as they are cut.

    Args:
        scores: tables "ablation", and of "norm", "replaceability", "needed" and "gradient" those that there are, over
            the same heads.
        similarity: CKA of the heads, where there is one.
        stand_ins: for a head, the one of its layer that alone gives most of what varies in it, and that share.
        lines: where the quadrants meet; they describe a head, and choose none.
        order: the heads in the order in which they go; see `headscope.planning.removal.Removal`.
        n_chosen: how many of them stay within the budget.

    Returns:
        Columns rank, head, layer, (block,) importance, low, high, replaceability, constant, restored, (chance,
        untrained: what replaceability stands beside,) needed, norm, gradient, stand_in, stand_in_share, stand_in_cka,
        quadrant, chosen, reason. Names of heads are ordered categories, as in `headscope.PairTable.to_frame`; ""
        stands for no stand-in.
    """
    ablation = scores["ablation"]
    frame = pd.DataFrame(
        {
            "head": [str(head) for head in ablation.heads],
            "layer": [head.layer for head in ablation.heads],
            **block_columns(ablation.facts, block=ablation.heads),
            "importance": ablation.score,
            "low": ablation.low,
            "high": ablation.high,
            **{name: own if own is not None else np.nan for name, own in _beside(scores)},
        }
    )
    frame["stand_in"] = [str(stand_ins[head][0]) if head in stand_ins else "" for head in ablation.heads]
    frame["stand_in_share"] = [stand_ins[head][1] if head in stand_ins else np.nan for head in ablation.heads]
    frame["stand_in_cka"] = [
        similarity[head, stand_ins[head][0]] if similarity is not None and head in stand_ins else np.nan
        for head in ablation.heads
    ]
    frame["quadrant"] = quadrants(ablation.score, frame["replaceability"].to_numpy(), lines)
    frame["chosen"] = [head in order[:n_chosen] for head in ablation.heads]
    frame["reason"] = [_reason(row, ablation.unit) for row in frame.to_dict("records")]
    place = {head: turn for turn, head in enumerate(order)}  # what has no effect comes last
    turns = sorted(range(len(frame)), key=lambda row: place.get(ablation.heads[row], len(order)))
    frame = frame.iloc[turns].reset_index(drop=True)
    frame.insert(0, "rank", np.arange(1, len(frame) + 1))
    return _sortable(frame)


def load_candidates(folder: Path) -> pd.DataFrame:
    """Read back what `list_candidates` gave and `headscope._support.tabular.write_table` wrote as "candidates".

    Raises:
        StorageError: a file or a column is missing or spoilt.
    """
    frame, _ = read_table(folder, "candidates", {"head", "stand_in", "quadrant", "reason"}, _WORDS)
    for word in ("stand_in", "quadrant", "reason"):  # read as floats where all are empty
        frame[word] = "" if frame[word].isna().all() else frame[word].fillna("")
    return _sortable(frame)


def _sortable(frame: pd.DataFrame) -> pd.DataFrame:
    """With names of heads that sort as heads do."""
    heads = sorted(map(HeadId.parse, frame["head"]))
    return frame.assign(head=head_names(frame["head"], heads), stand_in=head_names(frame["stand_in"], ["", *heads]))


def _beside(scores: Mapping[str, HeadTable]) -> Iterator[tuple[str, Floats | None]]:
    """Further numbers of each head: scores, and what stands beside replaceability; None where there is none."""
    held = scores["replaceability"].columns if "replaceability" in scores else {}
    for name in (name for name in _BESIDE if name in held or name not in NULLS):
        yield name, scores[name].score if name in scores else held.get(name)


def _reason(row: Mapping[str, object], unit: str) -> str:
    if row["importance"] != row["importance"]:
        return "it has no effect that is a number: its output cannot be told apart, or the metric gave none"
    effect, share = float(row["importance"]), float(row["replaceability"])  # type: ignore[arg-type]
    cost = f"{number(effect)}{' ' + unit if unit else ''}"
    better = row["high"] < 0  # type: ignore[operator]
    without = f"the model does better without it ({cost})" if better else f"removing it costs {cost}"
    which = f"chosen: {without}" if row["chosen"] else without
    if not row["quadrant"]:
        return which
    given = f"{share:.0%}" if share > 0 else "nothing"
    helper = f", {row['stand_in']} foremost" if row["stand_in"] and share > 0 else ""
    return f"{which}; the rest of its layer gives {given} of what varies in it{helper}"
