import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from headscope.errors import SurgeryError
from headscope.surgery.edits.attributes import SetAttribute
from headscope.surgery.edits.base import apply_edits, edits_from_json, runs
from headscope.surgery.edits.emptying import EmptyAttention
from headscope.surgery.edits.grouping import MapGroups
from headscope.surgery.edits.repairing import RepairSizes
from headscope.surgery.edits.slicing import SliceInput, SliceOutput

EDITS = (
    SliceOutput("h.0.q", ((0, 8), (16, 24)), 32),
    SliceInput("h.0.o", (), 32),
    SetAttribute("h.0", "n_head", 3, 4),
    MapGroups("h.1", (0, 0, 1)),
    EmptyAttention("h.2", "o", ("output", "map"), True),
    EmptyAttention("h.3", None, None, False),
    RepairSizes("", ((32, 24), (10, 8))),
)


@settings(deadline=None)
@given(st.sets(st.integers(0, 30)))
def test_runs_hold_exactly_the_indices(indices):
    made = runs(indices)
    assert [i for start, stop in made for i in range(start, stop)] == sorted(indices)
    assert all(stop < start for (_, stop), (start, _) in pairwise(made)), "as few as can be"


def test_edits_read_back_are_the_same_edits():
    text = json.dumps([edit.to_json() for edit in EDITS])
    assert edits_from_json(json.loads(text)) == EDITS


def test_names_are_relative_within_a_module_above():
    assert SetAttribute("model.h.0.attn", "n", 1, 2).within("model.h.0").module == "attn"
    assert SetAttribute("model.h.0", "n", 1, 2).within("model.h.0").module == ""
    assert SetAttribute("attn", "n", 1, 2).within("").module == "attn"


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 10), lambda: Conv1D(10, 6), lambda: nn.Conv1d(6, 10, 1)])
def test_slicing_keeps_rows_of_weight_and_bias_and_the_counts(make):
    layer = make()
    nn.init.normal_(layer.bias)
    x = torch.randn(3, 6) if not isinstance(layer, nn.Conv1d) else torch.randn(3, 6, 1)
    kept = [0, 1, 2, 7, 8]
    want = layer(x)[:, kept]
    apply_edits([SliceOutput("", ((0, 3), (7, 9)), 10)], layer)
    torch.testing.assert_close(layer(x), want)
    assert layer.weight.numel() == 30
    assert 5 in (getattr(layer, name, None) for name in ("out_features", "nf", "out_channels"))


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 10), lambda: Conv1D(10, 6)])
def test_slicing_keeps_columns_and_the_whole_bias(make):
    layer = make()
    nn.init.normal_(layer.bias)
    x = torch.randn(3, 6)
    x[:, [2, 3]] = 0
    want = layer(x)
    apply_edits([SliceInput("", ((0, 2), (4, 6)), 6)], layer)
    torch.testing.assert_close(layer(x[:, [0, 1, 4, 5]]), want)
    assert 4 in (getattr(layer, name, None) for name in ("in_features", "nx"))


def test_frozen_weights_stay_frozen():
    layer = nn.Linear(4, 4).requires_grad_(False)
    apply_edits([SliceOutput("", ((0, 2),), 4)], layer)
    assert not layer.weight.requires_grad


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (SliceOutput("0", ((0, 2),), 5), "0 has 4 output features; expected 5"),
        (SliceInput("0", ((0, 2),), 5), "0 has 3 input features; expected 5"),
        (SliceOutput("7", ((0, 2),), 4), "Sequential has no module '7'"),
        (SetAttribute("0", "n_head", 3, 4), "0.n_head is None; expected 4"),
        (SliceOutput("1", ((0, 1),), 4), "cannot be sliced"),
        (MapGroups("0", (0,)), "has no config of its own to change"),
    ],
)
def test_an_edit_made_for_another_model_is_refused(edit, why):
    model = nn.Sequential(nn.Linear(3, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(SurgeryError, match=why):
        apply_edits([edit], model)


def test_weights_that_modules_have_in_common_stay_so_where_both_are_cut_alike():
    both = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    both[1].weight = both[0].weight
    edits = [SliceOutput(place, ((0, 2),), 4) for place in ("0", "1")]
    apply_edits(edits, both)
    assert both[1].weight is both[0].weight
    assert both[1].bias is not both[0].bias
    apply_edits([SliceOutput("0", ((0, 1),), 2)], both)
    assert [tuple(layer.weight.shape) for layer in both] == [(1, 4), (2, 4)]
    apart = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    apart[1].load_state_dict(apart[0].state_dict())
    apply_edits(edits, apart)
    assert apart[1].weight is not apart[0].weight, "equal, and never one"
