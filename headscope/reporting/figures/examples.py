"""One head's map on a short text, token by token."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from torch import Tensor

from headscope.errors import InputError
from headscope.reporting.figures.maps import colour_bar
from headscope.reporting.figures.style import GRID, ONE_SIGN, canvas, figure_of, frameless, styled

__all__ = ["example_map"]

_ROOM = 1.6  # inches for the tokens along each side
_MOST = 64  # tokens past which not every one is written


@styled
def example_map(
    pattern: npt.ArrayLike | Tensor,
    tokens: Sequence[str],
    *,
    query_tokens: Sequence[str] | None = None,
    label: str = "attention",
    ax: Axes | None = None,
) -> Axes:
    """Where each token of a text looks: a row per query, a column per key, on a square-root scale.

    Args:
        pattern: (query, key) one head's map, e.g. `seen[3].pattern[0, 7]` of `headscope.capture`; keys without any
            weight, as behind a causal mask, are left empty.
        tokens: text of every key.
        query_tokens: text of every query, where those are other tokens; the same without it.
        label: of the colour bar.
        ax: where to draw; a new figure without it.

    Raises:
        InputError: the tokens are not as many as the map has rows and columns.
    """
    weights = _numbers(pattern)
    queries = tokens if query_tokens is None else query_tokens
    if weights.shape != (len(queries), len(tokens)):
        raise InputError(
            f"a map of shape {weights.shape} does not fit {len(queries)} queries and {len(tokens)} keys: "
            "give one head's map (query, key) and the text of every token"
        )
    rows, columns = weights.shape
    if ax is None:
        side = float(np.clip(7.0 / max(rows, columns, 1), 0.09, 0.26))
        ax = canvas(columns * side + _ROOM, rows * side + _ROOM + 0.4)
    drawn = ax.imshow(
        np.ma.masked_equal(weights, 0), cmap=ONE_SIGN, norm=PowerNorm(0.5, 0.0, float(weights.max(initial=0.0)) or 1.0),
        interpolation="none", extent=(0, columns, rows, 0), aspect="equal",
    )  # fmt: skip
    frameless(ax)
    ax.set_facecolor(GRID)
    ax.tick_params(length=0, pad=2)
    ax.xaxis.tick_top()
    colour_bar(drawn, [ax], label)
    size = float(np.clip(400 / max(rows, columns, 1), 5.5, 8.5))
    _name(ax, queries, tokens, size)
    figure_of(ax).draw_without_rendering()  # how large the cells come out, names take part in
    height = 72 / figure_of(ax).dpi * ax.get_window_extent().height / max(rows, 1)
    if height < size:
        _name(ax, queries, tokens, 5.5, step=-(-6 // max(height, 0.5)))
    return ax


def _name(ax: Axes, queries: Sequence[str], tokens: Sequence[str], size: float, step: float = 1) -> None:
    """Write the tokens along both sides; each of them, or one of every `step`."""
    for axis, texts, turned in (("y", queries, 0), ("x", tokens, 90)):
        shown = range(0, len(texts), max(-(-len(texts) // _MOST), int(step)))
        names = [_tick(texts[i]) for i in shown]
        getattr(ax, f"set_{axis}ticks")([i + 0.5 for i in shown], names, rotation=turned, fontsize=size)


def _numbers(pattern: npt.ArrayLike | Tensor) -> npt.NDArray[np.float64]:
    if isinstance(pattern, Tensor):
        pattern = pattern.detach().cpu().double().numpy()
    return np.asarray(pattern, np.float64)


def _tick(token: str) -> str:
    """A token as a label: spaces and line breaks that show, a dollar sign that opens no formula."""
    text = token.replace("\n", "↵").replace("\r", "").replace("\t", "⇥").replace("$", r"\$")
    return text.strip(" ") or ("␣" if text else "·")
