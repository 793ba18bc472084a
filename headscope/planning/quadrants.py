"""Quadrants: heads by what they cost and how much of what varies in them the others give. They describe, no more."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["QUADRANTS", "Lines", "draw_lines", "quadrants"]

Floats = npt.NDArray[np.float64]

QUADRANTS = ("redundant", "idle", "backed up", "needed")  # low/high importance x high/low replaceability
_GIVEN = 0.5  # a head counts as replaceable where the others give more of what varies in it than they miss


@dataclass(frozen=True)
class Lines:
    """Where the four quadrants meet, and why there."""

    importance: float
    replaceability: float
    why: str


def draw_lines(importance: Floats) -> Lines:
    """The line of importance is the median head; the line of replaceability is one half.

    Args:
        importance: (head,) NaN left out.
    """
    median = float(np.nanmedian(importance))
    return Lines(
        median,
        _GIVEN,
        "Across: the median head's importance, so that half of the heads lie below it, whatever the metric. "
        "Down: one half, where the other heads of the layer, by a linear map fitted on other text, give as much of "
        "what varies in the head (squared) as they miss.",
    )


def quadrants(importance: Floats, replaceability: Floats, lines: Lines) -> list[str]:
    """The quadrant of each head.

    "redundant": low importance, high replaceability; "idle": low, low; "backed up": high, high; "needed": high, low;
    "" where a number is missing.
    """
    named = []
    for important, replaceable in zip(importance, replaceability, strict=True):
        if np.isnan(important) or np.isnan(replaceable):
            named.append("")
        elif important <= lines.importance:
            named.append("redundant" if replaceable >= lines.replaceability else "idle")
        else:
            named.append("backed up" if replaceable >= lines.replaceability else "needed")
    return named
