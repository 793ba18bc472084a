"""Numbers as an HTML table of coloured cells: no script, nothing from outside, legible on light and on dark pages."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from headscope._support.formatting import MISSING, brief, power_of_ten, thousands

__all__ = ["MOST", "bend", "heat_grid"]

Floats = npt.NDArray[np.float64]
Colour = tuple[float, float, float]

MOST = 64  # rows and columns past which a grid is cut: a browser must hold it, and a person see it
_RATIO = 12.0  # greatest over median size past which a linear scale presses most numbers onto its zero
_ZERO: Colour = (247, 247, 247)
_MORE: Colour = (8, 69, 148)
_LESS: Colour = (165, 15, 21)
_EDGE = "border:1px solid rgba(128,128,128,.25);padding:1px 5px;"


def bend(values: Floats) -> float | None:
    """Size up to which a scale for `values` is linear: their median size; None where it may be linear throughout."""
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    if sizes.size == 0 or sizes.max() < _RATIO * np.median(sizes):
        return None
    return float(np.median(sizes))


def heat_grid(
    cells: Mapping[tuple[Any, Any], tuple[float, str]],
    rows: Mapping[Any, str],
    columns: Mapping[Any, str],
    *,
    most: float | None = None,
    notes: Sequence[str] = (),
) -> str:
    """A table with a coloured cell for each number: blue above zero, red below, the deeper the farther from it.

    Args:
        cells: by row and column, the number and what a pointer on it is told; NaN is a dash without a colour, a cell
            that is not there is empty.
        rows, columns: what they are called, in order; past 64 they are left out, and it is said.
        most: the size with the deepest colour; the largest of the numbers without it, and then numbers that span
            decades are told apart near zero.
        notes: what stands beneath, a line each.
    """
    shown = [{key: names[key] for key in [*names][:MOST]} for names in (rows, columns)]
    values = np.array([value for value, _ in cells.values()], dtype=np.float64)
    sizes = np.abs(values[np.isfinite(values)])
    power = thousands(sizes) if most is None else 0
    knee = bend(values) if most is None else None
    most = (float(sizes.max(initial=0.0)) or 1.0) if most is None else most
    head = "".join(f'<th style="{_EDGE}text-align:center">{escape(name)}</th>' for name in shown[1].values())
    lines = [f'<tr><th style="{_EDGE}"></th>{head}</tr>']
    for row, name in shown[0].items():
        line = "".join(_cell(cells.get((row, column)), most, knee, 10.0**power) for column in shown[1])
        lines.append(f'<tr><th style="{_EDGE}text-align:right">{escape(name)}</th>{line}</tr>')
    told = [*notes, *([f"numbers in the cells: {power_of_ten(power)}"] if power else [])]
    told += [
        f"{kind}: the first {len(some)} of {len(names)}; to_frame() has them all"
        for kind, some, names in zip(("rows", "columns"), shown, (rows, columns), strict=True)
        if len(some) < len(names)
    ]
    small = "".join(f"<p><small>{escape(note)}</small></p>" for note in told)
    style = "border-collapse:collapse;font-size:85%;font-variant-numeric:tabular-nums;width:auto;color:inherit"
    return f'<table style="{style}">{"".join(lines)}</table>{small}'


def _cell(told: tuple[float, str] | None, most: float, knee: float | None, scale: float) -> str:
    if told is None:
        return f'<td style="{_EDGE}"></td>'
    value, title = told
    colour = "" if np.isnan(value) else _coloured(value, most, knee)
    words = MISSING if np.isnan(value) else brief(value / scale) if np.isfinite(value) else f"{value:+.0f}"
    return f'<td style="{_EDGE}text-align:right;{colour}" title="{escape(title)}">{words}</td>'


def _coloured(value: float, most: float, knee: float | None) -> str:
    """The background of a number, and whichever of black and white shows better on it."""
    size = min(abs(value), most)
    share = size / most if knee is None else float(np.arcsinh(size / knee) / np.arcsinh(most / knee))
    end = _LESS if value < 0 else _MORE
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(_ZERO, end, strict=True))
    ink = "#000000" if _luminance((red, green, blue)) > 0.179 else "#ffffff"
    return f"background:#{red:02x}{green:02x}{blue:02x};color:{ink}"


def _luminance(colour: Colour) -> float:
    """Relative luminance, in [0, 1]; from 0.179 up black has the greater contrast, at least 4.58, below it white.

    Source: Web Content Accessibility Guidelines 2.2, "relative luminance" and "contrast ratio".
    """
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (c / 255 for c in colour)
    ]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
