"""How figures look: colours, fonts, and axes that belong to no global state."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = [
    "ALIKE",
    "ARM_NAMES",
    "BOTH_SIGNS",
    "COLOURS",
    "DARK",
    "GRID",
    "INK",
    "MUTED",
    "NEW_FIGURE",
    "ONE_SIGN",
    "PAPER",
    "ROLE_COLOURS",
    "canvas",
    "figure_of",
    "frameless",
    "room",
    "styled",
    "styling",
]

# Every colour that a figure uses apart from colour maps: the page for dark screens is the same drawing with these
# swapped, so no two of them may be equal.
INK, MUTED, GRID, PAPER = "#1f2630", "#5b6672", "#dde2e8", "#fdfdfc"
COLOURS = {  # Okabe and Ito's palette, a little darker: told apart with any colour vision
    "redundant": "#d45500",
    "needed": "#0071b3",
    "backed up": "#008f68",
    "idle": "#7b8794",
}
ROLE_COLOURS = {
    "previous": "#0071b3",
    "next": "#2f95d0",
    "same": "#7a5ac2",
    "duplicate": "#008f68",
    "induction": "#d45500",
    "delimiter": "#c0407e",
    "sink": "#434e5b",
    "broad": "#8f8a6a",
    "mixed": GRID,
}
DARK = {
    INK: "#e8ebef", MUTED: "#a3adb9", GRID: "#343c47", PAPER: "#171b21",
    "#d45500": "#ff8f45", "#0071b3": "#5cb6ef", "#008f68": "#33c99b", "#7b8794": "#8c98a6",
    "#2f95d0": "#a5dbff", "#7a5ac2": "#b7a0f2", "#c0407e": "#f18cc0", "#434e5b": "#c4ccd5", "#8f8a6a": "#bdb892",
}  # fmt: skip
ONE_SIGN, BOTH_SIGNS, ALIKE = "mako_r", "vlag_r", "rocket_r"  # seaborn's; even in lightness, safe for any colour vision

ARM_NAMES = {"width": "fixed width", "head_dim": "fixed head_dim"}  # how sizes of heads follow from their number

_FAMILIES = (
    "Inter", "Segoe UI", "Helvetica Neue", "Arial", "Noto Sans", "DejaVu Sans",
    "Noto Sans CJK JP", "Noto Sans JP", "Hiragino Sans", "Yu Gothic", "Meiryo", "Noto Sans CJK SC", "Noto Sans SC",
    "PingFang SC", "Microsoft YaHei", "Noto Sans CJK KR", "Malgun Gothic", "Apple SD Gothic Neo", "WenQuanYi Zen Hei",
)  # fmt: skip
_SETTINGS: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "path",  # the labels were placed for these very letters, whatever fonts the reader has
    "svg.hashsalt": "headscope",
}

NEW_FIGURE: ContextVar[Callable[..., Figure]] = ContextVar("new_figure", default=Figure)
"""What makes a figure where no axes are given; pyplot does where a user is to be shown it."""

P = ParamSpec("P")
R = TypeVar("R")


@cache
def _families() -> list[str]:
    """The fonts of this machine, best first; matplotlib looks a character up in each of them in turn."""
    installed = set(font_manager.get_font_names())
    return [family for family in _FAMILIES if family in installed]


@contextmanager
def styling() -> Iterator[None]:
    """While open, figures are drawn and saved in the style of the report; the caller's settings return after it."""
    with mpl.rc_context({**_SETTINGS, "font.family": _families()}), warnings.catch_warnings():
        # a metric may be named in a script that no font of this machine has: it is drawn as boxes, and the caption
        # of the figure, which the browser sets, has the name
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")
        yield


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorator: draw under `styling`."""

    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with styling():
            return draw(*args, **kwargs)

    return inside


def room(ax: Axes) -> tuple[float, float]:
    """Width and height that axes and what is written round them may take, in inches: their cell of a grid."""
    width, height = figure_of(ax).get_size_inches()
    cell = ax.get_subplotspec()
    if cell is None:
        place = ax.get_position()
        return float(width * place.width), float(height * place.height)
    grid = cell.get_gridspec()
    return width * _share(grid.get_width_ratios(), cell.colspan), height * _share(
        grid.get_height_ratios(), cell.rowspan
    )


def _share(given: Any, span: range) -> float:
    """Of a grid's width or height, what a span of its columns or rows takes."""
    ratios = list(given)
    return float(sum(ratios[place] for place in span) / sum(ratios))


@styled
def canvas(width: float, height: float) -> Axes:
    """Empty axes on a figure of their own, size in inches; no window and no pyplot state come with it by default."""
    return NEW_FIGURE.get()(figsize=(width, height), layout="constrained").add_subplot()


def figure_of(ax: Axes) -> Figure:
    """The whole figure that some axes stand on."""
    figure = ax.figure
    return figure if isinstance(figure, Figure) else figure.figure


def frameless(ax: Axes, *keep: str) -> None:
    """Hide the frame of the axes, all sides but those named."""
    for side, spine in ax.spines.items():
        spine.set_visible(side in keep)
