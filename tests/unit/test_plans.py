import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.errors import PlanError, UnknownNameError
from headscope.heads import HeadId
from headscope.plans import Plan, Record
from headscope.sites import Anatomy, Site, Slices


def site(layer, n_heads=4):
    rows = tuple((2 * head, 2 * head + 1) for head in range(n_heads))
    part = Slices(f"h.{layer}.q", rows)
    return Site(
        layer=layer, kind="self", block=layer, module_name=f"h.{layer}", call=0, unit=f"h.{layer}", route="registry",
        n_heads=n_heads, n_kv_heads=n_heads, n_value_heads=n_heads, head_dim=2, value_dim=2, scaling=0.5,
        head_ids=tuple(range(n_heads)), kv_of_query=tuple(range(n_heads)), query=(part,), key=(part,), value=(part,),
        output=Slices(f"h.{layer}.o", rows),
    )  # fmt: skip


ANATOMY = Anatomy("Small", (site(0), site(1)), "0123abcd")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=50)
@given(
    heads=st.sets(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=12),
    model=st.none() | st.text(max_size=16),
    text=st.text(max_size=30),
    facts=st.dictionaries(st.text(max_size=8), json_values, max_size=4),
)
def test_a_plan_read_back_is_the_same_plan(heads, model, text, facts):
    plan = Plan(heads, model=model, model_class=text, score=text[::-1], reason=text, facts=facts)
    assert Plan.from_json(plan.to_json()) == plan
    assert list(plan.heads) == sorted(plan.heads)


def test_tuples_among_the_facts_are_lists_from_the_start():
    assert Plan([(0, 1)], facts={"shape": (2, 3)}).facts == {"shape": [2, 3]}


def test_the_file_has_a_head_a_line_by_its_name():
    lines = Plan([(1, 0), "L0H3", HeadId(1, 2)], reason="by hand").to_json().splitlines()
    assert [line.strip(' ,"') for line in lines if "L" in line] == ["L0H3", "L1H0", "L1H2"]
    assert ' "reason": "by hand",' in lines


@pytest.mark.parametrize(
    "heads",
    ["L2H1", ["L2H1"], [(2, 1)], [HeadId(2, 1)], (head for head in ["L2H1"])],
    ids=["a name", "names", "pairs", "ids", "a generator"],
)
def test_any_spelling_of_heads_makes_a_plan(heads):
    assert Plan.of(heads).heads == (HeadId(2, 1),)


def test_a_plan_is_a_plan_already():
    plan = Plan(["L0H0"], reason="why")
    assert Plan.of(plan) is plan


def test_a_head_given_twice_is_refused_by_name():
    with pytest.raises(PlanError, match=r"L0H1: given twice"):
        Plan(["L0H1", (0, 1), "L1H1"])


def test_what_is_no_head_is_refused():
    with pytest.raises(UnknownNameError, match="'L0' is not a head"):
        Plan(["L0"])


def test_facts_that_are_no_json_are_refused():
    with pytest.raises(PlanError, match="must be JSON values"):
        Plan(["L0H1"], facts={"model": object()})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "no JSON"),
        ("[1]", "no headscope_plan entry"),
        ('{"headscope_plan": 2}', "version 2"),
        ('{"headscope_plan": 1, "heads": ["L0H1"]}', "incomplete: KeyError"),
        ('{"headscope_plan": 1, "heads": 3}', "incomplete: TypeError"),
        ('{"headscope_plan": 1, "heads": ["L0Hx"]}', "names what is no head: .*L0Hx"),
    ],
)
def test_what_is_no_plan_is_refused(text, why):
    with pytest.raises(PlanError, match=why):
        Plan.from_json(text)


def test_a_plan_fits_the_model_it_was_made_for_or_any_if_it_names_none():
    Plan(["L1H3"], model="0123abcd").check(ANATOMY)
    Plan(["L1H3"]).check(ANATOMY)


def test_a_plan_for_another_model_is_refused():
    with pytest.raises(PlanError, match=r"made for another model: for Other ffff, and this Small is 0123abcd"):
        Plan(["L1H3"], model="ffff", model_class="Other").check(ANATOMY)


@pytest.mark.parametrize(
    ("head", "why"), [("L1H4", r"layer 1 has 4 heads \(L1H0, L1H1, L1H2, L1H3\)"), ("L2H0", "attention layers: 0, 1")]
)
def test_heads_that_do_not_exist_are_refused(head, why):
    with pytest.raises(PlanError, match=why):
        Plan(["L0H0", head]).check(ANATOMY)


def test_on_a_pruned_model_plans_for_the_original_fit_and_gone_heads_do_not():
    record = Record(ANATOMY, (HeadId(0, 1),), ())
    now = Anatomy("Small", ANATOMY.sites, "later")
    Plan(["L0H0"], model="0123abcd").check(now, record)
    Plan(["L0H0"], model="later").check(now, record)
    with pytest.raises(PlanError, match="L0H1 is gone already"):
        Plan(["L0H0", "L0H1"]).check(now, record)


def test_a_record_read_back_is_the_same_record():
    record = Record(ANATOMY, (HeadId(0, 1), HeadId(1, 0)), ({"edit": "slice_output", "keep": [[0, 2]]},))
    assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record
