"""Figures of a sweep, as files."""

from pathlib import Path

from headscope.reporting.figures import count_curves, figure_of, map_bound, styling
from headscope.studies.headcount.results import Sweep

__all__ = ["draw"]

_LABELS = {
    "score_rank": "rank of scores", "score_rank_effective": "effective rank of scores",
    "effective_heads": "effective heads of a layer", "cka": "mean CKA of two heads",
    "removable": "share removable at 1%", "flops": "operations a step", "memory": "memory of a step",
    "seconds": "processor time of a step",
}  # fmt: skip


def draw(found: Sweep, folder: str | Path) -> None:
    """Write error.png, one figure for each further measure, and bound.png where maps were matched.

    Args:
        found: the sweep.
        folder: an existing one.
    """
    runs = found.runs
    figures = {"error": count_curves(runs)}
    for name, label in _LABELS.items():
        if runs[name].notna().any():
            figures[name] = count_curves(runs, name, label=label, beside=(f"{name}_untrained", "before training"))
    if runs["task"].str.startswith("maps-").any():
        figures["bound"] = figure_of(map_bound(runs))
    with styling():
        for name, figure in figures.items():
            figure.savefig(Path(folder) / f"{name}.png", dpi=150)
