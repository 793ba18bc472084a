"""As many heads as a budget allows, from all heads in one order; other sets of the same layers; how stable it is."""

import itertools

import numpy as np
import pytest
from torch import nn

from headscope.anatomy import discover
from headscope.effects.sweep import Effects, group_effects, head_effects
from headscope.heads import HeadId
from headscope.planning import choosing
from headscope.planning.choosing import measure_removal, random_sets, stability
from headscope.planning.rises import Rise
from headscope.scoring.scores import SCORES
from headscope.uncertainty.intervals import mean_spread
from tests.models import build, make_batches
from tests.strategies import make_effects
from tests.unit.reporting.synthetic import anatomy


@pytest.fixture
def sweep(monkeypatch):
    """Removing n heads costs `upper(n)` in every row but for a spread of 1; what was asked is noted."""
    asked = []

    def install(cost):
        def measure(model, batches, metric, where, groups, progress=None):
            asked.extend(len(group) for group in groups)
            values = np.array([[cost(len(group)) - 1, cost(len(group)) + 1] * 2 for group in groups], dtype=float)
            made = make_effects(values, [0, 1, 2, 3])
            return Effects(tuple(map(tuple, groups)), values, *[getattr(made, n) for n in list(vars(made))[2:]])

        monkeypatch.setattr(choosing, "group_effects", measure)
        return asked

    return install


def single(n):
    """Effects of n heads, the last the cheapest."""
    return make_effects(np.repeat(np.arange(n, 0, -1.0)[:, None], 4, axis=1), [0, 1, 2, 3])


HALF = 3.182 * np.sqrt(1 / 3)  # half the interval of two rows at -1 and two at +1: Student's t of 3, standard error


@pytest.mark.parametrize("most", [0, 1, 5, 17, 29, 39, 40])
def test_the_largest_number_whose_upper_end_stays_within(sweep, most):
    asked = sweep(lambda n: 10.0 * n)
    removal = measure_removal(nn.Identity(), [], None, None, single(40), Rise(10.0 * most + 5 + HALF, False))
    assert removal.within(10.0 * most + 5 + HALF) == most
    assert {most, min(most + 1, 40)} - {0} <= set(asked), "the choice and the next one were measured, not read between"
    assert len(asked) == len(set(asked)) <= 20, "each number once"
    assert removal.sizes == sorted(asked)


def test_all_heads_are_candidates_the_cheapest_first(sweep):
    sweep(lambda n: float(n))
    removal = measure_removal(nn.Identity(), [], None, None, single(6), Rise(0.0, False))
    assert [str(head) for head in removal.order] == ["L0H5", "L0H4", "L0H3", "L0H2", "L0H1", "L0H0"]
    assert removal.first(2) == removal.order[:2]


def test_what_is_chosen_is_what_one_pass_a_size_would_choose():
    """On a real model: every number of heads is measured, one by one, and the order is that of the ablation score."""
    model, batches = build("llama"), make_batches("llama")
    where = discover(model)
    from headscope.effects.metrics import Loss

    effects = head_effects(model, batches, Loss(), where)
    removal = measure_removal(model, batches, Loss(), where, effects, Rise.read("1%"))
    rated = SCORES["ablation"]().rate({"effects": effects}).score
    assert list(removal.order) == [effects.heads[place] for place in np.argsort(rated, kind="stable")]
    groups = [removal.order[:n] for n in range(1, len(removal.order) + 1)]
    every = group_effects(model, batches, Loss(), where, groups)
    _, high = mean_spread(every.values, every.block).interval()
    most = removal.allowed("1%")
    assert most == pytest.approx(0.01 * every.intact.mean())
    below = np.flatnonzero(high <= most)
    assert removal.within(most) == (below[-1] + 1 if len(below) else 0)
    known = removal.costs.set_index("heads")["chosen_high"]
    np.testing.assert_allclose(known.to_numpy(), high[known.index.to_numpy() - 1], rtol=1e-12)


def test_stability_is_the_share_that_stays_with_a_tenth_left_out():
    # ten blocks; head 0 is cheapest in all; heads 1 and 2 swap where block 9 is left out
    values = np.tile([[0.0], [1.0], [1.05]], (1, 10))
    values[2, 9] = 2.0
    values[1, 9] = -3.0  # what made head 1 the cheaper one of the two
    values[1, :9] = 1.1
    found = stability(make_effects(values, range(10)), 2)
    assert found == pytest.approx((9 * 1.0 + 0.5) / 10)
    assert np.isnan(stability(make_effects(values[:, :1], [0]), 2))
    assert np.isnan(stability(make_effects(values, range(10)), 0))


def test_random_sets_come_from_the_same_layers_and_are_distinct():
    where = anatomy(3, 6)
    chosen = [HeadId(0, 1), HeadId(0, 2), HeadId(2, 5)]
    drawn = random_sets(where, chosen, 40, seed=3)
    assert len(set(drawn)) == 40
    assert all(sorted(head.layer for head in group) == [0, 0, 2] and len(set(group)) == 3 for group in drawn)
    assert tuple(sorted(chosen)) not in drawn
    assert drawn == random_sets(where, chosen, 40, seed=3) != random_sets(where, chosen, 40, seed=4)


def test_all_other_sets_where_there_are_few():
    where = anatomy(2, 3)
    chosen = [HeadId(0, 1), HeadId(1, 0), HeadId(1, 2)]
    every = {
        (HeadId(0, a), HeadId(1, b), HeadId(1, c)) for a in range(3) for b, c in itertools.combinations(range(3), 2)
    }
    assert set(random_sets(where, chosen, 8)) == every - {tuple(sorted(chosen))}
    assert len(random_sets(where, chosen, 8)) == 8
    assert random_sets(where, where.heads, 5) == []
    assert random_sets(where, [], 5) == []


def test_random_sets_are_drawn_evenly():
    where = anatomy(1, 6)
    counts = np.zeros(6)
    for seed in range(60):
        for group in random_sets(where, [HeadId(0, 0), HeadId(0, 1)], 5, seed):
            counts[[head.head for head in group]] += 1
    assert counts.sum() == 600
    assert abs(counts - 100).max() < 45


def test_a_head_without_an_effect_is_never_among_the_cheapest():
    values = np.repeat([[4.0], [1.0], [2.0], [0.0]], 6, axis=1)
    values[1, 0] = np.nan
    assert stability(make_effects(values, range(6)), 1) == 1.0
