"""Shapes in signatures are checked while the tests run: a wrong one is caught where it is handed over."""

import pytest
import torch
from jaxtyping import TypeCheckError

from headscope.models.reference import MultiHeadAttention


def test_a_wrong_shape_is_caught() -> None:
    attention = MultiHeadAttention(8, 2)
    with pytest.raises(TypeCheckError, match="batch token width"):
        attention(torch.zeros(3, 8))


def test_axes_of_one_name_must_agree() -> None:
    attention = MultiHeadAttention(8, 2)
    with pytest.raises(TypeCheckError, match="head_dim"):
        attention.weigh(torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 3))
