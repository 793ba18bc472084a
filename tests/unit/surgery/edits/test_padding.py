"""Layers that are smaller, and put zeros (or nothing) in the place of what is gone."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from headscope.errors import SurgeryError
from headscope.surgery.edits.base import apply_edits, edits_from_json
from headscope.surgery.edits.padding import KeepHeads, PadOutput, PickInput

LAYERS = {
    "linear": (lambda: nn.Linear(6, 8), lambda: nn.Linear(8, 5), -1),
    "conv of transformers": (lambda: Conv1D(8, 6), lambda: Conv1D(5, 8), -1),
    "conv": (lambda: nn.Conv1d(6, 8, 1), lambda: nn.Conv1d(8, 5, 1), 1),
    "no bias": (lambda: nn.Linear(6, 8, bias=False), lambda: nn.Linear(8, 5, bias=False), -1),
}


def given(features, axis):
    return torch.randn(2, features, 3) if axis == 1 else torch.randn(2, 3, features)


def zeroed(x, gone, axis):
    return x.index_fill(axis, torch.tensor(gone), 0.0)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("gone", [[2, 3], [0, 1], [6, 7], [0, 1, 4, 5], list(range(8))])
def test_what_stands_between_them_sees_the_sizes_that_it_knows(name, gone):
    torch.manual_seed(0)
    make, read, axis = LAYERS[name]
    first, last = make(), read()
    for layer in (first, last):
        nn.init.normal_(layer.weight)
    left = [place for place in range(8) if place not in gone]
    keep = tuple((place, place + 1) for place in left)
    x, z = given(6, axis), given(8, axis)
    want = zeroed(first(x), gone, axis), last(zeroed(z, gone, axis))
    sizes = first.weight.numel(), last.weight.numel()
    apply_edits([PadOutput("", keep, 8)], first)
    apply_edits([PickInput("", keep, 8)], last)
    for one, out in zip((first(x), last(z)), want, strict=True):
        torch.testing.assert_close(one, out)
    assert (first.weight.numel(), last.weight.numel()) == tuple(size * len(left) // 8 for size in sizes)
    told = next(getattr(first, count) for count in ("out_features", "nf", "out_channels") if hasattr(first, count))
    assert told == 8, "whoever asks is told what leaves it"


def test_a_second_cut_goes_on_from_the_first():
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 8), torch.randn(2, 6)
    want = zeroed(layer(x), [2, 3, 6], -1)
    apply_edits([PadOutput("", ((0, 2), (4, 8)), 8), PadOutput("", ((0, 6), (7, 8)), 8)], layer)
    torch.testing.assert_close(layer(x), want)
    assert layer.weight.shape == (5, 6)
    with pytest.raises(SurgeryError, match="stands for 8 output features; expected 9"):
        apply_edits([PadOutput("", ((0, 2),), 9)], layer)


def test_it_goes_wherever_the_layer_goes():
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 8), torch.randn(2, 6)
    apply_edits([PadOutput("", ((0, 2), (4, 8)), 8)], layer)
    want = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), nn.Sequential(layer)):
        assert torch.equal(other(x), want)
    twin = copy.deepcopy(layer)
    twin.weight.data.zero_()
    assert torch.equal(layer(x), want), "a copy runs its own weights"
    assert layer.double()(x.double()).dtype == torch.float64
    out = layer.float()(x)
    out.square().sum().backward()
    assert layer.weight.grad.abs().sum() > 0


def test_they_read_back_as_they_were():
    edits = (PadOutput("q", ((0, 2),), 8), PickInput("o", (), 8), KeepHeads("", (0, 2), 4, ("q",)))
    assert edits_from_json(json.loads(json.dumps([edit.to_json() for edit in edits]))) == edits
