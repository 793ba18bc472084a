"""Pictures: one drawing becomes an SVG for each width and screen, and a PNG."""

import base64
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from headscope.reporting import Figure, figures
from headscope.reporting.figures.style import COLOURS, DARK, INK, MUTED, PAPER
from headscope.reporting.pictures import NARROW, WIDE, take
from tests.unit.reporting.synthetic import analysis

asked: list[tuple[float, bool]] = []


def draw(width: float, narrow: bool):
    asked.append((width, narrow))
    return figures.figure_of(figures.joint_cost(analysis().removal, ax=figures.canvas(width, 2.0)))


FIGURE = Figure("cost", "Cost", "A cost.", "How to read it.", draw, 0.5)


def svg(uri: str) -> str:
    kind, _, data = uri.partition(";base64,")
    assert kind == "data:image/svg+xml"
    return base64.b64decode(data).decode("utf-8")


def test_it_is_drawn_once_for_each_width() -> None:
    asked.clear()
    picture = take(FIGURE)
    assert asked == [(WIDE / 2, False), (NARROW, True)]
    widths = {name: float(ET.fromstring(svg(getattr(picture, name))).attrib["width"].removesuffix("pt")) / 72
              for name in ("wide", "wide_dark", "narrow", "narrow_dark")}  # fmt: skip
    assert widths == pytest.approx({"wide": WIDE / 2, "wide_dark": WIDE / 2, "narrow": NARROW, "narrow_dark": NARROW})
    assert picture.png.startswith(b"\x89PNG")


def test_the_dark_one_is_the_same_drawing_in_other_colours() -> None:
    picture = take(FIGURE)
    light, dark = svg(picture.wide), svg(picture.wide_dark)
    assert light != dark
    for was, becomes in DARK.items():
        assert was not in dark
        light = light.replace(was, becomes)
    assert light == dark


def test_the_same_figure_makes_the_same_bytes() -> None:
    assert take(FIGURE) == take(FIGURE)


def test_pictures_fetch_nothing() -> None:
    root = ET.fromstring(svg(take(FIGURE).wide))
    links = [value for node in root.iter() for key, value in node.attrib.items() if key.endswith("href")]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not [node for node in root.iter() if node.tag.endswith("script")]


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize("screen", ["light", "dark"])
def test_colours_stand_out_from_the_page(screen: str) -> None:
    swap = DARK if screen == "dark" else {}
    paper = luminance(swap.get(PAPER, PAPER))
    for colour, least in [(INK, 7.0), (MUTED, 4.5), *((colour, 3.0) for colour in COLOURS.values())]:
        lighter, darker = sorted((luminance(swap.get(colour, colour)), paper), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= least, (colour, screen)


def test_no_two_colours_to_swap_are_equal() -> None:
    assert not set(DARK) & set(DARK.values()), "a swapped colour would be swapped again"
