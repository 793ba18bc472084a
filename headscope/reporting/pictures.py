"""Figures as files: an SVG for each width and for light and dark screens, and a PNG for use elsewhere."""

import base64
import io
from dataclasses import dataclass

from matplotlib.figure import Figure as Drawing

from headscope.reporting.blocks import Figure
from headscope.reporting.figures.style import DARK, styling

__all__ = ["NARROW", "WIDE", "Picture", "take"]

WIDE, NARROW = 10.6, 3.7  # inches at 96 pixels: the text column on a desktop, and a phone; letters stay as large


@dataclass(frozen=True)
class Picture:
    """One figure, ready for a page.

    Attributes:
        figure: the block it comes from.
        wide, wide_dark, narrow, narrow_dark: SVG as data URIs.
        png: the wide one as a PNG.
    """

    figure: Figure
    wide: str
    wide_dark: str
    narrow: str
    narrow_dark: str
    png: bytes


def take(figure: Figure) -> Picture:
    """Draw a figure for both widths."""
    with styling():
        wide, narrow = figure.draw(WIDE * figure.share, False), figure.draw(NARROW, True)
        for drawing in (wide, narrow):
            drawing.draw_without_rendering()
            drawing.set_layout_engine("none")  # laid out once, for every format and resolution
        light, light_narrow = _svg(wide), _svg(narrow)
        png = io.BytesIO()
        wide.savefig(png, format="png", dpi=200)
    return Picture(
        figure, _uri(light), _uri(_darkened(light)), _uri(light_narrow), _uri(_darkened(light_narrow)), png.getvalue()
    )  # fmt: skip


def _svg(drawing: Drawing) -> str:
    stream = io.StringIO()
    # no date: the same analysis makes the same page, byte for byte
    drawing.savefig(stream, format="svg", dpi=200, facecolor="none", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _darkened(svg: str) -> str:
    """The same drawing in the colours for dark screens; those of colour maps stay."""
    for light, dark in DARK.items():
        svg = svg.replace(light, dark)
    return svg


def _uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8")).decode("ascii")
