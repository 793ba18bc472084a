"""Which redundant heads can go together: a stand-in stays, and what is taken stays within the budget."""

import numpy as np
import pytest
import torch

from headscope.heads import HeadId
from headscope.planning import choosing
from headscope.planning.choosing import choose_redundant, within_budget
from headscope.planning.quadrants import draw_lines, quadrants
from headscope.scoring.scores.replaceability import rate_replaceability
from headscope.tables import HeadTable
from tests.rows import in_blocks
from tests.strategies import make_effects, weights_for


def turned(rows, rng):
    """The same head in other coordinates."""
    return rows @ np.linalg.qr(rng.standard_normal((rows.shape[-1],) * 2))[0]


def chosen(layers, importance):
    """The heads of layers of made-up rows that can go, and the quadrant of each; importance by layer."""
    moments = {layer: in_blocks(rows) for layer, rows in enumerate(layers)}
    weights = {layer: weights_for(layer, *rows.shape[1:]) for layer, rows in enumerate(layers)}
    heads = tuple(HeadId(layer, head) for layer, rows in enumerate(layers) for head in range(rows.shape[1]))
    effects = np.concatenate([np.asarray(own, dtype=float) for own in importance])
    shares = rate_replaceability(moments, weights).score
    nothing = np.full(len(heads), np.nan)
    scores = {
        "ablation": HeadTable("ablation", "nats", heads, effects, nothing, nothing),
        "replaceability": HeadTable("replaceability", "", heads, shares, nothing, nothing),
    }
    lines = draw_lines(effects)
    names = dict(zip(map(str, heads), quadrants(effects, shares, lines), strict=True))
    return [str(head) for head in choose_redundant(scores, moments, weights, lines)], names


def independent(rng, n_heads, n_tokens=900, dim=3):
    return rng.standard_normal((n_tokens, n_heads, dim))


def test_of_two_copies_one_goes_and_heads_after_it_still_have_their_turn():
    rng = np.random.default_rng(0)
    rows = independent(rng, 8)
    rows[:, 1], rows[:, 3] = turned(rows[:, 0], rng), turned(rows[:, 2], rng)
    found, names = chosen([rows], [[0.1, 0.2, 0.3, 0.4, 1, 2, 3, 4]])
    assert [names[f"L0H{head}"] for head in range(4)] == ["redundant"] * 4, "the case is not trivial"
    assert found == ["L0H0", "L0H2"]


def test_a_head_is_passed_over_if_one_taken_before_it_would_fall():
    """H1 stays restored without H0, by H2; but H0 was restored by H1, and H2 alone does not give it back."""
    rng = np.random.default_rng(0)
    rows = independent(rng, 5, n_tokens=4000)
    rows[:, 1] = np.sqrt(0.75) * rows[:, 2] + np.sqrt(0.25) * rows[:, 1]
    rows[:, 0] = np.sqrt(0.85) * rows[:, 1] + np.sqrt(0.15) * rows[:, 0]
    found, names = chosen([rows], [[0.1, 0.2, 1, 2, 0.3]])
    assert (names["L0H0"], names["L0H1"]) == ("redundant", "redundant"), "the case is not trivial"
    assert found == ["L0H0"]
    reversed_order, _ = chosen([rows], [[0.2, 0.1, 1, 2, 0.3]])
    assert reversed_order == ["L0H1"]


def test_least_important_first_whatever_the_layer_and_only_the_redundant():
    rng = np.random.default_rng(0)
    layers = [independent(rng, 4), independent(rng, 4)]
    for rows in layers:
        rows[:, 1] = turned(rows[:, 0], rng)
    found, names = chosen(layers, [[0.2, 6.5, 5.0, 0.01], [0.1, 7.0, 8.0, 9.0]])
    assert names["L0H3"] == "idle"
    assert names["L0H1"] == "backed up"
    assert found == ["L1H0", "L0H0"]


@pytest.mark.parametrize(("most", "expected"), [(0.05, 0), (0.1, 1), (0.25, 2), (10.0, 3)])
def test_as_many_as_the_budget_allows_and_no_more(monkeypatch, most, expected):
    ranked = [HeadId(0, 0), HeadId(0, 1), HeadId(1, 0)]
    asked = []

    def cost(model, batches, metric, anatomy, groups):
        (group,) = groups
        asked.append(tuple(group))
        return make_effects(np.full((1, 4), 0.1 * len(group)), [0, 1, 2, 3])

    monkeypatch.setattr(choosing, "group_effects", cost)
    taken = within_budget(torch.nn.Identity(), [], None, None, ranked, most)
    assert taken == tuple(ranked[:expected])
    assert asked == [tuple(ranked[:size]) for size in range(1, min(expected + 1, 3) + 1)], (
        "all of them together, each time"
    )
