"""The share planner where query heads share key heads: a uniform plan leaves each layer even."""

import math

import numpy as np
import pytest

from headscope.errors import PlanError
from headscope.heads import HeadId
from headscope.planning import plan
from headscope.tables import HeadTable


def table(scores, key_heads=None):
    heads = tuple(HeadId(layer, head) for layer, own in enumerate(scores) for head in range(len(own)))
    flat = np.array([score for own in scores for score in own], dtype=float)
    nothing = np.full(len(flat), math.nan)
    return HeadTable("ablation", "", heads, flat, nothing, nothing, {"key_heads": key_heads} if key_heads else {})


SCORES = [[1, 2, 3, 4, 5, 6, 7, 8], [1, 1, 1, 1, 9, 8, 7, 6]]
GROUPS = {"0": [0, 0, 0, 0, 1, 1, 1, 1], "1": [0, 0, 0, 0, 1, 1, 1, 1]}


def told(made):
    return [str(head) for head in made.heads]


def test_as_many_go_from_each_key_head():
    even = plan(table(SCORES, GROUPS), share=0.25, uniform=True)
    assert told(even) == ["L0H0", "L0H4", "L1H0", "L1H7"]
    assert told(plan(table(SCORES), share=0.25, uniform=True)) == ["L0H0", "L0H1", "L1H0", "L1H1"]
    assert len(plan(table(SCORES, GROUPS), share=0.3, uniform=True).heads) == 4, (
        "2.4 of eight heads are one of each four"
    )
    assert len(plan(table(SCORES, GROUPS), share=0.3).heads) == 5, "without it nothing changes"


def test_layers_without_groups_lose_as_many():
    made = plan(table(SCORES, {"0": GROUPS["0"]}), share=0.25, uniform=True)
    assert told(made) == ["L0H0", "L0H4", "L1H0", "L1H1"]


def test_a_share_of_less_than_one_of_each_is_refused_with_the_least():
    with pytest.raises(PlanError, match=r"less than one query head of each key head.*at least 0\.125"):
        plan(table(SCORES, GROUPS), share=0.1, uniform=True)
    assert len(plan(table(SCORES, GROUPS), share=0.125, uniform=True).heads) == 4
    assert plan(table(SCORES, GROUPS), share=0.0, uniform=True).heads == ()


def test_heads_without_a_score_are_not_made_up_for_elsewhere():
    scores = [[1, 2, 3, 4, math.nan, math.nan, math.nan, math.nan], SCORES[1]]
    with pytest.raises(PlanError, match="some key head is read by fewer heads with a score"):
        plan(table(scores, GROUPS), share=0.25, uniform=True)
