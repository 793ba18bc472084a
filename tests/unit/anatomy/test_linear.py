"""Linear layers however they store their weights."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from headscope.anatomy.linear import is_linear, matrix, stores_transposed


class QuantLinear(nn.Module):
    """A look-alike: named as one, with a weight matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))


@pytest.mark.parametrize(
    "layer", [nn.Linear(4, 3), nn.Linear(4, 3, bias=False), Conv1D(3, 4), nn.Conv1d(4, 3, 1), nn.Conv2d(4, 3, 1)]
)
def test_the_matrix_maps_inputs_to_outputs(layer: nn.Module) -> None:
    assert is_linear(layer)
    x = torch.randn(5, 4)
    spatial = (1,) * (layer.weight.ndim - 2) if isinstance(layer, (nn.Conv1d, nn.Conv2d)) else ()
    bias = 0 if layer.bias is None else layer.bias
    want = layer(x.reshape(5, 4, *spatial)).reshape(5, 3)
    torch.testing.assert_close(x @ matrix(layer).T + bias, want)


def test_only_layers_with_a_weight_matrix_are_linear() -> None:
    assert is_linear(QuantLinear())
    for module in (nn.Embedding(3, 4), nn.LayerNorm(4), nn.Identity(), nn.ReLU(), nn.Dropout()):
        assert not is_linear(module)


def test_only_gpt2s_layer_is_stored_transposed() -> None:
    assert stores_transposed(Conv1D(3, 4))
    assert not stores_transposed(nn.Linear(4, 3))
    assert not stores_transposed(nn.Conv1d(4, 3, 1))
