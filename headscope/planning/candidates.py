"""Candidates: every head with its scores, who could stand in for it, and a reason in words; least needed first."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from headscope._support.formatting import number
from headscope.heads import HeadId
from headscope.planning.quadrants import QUADRANTS, Lines, quadrants
from headscope.tables import HeadTable, PairTable, block_columns

__all__ = ["list_candidates"]

_BESIDE = ("replaceability", "needed", "norm", "gradient")

StandIns = Mapping[HeadId, tuple[HeadId, float]]


def list_candidates(
    scores: Mapping[str, HeadTable],
    similarity: PairTable,
    stand_ins: StandIns,
    lines: Lines,
    ranked: Sequence[HeadId],
    n_chosen: int,
) -> pd.DataFrame:
    """One row per head, from the first to cut to the last.

    The chosen heads come first, then the other redundant ones, the idle, the backed up and the needed; within each, the
    least `needed` first.

    Args:
        scores: tables "ablation", "norm", "replaceability", "needed", and "gradient" where the metric has one, over the
            same heads.
        similarity: CKA of the heads.
        stand_ins: for a head, the one of its layer that restores most of it alone, and the share that it restores.
        lines: where the quadrants meet.
        ranked: the redundant heads whose stand-ins stay, in the order in which they go.
        n_chosen: how many of them stay within the budget.

    Returns:
        Columns rank, head, layer, (block,) importance, low, high, replaceability, needed, norm, gradient, stand_in,
        stand_in_share, stand_in_cka, quadrant, chosen, reason.
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
            **{name: scores[name].score if name in scores else np.nan for name in _BESIDE},
        }
    )
    frame["stand_in"] = [str(stand_ins[head][0]) if head in stand_ins else "" for head in ablation.heads]
    frame["stand_in_share"] = [stand_ins[head][1] if head in stand_ins else np.nan for head in ablation.heads]
    frame["stand_in_cka"] = [
        similarity[head, stand_ins[head][0]] if head in stand_ins else np.nan for head in ablation.heads
    ]
    frame["quadrant"] = quadrants(ablation.score, scores["replaceability"].score, lines)
    frame["chosen"] = [head in ranked[:n_chosen] for head in ablation.heads]
    in_line = set(map(str, ranked))
    frame["reason"] = [_reason(row, ablation.unit, row["head"] in in_line) for row in frame.to_dict("records")]
    order = _order(frame)
    frame = frame.iloc[order].reset_index(drop=True)
    frame.insert(0, "rank", np.arange(1, len(frame) + 1))
    return frame


def _order(frame: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Where `needed` ties (all heads that help when removed have 0), by importance."""
    turn = frame["quadrant"].map({name: turn for turn, name in enumerate((*QUADRANTS, ""), 1)})
    return np.lexsort((frame["importance"], frame["needed"], turn.where(~frame["chosen"], 0)))


def _reason(row: Mapping[str, object], unit: str, in_line: bool) -> str:
    quadrant = row["quadrant"]
    if not quadrant:
        return "its output cannot be told apart from other heads', so it was not scored"
    effect, share = float(row["importance"]), float(row["replaceability"])  # type: ignore[arg-type]
    cost = f"{number(effect)}{' ' + unit if unit else ''}"
    restored, only = (f"{share:.0%}", "only ") if share > 0 else ("nothing", "")
    helper = f", {row['stand_in']} foremost" if row["stand_in"] else ""
    without = f"removing it costs {cost}" if effect >= 0 else f"the model does better without it ({cost})"
    if quadrant == "redundant" and not row["chosen"]:
        why = "the budget was spent before it" if in_line else "but not once heads taken before it are gone"
        return f"in reserve: {without}, and its layer restores {restored} of it{helper}; {why}"
    return {
        "redundant": f"cut first: {without}, and its layer restores {restored} of it{helper}",
        "idle": f"{without}, though its layer restores {only}{restored} of it",
        "backed up": f"{without}, but its layer restores {restored} of it{helper}: cut only with repair",
        "needed": f"keep: {without}, and its layer restores {only}{restored} of it",
    }[str(quadrant)]
