"""Numbers that a module computes its shapes from, of its own and of the config that it reads."""

import copy
import pickle

import pytest
import torch
from einops.layers.torch import Rearrange
from torch import nn
from transformers import Phi3Config, Phi3ForCausalLM

from headscope.errors import SurgeryError
from headscope.surgery import prune
from headscope.surgery.edits.attributes import SetAxis, SetConfig
from headscope.surgery.edits.base import apply_edits


@pytest.fixture(scope="module")
def phi3():
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return Phi3ForCausalLM(Phi3Config(**sizes, **heads, pad_token_id=0, bos_token_id=1, eos_token_id=2)).eval()


IDS = torch.arange(3, 13).view(2, 5)


def test_a_config_of_its_own_tells_one_module_alone(phi3):
    attention = copy.deepcopy(phi3).model.layers[0].self_attn
    whole = attention.config
    apply_edits([SetConfig("", "num_attention_heads", 3, 4)], attention)
    assert (attention.config.num_attention_heads, whole.num_attention_heads) == (3, 4)
    with pytest.raises(SurgeryError, match=r"config.num_attention_heads is 3; expected 4"):
        apply_edits([SetConfig("", "num_attention_heads", 2, 4)], attention)
    with pytest.raises(SurgeryError, match="Linear has no config of its own"):
        apply_edits([SetConfig("", "num_attention_heads", 2, 4)], nn.Linear(2, 2))


@pytest.mark.parametrize("heads", [["L0H1"], ["L0H0", "L0H1"], ["L0H1", "L0H3"]])
def test_counts_that_a_forward_reads_from_the_config_are_put_right_and_the_model_still_says_how_it_attends(phi3, heads):
    masked = copy.deepcopy(phi3)
    with torch.no_grad():
        for head in heads:
            place = int(head[-1]) * 8
            masked.model.layers[0].self_attn.o_proj.weight[:, place : place + 8] = 0
    pruned = prune(phi3, heads)
    assert phi3.config.num_attention_heads == pruned.config.num_attention_heads == 4
    for implementation in ("sdpa", "eager"):
        for model in (pruned, masked):
            model.set_attn_implementation(implementation)
        torch.testing.assert_close(pruned(IDS).logits, masked(IDS).logits, atol=1e-5, rtol=0)
    maps = pruned(IDS, output_attentions=True).attentions
    assert [one.shape[1] for one in maps] == [4 - len(heads), 4], "it follows where the model's attention is switched"


class ByAxes(nn.Module):
    """How its heads lie is known to layers of einops alone."""

    def __init__(self):
        super().__init__()
        self.qkv, self.o = nn.Linear(24, 72), nn.Linear(24, 24)
        self.split = Rearrange("b n (three h d) -> three b h n d", three=3, h=4)

    def forward(self, x):
        q, k, v = self.split(self.qkv(x))
        return self.o(((q @ k.mT) / 6**0.5).softmax(-1).matmul(v).transpose(1, 2).flatten(2))


def test_layers_of_einops_follow_a_cut():
    torch.manual_seed(0)
    model, x = ByAxes(), torch.randn(2, 5, 24)
    pruned = prune(model, ["L0H1"], example={"x": x})
    assert (pruned.split.axes_lengths["h"], model.split.axes_lengths["h"]) == (3, 4)
    assert pruned._headscope.ways == {}
    with torch.no_grad():
        model.o.weight[:, 6:12] = 0
        torch.testing.assert_close(pruned(x), model(x), rtol=0, atol=1e-6)
    layer = pickle.loads(pickle.dumps(pruned.split))
    assert layer(torch.zeros(2, 5, 54)).shape == (3, 2, 3, 5, 6)


def test_an_axis_is_set_once_and_the_rest_of_the_layer_stays():
    layer, heard = Rearrange("b n (h d) -> b h n d", h=4), []
    layer.register_forward_hook(lambda *_: heard.append(True))
    layer.eval()
    apply_edits([SetAxis("", "h", 3, 4)], layer)
    assert layer(torch.zeros(2, 5, 6)).shape == (2, 3, 5, 2)
    assert heard == [True]
    assert not layer.training
    with pytest.raises(SurgeryError, match="h is 3; expected 4"):
        apply_edits([SetAxis("", "h", 2, 4)], layer)
