import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from headscope.errors import NumericalError
from headscope.models.reference import TransformerOutput
from headscope.surgery.verification import Seen, difference, distance, in_precision, magnitude, recording

X = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])


def test_difference_is_the_largest_anywhere():
    assert difference((X, X), (X, X)) == 0
    other = X.clone()
    other[0, 1, 0] += 0.25
    assert difference((X, {"b": X}), (X, {"b": other})) == 0.25
    assert difference(TransformerOutput(X, None), TransformerOutput(other, None)) == 0.25
    assert difference(torch.tensor(1.0), torch.tensor(1.5)) == 0.5


def test_padding_does_not_count():
    other = X.clone()
    other[0, 1] = 9
    assert difference(X, other, {"attention_mask": torch.tensor([[1, 0]])}) == 0
    assert difference(X, other, {"attention_mask": torch.tensor([[1, 1]])}) == 6


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_equal_to_themselves_only(value):
    odd = X.clone()
    odd[0, 0, 0] = value
    assert difference(odd, odd.clone()) == 0
    assert difference(X, odd) == math.inf
    assert difference(odd, X) == math.inf


def test_what_cannot_be_compared_is_infinitely_far():
    assert difference((), ()) == math.inf
    assert difference(X, (X, X)) == math.inf
    assert difference(X, X[..., :1]) == math.inf


def test_maps_of_fewer_heads_are_passed_over_but_not_the_output():
    assert difference((X, torch.full((1, 4, 2, 2), 0.5)), (X, torch.full((1, 3, 2, 2), 0.5))) == 0
    assert difference((X, -torch.ones(1, 4, 2, 2)), (X, -torch.ones(1, 3, 2, 2))) == float("inf"), "a bias by head"
    assert difference((X, torch.full((1, 4, 2, 2), 0.5)), (X, torch.full((1, 4, 2, 2), 0.25))) == 0.25
    assert difference((X, torch.full((1, 4, 2, 2), 0.5)), (X, torch.full((1, 4, 2, 2), 0.25)), heads={4}) == 0
    assert difference((X, -torch.ones(1, 4, 2, 2)), (X, torch.ones(1, 4, 2, 2)), heads={4}) == 0
    assert difference((X, -torch.ones(1, 3, 2, 2)), (X, torch.ones(1, 3, 2, 2)), heads={4}) == 2
    hidden = torch.tensor([-3e38, 0.0])
    assert difference((X, hidden), (X + 0.5, hidden), relative=True) == pytest.approx(0.5 / float(X.abs().max()))


def test_magnitude_is_of_finite_numbers():
    assert magnitude((torch.tensor([-3.0, math.inf, math.nan]), torch.tensor([7]))) == 3
    assert magnitude(torch.empty(0)) == 0


class InPlace(nn.Module):
    def forward(self, x, scale=2.0):
        return x.mul_(scale)


def test_recording_keeps_the_first_call_as_it_was_and_leaves_no_hook():
    model = nn.Sequential(InPlace(), InPlace())
    with recording(model, ["", "0"]) as seen:
        model(torch.ones(2))
        model(torch.full((2,), 5.0))
    assert seen["0"].args[0].tolist() == [1, 1]
    assert seen["0"].output.tolist() == [2, 2], "the second module changed it in place afterwards"
    assert seen[""].output.tolist() == [4, 4]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_recording_leaves_no_hook_after_a_failure():
    model = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="shapes"), recording(model, [""]):
        model(torch.ones(3))
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_nothing_but_nan_is_no_ground_to_stand_on():
    Seen((), {}, torch.tensor([math.nan, 1.0])).check_finite("layer 0")
    with pytest.raises(NumericalError, match="layer 3 returns nothing but NaN"):
        Seen((), {}, (torch.full((2,), math.nan), None)).check_finite("layer 3")


def test_precision_is_raised_in_a_copy_only():
    half = nn.Linear(2, 2).half()
    assert in_precision(half, torch.float32).weight.dtype == torch.float32
    assert half.weight.dtype == torch.float16
    single = nn.Linear(2, 2)
    assert in_precision(single, torch.float32) is single


class Summing(nn.Module):
    """1e8 + 1 - 1e8, in the order given: float32 loses the 1 in one order and keeps it in the other."""

    def __init__(self, order):
        super().__init__()
        self.order = order
        self.weight = nn.Parameter(torch.tensor([1e8, 1.0, -1e8]))

    def forward(self, x):
        total = x * 0
        for place in self.order:
            total = total + x * self.weight[place]
        return total


def test_float64_tells_rounding_from_error():
    a, b = Summing((0, 1, 2)), Summing((0, 2, 1))
    batch = {"x": torch.ones(1, 1)}
    gaps = [distance(a, b, batch, dtype, lambda model: nullcontext()) for dtype in (torch.float32, torch.float64)]
    assert gaps == [1, 0]
    assert a.weight.dtype == batch["x"].dtype == torch.float32
