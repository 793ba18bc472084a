"""HeadId, and heads as they are written elsewhere: plain values with a text form that comes back the same."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.errors import HeadscopeError, UnknownNameError
from headscope.heads import HeadId, spell_out

counts = st.integers(0, 10_000)


@settings(deadline=None)
@given(counts, counts)
def test_every_spelling_of_a_head_is_the_same_head(layer: int, head: int) -> None:
    want = HeadId(layer, head)
    assert str(want) == f"L{layer}H{head}"
    for spelling in (want, str(want), f" {want} ", (layer, head), [layer, head], np.array([layer, head])):
        assert HeadId.parse(spelling) == want
    assert HeadId.parse(torch.tensor([layer, head])) == want
    assert type(HeadId.parse(np.array([layer, head])).layer) is int
    assert pickle.loads(pickle.dumps(want)) == want


@settings(deadline=None)
@given(st.lists(st.tuples(counts, counts), min_size=2))
def test_heads_sort_by_layer_then_head(pairs: list[tuple[int, int]]) -> None:
    assert [(head.layer, head.head) for head in sorted(HeadId(*pair) for pair in pairs)] == sorted(pairs)


@pytest.mark.parametrize(
    "wrong",
    ["", "L3", "H7", "3.7", "l3h7", "L3H7 L4H0", "L-1H2", (3,), (3, 7, 1), (3, -1), (3.5, 1), ("3", "7"), ("a", 0),
     (None, 0), (float("nan"), 0), (float("inf"), 0), (True, 0), 7, None],
)  # fmt: skip
def test_what_is_no_head_is_refused_by_name(wrong: object) -> None:
    with pytest.raises(UnknownNameError) as caught:
        HeadId.parse(wrong)
    assert repr(wrong) in str(caught.value)
    assert "L3H7" in str(caught.value)


def test_an_unknown_name_is_a_key_error_with_a_readable_message() -> None:
    with pytest.raises(KeyError) as caught:
        HeadId.parse("nonsense")
    assert isinstance(caught.value, HeadscopeError)
    assert str(caught.value).startswith("'nonsense' is not a head")  # KeyError alone would quote the whole


def test_without_a_model_rows_of_a_mask_are_layers_and_nothing_is_counted_from_the_end() -> None:
    assert [str(head) for head in spell_out(np.array([[True, False, True], [True, True, False]]))] == ["L0H1", "L1H2"]
    with pytest.raises(UnknownNameError, match="not a head"):
        spell_out([(-1, 0)])


@pytest.mark.parametrize("heads", [None, 3, object()])
def test_what_lists_no_heads_is_refused(heads):
    with pytest.raises(UnknownNameError, match=r"names no heads; write them as \['L3H7'"):
        spell_out(heads)
