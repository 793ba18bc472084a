"""Every planner keeps its promises on any table of scores."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.errors import PlanError, UnknownNameError
from headscope.heads import HeadId
from headscope.planning import PLANNERS, plan
from headscope.plans import Plan
from headscope.tables import HeadTable


def table(score, sizes=None, name="ablation", **facts):
    """Scores of layers with as many heads as `sizes` says."""
    heads = tuple(HeadId(layer, head) for layer, size in enumerate(sizes or [len(score)]) for head in range(size))
    nan = np.full(len(heads), np.nan)
    return HeadTable(name, "nats/token", heads, np.asarray(score, dtype=float), nan, nan, facts)


def by_layer(heads):
    return {layer: sum(head.layer == layer for head in heads) for layer in {head.layer for head in heads}}


@pytest.fixture(params=sorted(PLANNERS))
def planner(request):
    return request.param


@st.composite
def tables(draw):
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    values = st.sampled_from([0.0, -1.0, 0.5, 2.0, math.nan, math.inf])  # ties and gaps on purpose
    return table(draw(st.lists(values, min_size=sum(sizes), max_size=sum(sizes))), sizes)


@settings(deadline=None, max_examples=150)
@given(scores=tables(), share=st.floats(0, 0.99), keep=st.integers(0, 3))
def test_as_many_as_asked_or_a_refusal_that_names_what_is_possible(scores, share, keep):
    n = len(scores.heads)
    rated = [head for head, score in zip(scores.heads, scores.score, strict=True) if not math.isnan(score)]
    sizes = by_layer(scores.heads)
    most = sum(min(by_layer(rated).get(layer, 0), max(size - keep, 0)) for layer, size in sizes.items())
    for name in PLANNERS:
        try:
            chosen = plan(scores, share=share, keep_per_layer=keep, planner=name).heads
        except PlanError as error:
            assert math.floor(share * n + 0.5) > most
            largest = float(str(error).split("largest share possible is ")[1].split()[0])
            assert len(plan(scores, share=largest, keep_per_layer=keep, planner=name).heads) == most
            continue
        assert len(chosen) == math.floor(share * n + 0.5)
        assert set(chosen) <= set(rated), "a head without a score is never removed"
        assert all(sizes[layer] - gone >= min(keep, sizes[layer]) for layer, gone in by_layer(chosen).items())
        assert chosen == plan(scores, share=share, keep_per_layer=keep, planner=name).heads


def test_settings_out_of_range_are_refused(planner):
    scores = table([1.0, 2.0, 3.0])
    for share in (-0.1, 1.0, math.nan):
        with pytest.raises(PlanError, match="share is the part of all heads to remove"):
            plan(scores, share=share, planner=planner)
    for keep in (-1, 1.5, True):
        with pytest.raises(PlanError, match="keep_per_layer is a number of heads"):
            plan(scores, keep_per_layer=keep, planner=planner)


def test_uniform_takes_as_many_from_each_layer(planner):
    scores = table([*range(4), *range(100, 104), *range(50, 54)], [4, 4, 4])
    assert by_layer(plan(scores, share=0.5, uniform=True, planner=planner).heads) == {0: 2, 1: 2, 2: 2}


def test_the_plan_says_where_it_comes_from(planner):
    scores = table([3.0, 1.0, 2.0, 4.0], fingerprint="0123", model_class="Small", documents=7)
    made = plan(scores, share=0.5, planner=planner)
    assert (made.model, made.model_class, made.score) == ("0123", "Small", "ablation")
    assert made.facts["planner"] == planner
    assert made.facts["measured"] == {"documents": 7}
    assert "2 of 4 heads" in made.reason
    assert Plan.from_json(made.to_json()) == made


def test_replaceability_alone_is_no_reason():
    with pytest.raises(PlanError, match="plan by 'ablation'"):
        plan(table([0.1, 0.9], name="replaceability"), share=0.5)


def test_an_unknown_planner_is_named():
    with pytest.raises(UnknownNameError, match="did you mean 'share'"):
        plan(table([0.1, 0.9]), planner="shaer")


def test_share_takes_the_lowest_and_breaks_ties_by_number():
    scores = table([5, 1, 1, 1, math.nan, 0, 7, 1], [4, 4])
    assert [str(head) for head in plan(scores, share=0.5).heads] == ["L0H1", "L0H2", "L0H3", "L1H1"]


def test_share_passes_over_a_layer_that_can_lose_no_more():
    scores = table([0, 1, 2, 3, 10, 11, 12, 13], [4, 4])
    assert by_layer(plan(scores, share=0.5, keep_per_layer=2).heads) == {0: 2, 1: 2}
    assert by_layer(plan(scores, share=0.5, keep_per_layer=0).heads) == {0: 4}


def test_share_counts_by_rounding_half_up():
    assert [len(plan(table(range(10)), share=share).heads) for share in (0, 0.04, 0.05, 0.25)] == [0, 0, 1, 3]


def test_uniform_out_of_reach_names_the_layer():
    with pytest.raises(PlanError, match=r"6 of 8 heads can go.*layer 0 can lose 3"):
        plan(table(range(8), [4, 4]), share=0.9, uniform=True)
