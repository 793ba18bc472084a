"""Cards: what a reader must know of a measure or a score before trusting its number; the docs are made of them."""

from dataclasses import dataclass

__all__ = ["Card"]


@dataclass(frozen=True, kw_only=True)
class Card:
    """Facts of one measure or score, each a sentence or a few.

    Attributes:
        formula: how it is computed, in plain text with the symbols of the documentation.
        unit: unit of the number; "none" for a pure number.
        span: which values it takes, and what both ends mean.
        undefined: when it is NaN.
        invariance: what may be done to a head without changing the number.
        cost: how time and memory grow with heads, dimensions and positions.
        use: when to use it, and when to use another.
        source: paper, section, equation; or "our own definition".
    """

    formula: str
    unit: str
    span: str
    undefined: str
    invariance: str
    cost: str
    use: str
    source: str
