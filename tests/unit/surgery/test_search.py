import pytest
import torch
from torch import nn

from headscope.anatomy import discover
from headscope.errors import SurgeryError
from headscope.surgery import prune
from headscope.surgery.edits import RepairSizes, SetAttribute
from headscope.surgery.search import _ladder
from tests.unit.surgery.test_change import Attention, change

EXAMPLE = {"x": torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))}


def rungs(**attributes):
    one = change((0, 3), n_kv=6)
    tried = list(_ladder(Attention(**attributes), "h.3", [one], ()))
    return [tuple(e.name if isinstance(e, SetAttribute) else "repair" for e in edits) for edits in tried]


def test_numbers_of_heads_come_first_then_nothing_then_widths_one_by_one_then_repairs():
    got = rungs(n_head=6, split=24, embed=24)
    assert got[:5] == [("n_head",), (), ("n_head", "split"), ("n_head", "embed"), ("n_head", "split", "embed")]
    assert got[5:7] == [("split",), ("embed",)]
    assert got[7:] == [(*edits, "repair") for edits in got[:7]]


def test_without_any_integer_nothing_is_tried_before_repairs():
    assert rungs() == [(), ("repair",)]


def test_at_most_48_trials_with_room_for_repairs():
    got = rungs(n_head=6, **{f"width_{letter}": 24 for letter in "abcdefghijkl"})
    assert len(got) == 48
    assert sum("repair" in edits for edits in got) == 12


def test_groups_settled_elsewhere_are_left_alone():
    one = change((0, 3))
    fixed = [SetAttribute("h.3", "num_key_value_groups", 2, 3)]
    tried = list(_ladder(Attention(num_key_value_groups=3), "h.3", [one], fixed))
    assert not any(isinstance(edit, SetAttribute) for edits in tried for edit in edits)


class Heads(nn.Module):
    """Attention by hand whose shapes are worked out as a subclass likes."""

    def __init__(self):
        super().__init__()
        self.heads, self.wide = 4, 24
        self.q, self.k, self.v = (nn.Linear(24, 24) for _ in range(3))
        self.o = nn.Linear(24, 24)

    def split(self, x):
        raise NotImplementedError

    def forward(self, x):
        q, k, v = (self.split(part(x)).transpose(1, 2) for part in (self.q, self.k, self.v))
        z = (q @ k.transpose(-2, -1) / 6**0.5).softmax(-1) @ v
        return self.o(z.transpose(1, 2).flatten(2))


class ByCount(Heads):
    def split(self, x):
        return x.view(*x.shape[:2], self.heads, 6)


class ByWidth(Heads):
    def split(self, x):
        return x.view(*x.shape[:2], self.wide // 6, 6)


class ByLiteral(Heads):
    def split(self, x):
        return x.reshape(x.size(0), x.size(1), 4, 6)


class ByTable(Heads):
    """A row of its own for each head: nothing here knows to slice it."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 6))

    def split(self, x):
        return x.view(*x.shape[:2], self.heads, 6) + self.table


@pytest.mark.parametrize(
    ("kind", "edits"),
    [
        (ByCount, ["heads"]),
        (ByWidth, ["heads", "wide"]),
        (ByLiteral, ["heads", "repair"]),
    ],
)
def test_each_rung_is_reached_by_a_model_that_needs_it(kind, edits):
    torch.manual_seed(0)
    pruned = prune(kind(), ["L0H1"], example=EXAMPLE)
    made = [edit for edit in pruned._headscope.edits if not edit["edit"].startswith("slice")]
    assert [edit.get("name", "repair") for edit in made] == edits
    assert {edit["edit"] for edit in made} <= {"set_attribute", RepairSizes.kind}


def test_what_no_trial_gets_right_is_refused_with_everything_one_needs_to_know():
    torch.manual_seed(0)
    model = ByTable()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(SurgeryError) as caught:
        prune(model, ["L0H1", "L0H2"], example=EXAMPLE)
    text = str(caught.value)
    for part in ("L0H1, L0H2", "ByTable", "up to 1e-05", "layer 0", "route handwritten", "entangled nothing"):
        assert part in text
    assert "headscope.ablate" in text
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.heads == 4


class Grouped(Heads):
    """Six query heads on two key heads, repeated by hand: there is no way to share them unevenly."""

    def __init__(self):
        super().__init__()
        self.n_rep = 3
        self.q, self.o = nn.Linear(24, 36), nn.Linear(36, 24)
        self.k, self.v = nn.Linear(24, 12), nn.Linear(24, 12)

    def split(self, x):
        x = x.view(*x.shape[:2], x.shape[-1] // 6, 6)
        return x if x.shape[2] > 2 else x.repeat_interleave(self.n_rep, 2)


def test_uneven_groups_by_hand_are_refused_and_the_way_out_works():
    torch.manual_seed(0)
    model = Grouped()
    assert discover(model, EXAMPLE).sites[0].kv_of_query == (0, 0, 0, 1, 1, 1)
    with pytest.raises(SurgeryError, match="as many query heads from each group"):
        prune(model, ["L0H1"], example=EXAMPLE)
    pruned = prune(model, ["L0H1", "L0H3"], example=EXAMPLE)
    assert pruned.n_rep == 2
    assert discover(pruned, EXAMPLE).sites[0].head_ids == (0, 2, 4, 5)


class Residual(ByCount):
    def forward(self, x):
        return x + super().forward(x)


class Weird(ByCount):
    def forward(self, x):
        return super().forward(x), x.shape


def test_a_layer_that_does_more_than_attend_keeps_a_head():
    torch.manual_seed(0)
    everything = [f"L0H{head}" for head in range(4)]
    with pytest.raises(SurgeryError, match="leave at least one head in the layer"):
        prune(Residual(), everything, example=EXAMPLE)
    with pytest.raises(SurgeryError, match="leave one head in it"):
        prune(Weird(), everything, example=EXAMPLE)
    prune(Residual(), everything[:3], example=EXAMPLE)
