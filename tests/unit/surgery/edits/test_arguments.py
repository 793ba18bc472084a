"""A module that takes, of what it is given for each head, what is for the heads left."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn

from headscope.surgery.edits.arguments import TakeHeads
from headscope.surgery.edits.base import apply_edits, edits_from_json
from headscope.surgery.forwards import replace_forward, run_inner


class Given(nn.Module):
    def forward(self, x, bias=None, *, slopes=None):
        return x, bias, slopes


KEPT, GONE = [0, 2, 3], 1
BIAS = torch.arange(4.0).view(1, 4, 1, 1).expand(2, 4, 5, 5)  # each number says whose it is


def taking(*given):
    module = Given()
    apply_edits([TakeHeads("", given, (0, 2, 3), 4)], module)
    return module


def test_an_axis_of_heads_by_position_and_by_name():
    module = taking(("bias", 1, False), ("slopes", 0, False))
    slopes = torch.arange(4.0)
    for out in (module(torch.ones(1), BIAS, slopes=slopes), module(torch.ones(1), bias=BIAS, slopes=slopes)):
        assert out[1].shape == (2, 3, 5, 5)
        assert out[1][0, :, 0, 0].tolist() == out[2].tolist() == KEPT
    assert module(torch.ones(1))[1] is None
    assert module(torch.ones(1), torch.zeros(2, 1, 5, 5))[1].shape == (2, 1, 5, 5), "one for all heads is left alone"


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("heads_first", [False, True])
def test_heads_and_rows_on_one_axis(rows, heads_first):
    whole = torch.arange(4.0).repeat_interleave(rows) if heads_first else torch.arange(4.0).repeat(rows)
    out = taking(("bias", 0, heads_first))(torch.ones(1), whole.view(-1, 1, 1))[1].flatten().tolist()
    assert out == ([h for h in KEPT for _ in range(rows)] if heads_first else KEPT * rows)


def test_it_goes_wherever_the_module_goes_and_keeps_what_runs_there():
    module = Given()
    replace_forward(module, _doubled)
    apply_edits([TakeHeads("", (("bias", 1, False),), (0, 2, 3), 4)], module)
    for one in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        x, bias, _ = one(torch.ones(1), BIAS)
        assert x.item() == 2
        assert bias.shape[1] == 3
    apply_edits([TakeHeads("", (("bias", 1, False),), (0, 2), 4)], module)
    assert module(torch.ones(1), BIAS)[1].shape[1] == 2
    assert module.forward.args[1].func is _doubled, "a second cut takes the place of the first"
    edits = (TakeHeads("", (("bias", 1, True),), (0, 2), 4),)
    assert edits_from_json(json.loads(json.dumps([edit.to_json() for edit in edits]))) == edits


def _doubled(module, inner, x, *rest, **more):
    return run_inner(module, inner, 2 * x, *rest, **more)
