"""A scale for numbers that span decades and may be negative: linear near zero, logarithmic far from it."""

from typing import Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import AsinhNorm, Normalize
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from headscope._support.formatting import number
from headscope._support.grids import bend

__all__ = ["colours", "set_scale", "short", "ticks"]

Floats = npt.NDArray[np.float64]


def ticks(low: float, high: float, knee: float | None, most: int) -> list[float]:
    """At most about `most` round numbers in [low, high], evenly apart on the scale; zero is one of them if inside."""
    if knee is None:
        even = MaxNLocator(most, steps=[1, 2, 5, 10]).tick_values(low, high)
        return [float(tick) for tick in even if low <= tick <= high]
    top = int(np.ceil(np.log10(max(abs(low), abs(high)))))
    sizes = [lead * 10.0**power for lead in (1, 5, 2) for power in range(top, int(np.floor(np.log10(knee))) - 1, -1)]
    gap = (np.arcsinh(high / knee) - np.arcsinh(low / knee)) / most
    kept = [0.0]
    for tick in (sign * size for size in sizes for sign in (1, -1)):
        if low <= tick <= high and min(abs(np.arcsinh(tick / knee) - np.arcsinh(np.array(kept) / knee))) >= gap:
            kept.append(tick)
    return sorted(tick for tick in kept if low <= tick <= high)


def short(value: float) -> str:
    """A tick's label: as few digits as it needs.

    >>> short(0.0), short(0.05), short(-0.002), short(20.0), short(0.00001)
    ('0', '0.05', '−0.002', '20', '10⁻⁵')
    """
    text = number(value, 3)
    mantissa, times, power = text.partition("×")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    if times and mantissa.lstrip("−") == "1":
        return mantissa.replace("1", "") + power
    return mantissa + times + power


def set_scale(
    ax: Axes, which: Literal["x", "y"], values: Floats, *, most: int = 8, room: tuple[float, float] = (0.03, 0.06)
) -> bool:
    """Scale one axis of `ax` for `values`, zero included.

    Args:
        ax: the axes.
        which: which of its two.
        values: what it must show.
        most: how many ticks, about.
        room: shares of the axis left free below and above.

    Returns:
        Whether the scale is bent: linear near zero and logarithmic far from it.
    """
    finite = values[np.isfinite(values)]
    low, high = (min(float(finite.min()), 0.0), max(float(finite.max()), 0.0)) if finite.size else (0.0, 1.0)
    if low == high:
        high = 1.0
    knee = bend(finite)
    if knee is not None:
        getattr(ax, f"set_{which}scale")("asinh", linear_width=knee)
    forth, back = (np.asarray, np.asarray) if knee is None else (np.arcsinh, np.sinh)
    width = 1.0 if knee is None else knee
    first, last = float(forth(low / width)), float(forth(high / width))
    span = last - first
    getattr(ax, f"set_{which}lim")(back(first - room[0] * span) * width, back(last + room[1] * span) * width)
    axis = getattr(ax, f"{which}axis")
    axis.set_major_locator(FixedLocator(ticks(low, high, knee, most)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.set_minor_locator(FixedLocator([]))
    return knee is not None


def colours(values: Floats) -> Normalize:
    """The range of a colour map for `values`: from zero, or symmetric about it where some are negative."""
    finite = values[np.isfinite(values)]
    most = float(np.abs(finite).max()) if finite.size else 1.0
    most = most or 1.0
    least = -most if finite.size and finite.min() < 0 else 0.0
    knee = bend(finite)
    return Normalize(least, most) if knee is None else AsinhNorm(knee, least, most)
