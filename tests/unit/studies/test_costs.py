"""Counted costs: known by hand for a product, equal on every run."""

import torch
from torch import nn

from headscope.models.reference import MultiHeadAttention
from headscope.studies.costs import count_flops, peak, peak_bytes


def test_bytes_alive_at_once_by_hand() -> None:
    def run() -> None:
        first = torch.zeros(1000)
        second = first + 1  # two alive: 8,000 bytes
        del first
        third = second + 1  # two again
        third.add_(1).view(10, 100)  # in place and a view: nothing new
        del second, third
        torch.zeros(10)

    assert peak_bytes(run) == peak_bytes(run) == 8000


def test_bytes_of_a_training_step_hold_weights_gradients_and_input() -> None:
    def run() -> None:
        layer, x = nn.Linear(100, 50, bias=False), torch.ones(8, 100)
        layer(x).sum().backward()

    weights, x = 4 * 100 * 50, 4 * 8 * 100
    assert 2 * weights + x <= peak_bytes(run) <= 2 * weights + x + 3 * 4 * 8 * 50


def test_what_stood_before_does_not_count() -> None:
    weights, x = torch.ones(1000, 10), torch.ones(5, 10)
    assert peak_bytes(lambda: x @ weights.T) == 4 * 5 * 1000


def test_operations_of_attention_by_hand() -> None:
    tokens, width, heads, dim = 10, 16, 4, 4
    attention, x = MultiHeadAttention(width, heads, bias=False), torch.randn(1, tokens, width)
    projections, maps = 4 * 2 * tokens * width * width, 2 * 2 * heads * tokens * tokens * dim
    assert count_flops(lambda: attention(x)) == projections + maps


def test_masks_at_the_peak_are_told_apart() -> None:
    def run() -> None:
        hidden = torch.ones(10, 10, dtype=torch.bool)
        early = torch.zeros(300, dtype=torch.bool)
        del early  # gone before the peak
        x = torch.zeros(1000)
        x.masked_fill(hidden.any(), 1.0)

    found = peak(run)
    assert found.masks == 100 + 1
    assert found.bytes == 2 * 4000 + found.masks
