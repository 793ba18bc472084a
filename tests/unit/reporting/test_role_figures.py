"""Maps of roles and of single heads draw what they are given, on the axes that they are given."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure

from headscope.errors import InputError
from headscope.head_roles.tables import MIXED, ROLES, RoleTable
from headscope.heads import HeadId
from headscope.reporting import figures
from headscope.reporting.figures.style import DARK, PAPER, ROLE_COLOURS


def table(roles: dict[str, tuple[str, float]]) -> RoleTable:
    """From {"L0H1": (role, its score)}."""
    numbers = {role: np.full(len(roles), np.nan) for role in ROLES}
    for place, (role, score) in enumerate(roles.values()):
        if role != MIXED:
            numbers[role][place] = score
    heads = tuple(map(HeadId.parse, roles))
    verdicts = tuple(role for role, _ in roles.values())
    return RoleTable(heads, verdicts, numbers, numbers, numbers, numbers, (None,) * len(heads))


FEW = {"L0H0": ("previous", 0.9), "L0H1": (MIXED, 0.0), "L1H0": ("sink", 0.55), "L1H2": ("previous", 0.6)}


def cells(ax: Axes) -> np.ndarray:
    """(row, column, 4) colours."""
    return np.asarray(next(c for c in ax.collections if isinstance(c, QuadMesh)).get_array())


def test_a_cell_has_the_colour_of_the_role_and_the_strength_of_the_score() -> None:
    drawn = cells(figures.role_map(table(FEW)))
    assert drawn.shape == (2, 3, 4)
    for name, (role, score) in FEW.items():
        head = HeadId.parse(name)
        got = drawn[head.layer, head.head]
        assert to_hex(got[:3]) == ROLE_COLOURS[role]
        assert got[3] == pytest.approx(1.0 if role == MIXED else score)
    assert (drawn[0, 2, 3], drawn[1, 1, 3]) == (0, 0), "heads that their layer lacks"


def test_layers_may_run_across() -> None:
    upright, across = figures.role_map(table(FEW)), figures.role_map(table(FEW), layers_across=True)
    np.testing.assert_array_equal(cells(across), cells(upright).transpose(1, 0, 2))
    assert (across.get_xlabel(), across.get_ylabel()) == ("layer", "head")
    assert upright.get_ylim() == (2, 0), "the first layer is on top"


def test_cells_say_role_and_score_where_there_is_room() -> None:
    words = [text.get_text() for text in figures.role_map(table(FEW)).texts]
    assert words == ["prev\n0.90", "–", "sink\n0.55", "prev\n0.60"]
    narrow = figures.canvas(3.7, 1.2)
    assert figures.role_map(table(FEW), ax=narrow).texts[0].get_text() == "prev 0.90"
    tight = figures.canvas(1.2, 1.2)
    assert [text.get_text() for text in figures.role_map(table(FEW), ax=tight).texts] == ["pr", "–", "si", "pr"]
    tiny = figures.canvas(0.5, 1.2)
    assert [text.get_text() for text in figures.role_map(table(FEW), ax=tiny).texts] == ["", "–", "", ""]


def test_the_legend_counts_the_heads_of_each_role() -> None:
    legend = figures.role_map(table(FEW)).get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["previous (2)", "sink (1)", "mixed (1)"]
    assert to_hex(legend.get_patches()[0].get_facecolor()) == ROLE_COLOURS["previous"]


def test_every_role_has_a_colour_of_its_own_on_both_screens() -> None:
    assert set(ROLE_COLOURS) == {*ROLES, MIXED}
    for swap in ({}, DARK):
        shown = {role: swap.get(colour, colour) for role, colour in ROLE_COLOURS.items()}
        assert len(set(shown.values())) == len(ROLE_COLOURS)
        paper = luminance(swap.get(PAPER, PAPER))
        for role in ROLES:
            low, high = sorted((luminance(shown[role]), paper))
            assert (high + 0.05) / (low + 0.05) >= 3.0, f"{role} on {'dark' if swap else 'light'}"


def luminance(colour: str) -> float:
    parts = np.array(to_rgba(colour)[:3])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_thousands_of_heads_fit() -> None:
    many = {f"L{layer}H{head}": (ROLES[(layer + head) % 8], 0.9) for layer in range(48) for head in range(48)}
    ax = figures.role_map(table(many))
    assert ax.collections[0].get_rasterized()
    ax.figure.draw_without_rendering()
    assert ax.figure.get_figheight() < 12


def test_an_example_shows_every_weight_and_leaves_what_is_hidden_empty() -> None:
    pattern = torch.tensor([[1.0, 0, 0], [0.25, 0.75, 0], [0.5, 0.25, 0.25]])
    ax = figures.example_map(pattern, ["<s>", " the\n", " "])
    drawn = ax.images[0].get_array()
    np.testing.assert_array_equal(np.ma.filled(drawn, -1), pattern.masked_fill(pattern == 0, -1).numpy())
    assert ax.images[0].get_clim() == (0, 1)
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["<s>", "the↵", "␣"]


def test_an_example_may_be_of_two_texts_and_of_dollars() -> None:
    ax = figures.example_map(np.full((1, 2), 0.5), ["$1", "$2"], query_tokens=[""])
    ax.figure.draw_without_rendering()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["·"]
    assert [label.get_text() for label in ax.get_xticklabels()] == [r"\$1", r"\$2"]


def test_a_long_text_names_every_second_token() -> None:
    ax = figures.example_map(np.full((100, 100), 0.01), [str(i) for i in range(100)])
    assert [label.get_text() for label in ax.get_xticklabels()] == [str(i) for i in range(0, 100, 2)]
    assert max(ax.figure.get_size_inches()) < 12


def test_tokens_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(2, 2\)"):
        figures.example_map(np.eye(2), ["a", "b", "c"])
    with pytest.raises(InputError, match="one head's map"):
        figures.example_map(np.zeros((3, 2, 2)), ["a", "b"])


@pytest.mark.parametrize("name", ["roles", "example"])
def test_a_figure_draws_on_the_axes_that_it_is_given(name: str) -> None:
    before = dict(mpl.rcParams)
    ax = Figure().subplots(1, 2)[1]
    drawn = {
        "roles": lambda: figures.role_map(table(FEW), ax=ax),
        "example": lambda: figures.example_map(np.eye(2), ["a", "b"], ax=ax),
    }[name]()
    assert drawn is ax
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before
