"""Weights that get smaller without being a linear layer's: parameters and buffers by head, lists with items by head."""

import json

import pytest
import torch
from torch import nn

from headscope.errors import SurgeryError
from headscope.surgery.edits.base import apply_edits, edits_from_json
from headscope.surgery.edits.slicing import DropItems, SliceParameter


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.sinks = nn.Parameter(torch.arange(4.0), requires_grad=False)
        self.register_buffer("slopes", torch.arange(8.0).view(1, 4, 2))
        self.table = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm((4, 3))
        self.norms = nn.ModuleList(nn.LayerNorm(place + 1) for place in range(4))


KEEP = ((0, 1), (2, 4))


def test_parameters_and_buffers_keep_the_places_that_are_left():
    holder = Holder()
    table = holder.table.weight.detach().clone()
    apply_edits(
        [
            SliceParameter("", "sinks", 0, KEEP, 4),
            SliceParameter("", "slopes", 1, KEEP, 4),
            SliceParameter("table", "weight", 1, KEEP, 4),
            SliceParameter("norm", "weight", 0, KEEP, 4),
            SliceParameter("norm", "bias", 0, KEEP, 4),
        ],
        holder,
    )
    assert holder.sinks.tolist() == [0, 2, 3]
    assert not holder.sinks.requires_grad
    assert holder.slopes.tolist() == [[[0, 1], [4, 5], [6, 7]]]
    assert dict(holder.named_buffers()).keys() == {"slopes"}
    assert torch.equal(holder.table(torch.tensor([1])), table[1:2, [0, 2, 3]])
    assert holder.table.embedding_dim == 3
    assert holder.norm(torch.randn(2, 3, 3)).shape == (2, 3, 3)


def test_lists_keep_the_items_that_are_left():
    holder = Holder()
    apply_edits([DropItems("norms", (0, 2, 3), 4)], holder)
    assert [tuple(norm.normalized_shape) for norm in holder.norms] == [(1,), (3,), (4,)]
    assert [name for name, _ in holder.norms.named_children()] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (SliceParameter("", "sinks", 0, KEEP, 5), r"\.sinks is \(4,\); expected 5 on axis 0"),
        (SliceParameter("", "sinks", 1, KEEP, 4), "expected 4 on axis 1"),
        (SliceParameter("", "gone", 0, KEEP, 4), "is missing"),
        (DropItems("norms", (0,), 5), "no nn.ModuleList of 5 items"),
        (DropItems("norm", (0,), 4), "no nn.ModuleList"),
    ],
)
def test_what_was_made_for_another_model_is_refused(edit, why):
    with pytest.raises(SurgeryError, match=why):
        apply_edits([edit], Holder())


def test_they_read_back_as_they_were():
    edits = (SliceParameter("h.0", "sinks", 0, KEEP, 4), DropItems("norms", (0, 2), 4))
    assert edits_from_json(json.loads(json.dumps([edit.to_json() for edit in edits]))) == edits
