"""Where the quadrants meet, and what lies in them."""

import numpy as np
import pytest

from headscope.planning.quadrants import draw_lines, quadrants


def test_quadrants_and_their_lines() -> None:
    importance = np.array([0.1, 0.2, 0.3, 0.4, np.nan])
    replaceability = np.array([0.9, 0.1, 0.9, 0.1, 0.9])
    lines = draw_lines(importance)
    assert lines.importance == pytest.approx(0.25)
    assert quadrants(importance, replaceability, lines) == ["redundant", "idle", "backed up", "needed", ""]
