"""The curve of cost against heads removed: read, saved, and planned from."""

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from headscope.errors import InputError, PlanError
from headscope.heads import HeadId
from headscope.planning import plan
from headscope.planning.removal import Removal, ladder
from headscope.planning.rises import Rise
from headscope.plans import Plan
from headscope.tables import HeadTable, PairTable
from tests.unit.reporting.synthetic import analysis

ORDER = tuple(HeadId(0, head) for head in range(8))


def made(**changes):
    costs = pd.DataFrame(
        {
            "heads": [1, 2, 4, 8],
            "chosen_cost": [0.1, 0.2, 0.8, 4.0],
            "chosen_low": [0.0, 0.1, 0.6, 3.0],
            "chosen_high": [0.2, 0.3, 1.0, 5.0],
            "cost": [0.2, 0.4, 1.0, 6.0],
            "low": [0.1, 0.3, 0.8, 5.0],
            "high": [0.3, 0.5, 1.2, 7.0],
        }
    )
    fields = {"order": ORDER, "costs": costs, "metric": "loss", "unit": "nats/token", "is_distance": False}
    return Removal(**{**fields, "intact": 20.0, **changes})


@pytest.mark.parametrize("n", [1, 2, 5, 72, 1000])
def test_a_ladder_begins_with_one_head_and_ends_with_all(n):
    rungs = ladder(n)
    assert (rungs[0], rungs[-1]) == (1, n)
    assert rungs == sorted(set(rungs))
    assert all(b <= 1.5 * a + 1 for a, b in pairwise(rungs))


@pytest.mark.parametrize(
    ("most", "n"), [(0.0, 0), (0.19, 0), (0.2, 1), (0.3, 2), (0.64, 2), (0.65, 3), (1.0, 4), (9, 8)]
)
def test_the_upper_end_where_heads_were_chosen_decides(most, n):
    assert made().within(most) == n


def test_a_size_beyond_one_that_is_too_dear_counts_if_it_was_measured_cheaper():
    costs = made().costs.assign(chosen_high=[0.2, 9.0, 0.4, 5.0])
    assert made(costs=costs).within(0.5) == 4
    assert made(costs=costs.assign(chosen_high=[math.nan] * 4)).within(0.5) == 0


def test_between_measured_sizes_costs_are_interpolated_and_say_so():
    assert tuple(made().cost(2)) == (0.4, 0.3, 0.5, False)
    assert tuple(made().cost(3)) == pytest.approx((0.7, 0.55, 0.85, True))
    assert tuple(made().cost(0)) == (0.0, 0.0, 0.0, False)
    with pytest.raises(PlanError, match="8 heads that can be removed, not 9"):
        made().cost(9)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    removal = made(facts={"documents": 3})
    removal.save(tmp_path)
    again = Removal.load(tmp_path)
    pd.testing.assert_frame_equal(again.costs, removal.costs)
    for name in ("order", "metric", "unit", "is_distance", "intact", "facts"):
        assert getattr(again, name) == getattr(removal, name)


@pytest.mark.parametrize(
    ("given", "intact", "distance", "most"),
    [
        ("1%", 3.0, False, 0.03),
        ("1%", 0.0, True, 0.01),
        (0.5, 3.0, False, 0.5),
        ("0.5", 3.0, False, 0.5),
        (0, 3, False, 0),
    ],
)
def test_budgets_as_people_write_them(given, intact, distance, most):
    assert Rise.read(given).above(intact, distance) == pytest.approx(most)


@pytest.mark.parametrize("given", ["-1%", -0.1, "a", math.nan, math.inf, "", True, None])
def test_what_is_no_budget_is_refused(given):
    with pytest.raises(InputError, match="max_loss_rise is a number"):
        Rise.read(given)


def test_a_plan_from_an_analysis_is_a_prefix_with_its_cost():
    run = analysis(n_layers=4, n_heads=8)
    for settings, n in (({"heads": 3}, 3), ({"share": 0.5}, 16), ({}, len(run.verdict.chosen)), ({"heads": 0}, 0)):
        found = plan(run, **settings)
        assert set(found.heads) == set(run.removal.first(n))
        assert (found.model, found.score) == (run.anatomy.fingerprint, "ablation")
        assert found.facts["cost"] == pytest.approx(run.removal.cost(n).value)
        assert Plan.from_json(found.to_json()) == found
    most = run.removal.costs["chosen_high"].iloc[2]
    assert len(plan(run, max_loss_rise=float(most)).heads) >= run.removal.sizes[2]
    assert "interpolated" in plan(run, heads=5).reason
    assert "interpolated" not in plan(run, heads=4).reason


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"heads": 3, "share": 0.2}, "share and heads each say how many"),
        ({"heads": 3, "max_loss_rise": "1%"}, "max_loss_rise and heads"),
        ({"heads": -1}, "whole number"),
        ({"heads": 2.0}, "whole number"),
        ({"heads": True}, "whole number"),
        ({"share": "20%"}, "share is the part"),
        ({"heads": 99}, "99 heads cannot go: 24"),
        ({"share": 1.0}, "less than 1"),
        ({"share": 0.2, "uniform": True}, "for tables of scores"),
        ({"keep_per_layer": 2}, "for tables of scores"),
    ],
)
def test_plans_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(PlanError, match=words):
        plan(analysis(n_layers=4, n_heads=6), **settings)


@pytest.mark.parametrize("source", ["report", None, 3, PairTable])
def test_what_knows_no_costs_is_refused(source):
    with pytest.raises(PlanError, match=r"made from an analysis .*Analysis.load.* or from a table of scores"):
        plan(source, heads=2)


def test_a_table_of_scores_knows_no_budget():
    nan = np.full(8, np.nan)
    table = HeadTable("ablation", "nats", ORDER, np.arange(8.0), nan, nan)
    for settings in ({"heads": 2}, {"max_loss_rise": "1%"}):
        with pytest.raises(PlanError, match="plan from an analysis"):
            plan(table, **settings)
    assert len(plan(table).heads) == 2  # 0.3 of 8


def test_too_little_text_stands_in_the_plan():
    run = analysis(n_layers=4, n_heads=6, too_little=("Too little text.",))
    assert plan(run, heads=1).facts["warnings"] == ["Too little text."]
    assert "warnings" not in plan(analysis(), heads=1).facts
