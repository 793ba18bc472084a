"""Growing: how costs run with length and with the number of heads, from a table of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from headscope.errors import InputError
from headscope.uncertainty.intervals import mean_spread

__all__ = ["Terms", "growth", "terms"]

_WHAT = ["part", "against", "arm", "mode", "kernel"]  # what one curve is of
_FITTED = 4  # lengths: three terms, and one more length to see whether they fit


@dataclass(frozen=True)
class Terms:
    """What a cost is made of: fixed + linear · T + square · T², at T tokens.

    Attributes:
        fixed, linear, square: in the cost's unit; over tokens; over tokens squared.
        gap: largest difference between cost and terms at the lengths that were fitted, a share of the cost.
        shortest, longest: of the lengths that were fitted, in tokens.
    """

    fixed: float
    linear: float
    square: float
    gap: float
    shortest: float
    longest: float

    def at(self, length: Float[np.ndarray, " length"]) -> Float[np.ndarray, " length"]:
        """The cost of lengths in tokens."""
        return np.asarray(self.fixed + self.linear * length + self.square * length**2)

    def curve(self, points: int = 60) -> tuple[Float[np.ndarray, " point"], Float[np.ndarray, " point"]]:
        """Lengths from the shortest that was fitted to the longest, and their costs."""
        lengths = np.geomspace(self.shortest, self.longest, points)
        return lengths, self.at(lengths)

    @property
    def share(self) -> float:
        """Of the cost of the longest length, what the last term is."""
        last = self.square * self.longest**2
        return last / (self.fixed + self.linear * self.longest + last)

    @property
    def crossing(self) -> float:
        """Tokens from which on the last term is more than the one before; ∞ where it never is."""
        return max(self.linear / self.square, 0.0) if self.square > 0 else inf


def terms(lengths: Mapping[float, float]) -> Terms:
    """Fit what a cost is made of.

    The longest four lengths are fitted, so that the terms are those of long sequences: the moment at which most bytes
    are alive is another one in short ones. Relative errors count, least squares.

    Args:
        lengths: cost, above 0, by length in tokens.

    Raises:
        InputError: fewer than three lengths, which leave three terms open.

    >>> found = terms({tokens: 7 + 20 * tokens + 2 * tokens**2 for tokens in (8, 16, 32, 64)})
    >>> print(f"{found.fixed:.1f} {found.linear:.1f} {found.square:.1f} {found.crossing:.1f} {found.gap < 1e-9}")
    7.0 20.0 2.0 10.0 True
    """
    if len(lengths) < 3:
        raise InputError(f"three terms take three lengths or more; there were {len(lengths)}")
    sizes = np.array(sorted(lengths)[-_FITTED:], dtype=np.float64)
    costs = np.array([lengths[size] for size in sizes], dtype=np.float64)
    relative = np.vander(sizes / sizes[-1], 3, increasing=True) / costs[:, None]
    solved = np.linalg.lstsq(relative, np.ones(len(sizes)), rcond=None)[0]
    gap = float(np.abs(relative @ solved - 1).max())
    fixed, linear, square = (float(part / sizes[-1] ** power) for power, part in enumerate(solved))
    return Terms(fixed, linear, square, gap, float(sizes[0]), float(sizes[-1]))


def growth(costs: pd.DataFrame) -> pd.DataFrame:
    """How costs grow: exponents of length, and how many times as much the most heads take as the fewest.

    Args:
        costs: what `scale_costs` gave.

    Returns:
        A row for each curve and quantity ("seconds", "bytes", "flops", "analytic"): exponent (slope of log quantity
        against log size, by least squares over all sizes), last (over the last doubling alone), times (quantity at the
        largest size over that at the smallest), each with _low and _high: 95% intervals over rounds, of width 0 for
        what is the same in every round.
    """
    rows = []
    for what, own in costs.groupby(_WHAT, sort=False):
        size = "length" if own["against"].iloc[0] == "length" else "n_heads"
        for quantity in ("seconds", "bytes", "flops", "analytic"):
            table = own.pivot(index="round", columns=size, values=quantity)
            x, y = np.log2(table.columns.to_numpy(np.float64)), np.log2(table.to_numpy(np.float64))
            slopes = ((y - y.mean(1, keepdims=True)) @ (x - x.mean())) / ((x - x.mean()) ** 2).sum()
            last = (y[:, -1] - y[:, -2]) / (x[-1] - x[-2])
            row: dict[str, Any] = {**dict(zip(_WHAT, what, strict=True)), "quantity": quantity, "rounds": len(y)}
            for name, values in (("exponent", slopes), ("last", last), ("times", y[:, -1] - y[:, 0])):
                row |= _with_ends(name, values)
            row |= {name: 2.0 ** row[name] for name in ("times", "times_low", "times_high")}
            rows.append(row)
    return pd.DataFrame(rows)


def _with_ends(name: str, values: Float[np.ndarray, " round"]) -> dict[str, float]:
    spread = mean_spread(values, np.arange(len(values)))
    low, high = spread.interval()
    return {name: float(spread.centre), f"{name}_low": float(low), f"{name}_high": float(high)}
