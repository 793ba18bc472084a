"""Names beside dots: none covers another, or a dot, or leaves the axes."""

from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.text import Annotation

from headscope.reporting.figures import canvas
from headscope.reporting.figures.labels import label_points

RADIUS = 4.0


def axes() -> Axes:
    ax = canvas(4, 3)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.figure.draw_without_rendering()
    return ax


def names_on(ax: Axes) -> list[Annotation]:
    return [text for text in ax.texts if isinstance(text, Annotation) and text.get_text()]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40, unique=True))
def test_no_name_covers_anything(places: list[tuple[float, float]]) -> None:
    ax = axes()
    points = np.array(places)
    written = label_points(ax, points, [(i, f"L{i}H{i}") for i in range(len(points))], radius=RADIUS)
    labels = names_on(ax)
    assert [label.get_text() for label in labels] == written
    boxes = [label.get_window_extent() for label in labels]
    assert not [1 for a, b in combinations(boxes, 2) if a.overlaps(b)]
    frame = ax.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)
    spots = ax.transData.transform(points)
    assert not [1 for box in boxes for spot in spots if box.contains(*spot)]


def test_a_lone_dot_is_named_close_by() -> None:
    ax = axes()
    assert label_points(ax, np.array([[0.5, 0.5]]), [(0, "L3H7")]) == ["L3H7"]
    assert len(ax.texts) == 1, "no line is needed"


def test_in_a_crowd_the_first_is_named_and_some_are_not() -> None:
    points = np.random.default_rng(0).normal(0.5, 0.004, (30, 2))
    ax = axes()
    written = label_points(ax, points, [(i, f"L0H{i}") for i in range(30)])
    assert len(written) < 30


def test_obstacles_stay_free() -> None:
    ax = axes()
    assert label_points(ax, np.array([[0.5, 0.5]]), [(0, "L0H0")], [ax.get_window_extent()]) == []


def test_dots_that_cannot_be_told_apart_share_a_name() -> None:
    ax = axes()
    points = np.array([[0.5, 0.5], [0.5001, 0.5], [0.2, 0.2]])
    names = [(1, "L0H1"), (2, "L0H2"), (0, "L0H0")]
    assert label_points(ax, points, names) == ["L0H1, L0H0", "L0H2"]
