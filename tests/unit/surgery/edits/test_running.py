import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, DynamicCache, EncoderDecoderCache, StaticCache

from headscope.surgery import prune
from headscope.surgery.edits.base import apply_edits
from headscope.surgery.edits.emptying import empty_attention
from headscope.surgery.edits.grouping import KV_BUFFER
from headscope.surgery.edits.repairing import _Repair, repair_sizes
from headscope.surgery.edits.slicing import SliceInput
from tests import models


def first_attention(model):
    return model.get_submodule("model.layers.0.self_attn")


@pytest.fixture
def mapped():
    return prune(models.build("llama"), ["L0H1", "L0H2", "L1H7"])


ROOT = Path(__file__).parents[4]
IDS = torch.arange(3, 13).view(2, 5)


def test_the_models_own_config_stays_what_it_was(mapped):
    attention = first_attention(mapped)
    assert attention.config is not mapped.config
    assert attention.config._attn_implementation == "headscope"
    assert mapped.config._attn_implementation == "sdpa"
    assert "headscope" in AttentionInterface()
    mapped.set_attn_implementation("eager")
    assert attention.config._attn_implementation == "headscope"
    assert mapped(IDS, output_attentions=True).attentions[0].shape == (2, 6, 5, 5)


def test_a_copy_follows_its_own_model(mapped):
    copied = copy.deepcopy(mapped)
    copied.set_attn_implementation("eager")
    assert mapped.config._attn_implementation == "sdpa"
    assert first_attention(copied).__dict__["_headscope_config"] is copied.config
    torch.testing.assert_close(copied(IDS).logits, mapped(IDS).logits)


def test_the_map_moves_with_the_module_and_is_no_weight(mapped):
    index = first_attention(mapped).get_buffer(KV_BUFFER)
    assert index.tolist() == [0, 0, 1, 1, 1, 1]
    assert first_attention(copy.deepcopy(mapped).to("meta")).get_buffer(KV_BUFFER).is_meta
    assert not any(KV_BUFFER in name for name in mapped.state_dict())
    assert mapped.to(torch.float64)(IDS).logits.dtype == torch.float64, "the map is no number to be cast"


def test_the_cache_holds_key_heads_only_once(mapped):
    keys = mapped(IDS, use_cache=True).past_key_values.layers[0].keys
    assert keys.shape == (2, 2, 5, 8)


COMPILE = """
import torch
from headscope.surgery import prune
from tests import models
ids = torch.arange(3, 13).view(2, 5)
for name, heads in (("llama", 8), ("nanogpt", 4)):
    gone = ["L0H1", "L0H2", *(f"L1H{head}" for head in range(heads))]
    pruned = prune(models.build(name), gone, example={"input_ids": ids})
    with torch.no_grad():
        want, got = pruned(ids), torch.compile(pruned, backend="eager")(ids)
    want, got = (one if name == "nanogpt" else one.logits for one in (want, got))
    torch.testing.assert_close(got, want)
    exported = torch.export.export(pruned, (ids,), {} if name == "nanogpt" else {"use_cache": False})
    got = exported.module()(ids) if name == "nanogpt" else exported.module()(ids, use_cache=False).logits
    torch.testing.assert_close(got, want)
"""


def test_a_pruned_model_compiles_and_is_exported():
    # in a process of its own: the checks of shapes that tests wear cannot be compiled
    done = subprocess.run([sys.executable, "-c", COMPILE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Attention(nn.Module):
    layer_idx = 1

    def __init__(self, bias=True):
        super().__init__()
        self.o = nn.Linear(6, 6, bias=bias)
        apply_edits([SliceInput("o", (), 6)], self)

    def forward(self, hidden, mask=None, cache=None):
        raise AssertionError("not any more")


def emptied(returns=("output", "map"), projection="o", keeps_cache=True, bias=True):
    module = Attention(bias)
    if bias:
        nn.init.normal_(module.o.bias)
    empty_attention(module, projection, returns, keeps_cache)
    return module


@pytest.mark.parametrize("bias", [True, False])
def test_nothing_but_the_bias_is_left(bias):
    module = emptied(bias=bias)
    output, pattern = module(hidden=torch.randn(2, 5, 6))
    want = module.o.bias.expand(2, 5, 6) if bias else torch.zeros(2, 5, 6)
    assert torch.equal(output, want)
    assert pattern.shape == (2, 0, 5, 5)
    assert emptied(returns=None)(torch.randn(2, 5, 6)).shape == (2, 5, 6)
    assert emptied(returns=("output", "nothing"))(torch.randn(2, 5, 6))[1] is None


def test_an_adapter_around_the_projection_leaves_its_bias_there():
    class Adapter(nn.Module):
        def __init__(self, base_layer):
            super().__init__()
            self.base_layer = base_layer

    module = emptied(returns=None)
    want = module(torch.randn(2, 5, 6))
    module.o = Adapter(module.o)
    assert torch.equal(module(torch.randn(2, 5, 6)), want)
    assert want.abs().sum() > 0


def test_where_the_projection_stands_outside_there_is_an_empty_z():
    assert emptied(projection=None)(torch.randn(2, 5, 6))[0].shape == (2, 5, 0)


def test_the_copy_of_an_empty_module_uses_its_own_bias():
    module = emptied(returns=None)
    copied = copy.deepcopy(module)
    nn.init.zeros_(copied.o.bias)
    assert copied(torch.ones(1, 1, 6)).abs().sum() == 0
    assert module(torch.ones(1, 1, 6)).abs().sum() > 0
    assert type(copied) is Attention


@pytest.mark.parametrize("wrap", [lambda cache: cache, lambda cache: EncoderDecoderCache(cache, DynamicCache())])
def test_a_cache_learns_that_tokens_went_by(wrap):
    cache = DynamicCache()
    module = emptied()
    module(torch.randn(2, 5, 6), cache=wrap(cache))
    _, pattern = module(torch.randn(2, 1, 6), cache=wrap(cache))
    assert cache.get_seq_length(1) == 6
    assert cache.layers[1].keys.shape == (2, 1, 6, 1)
    assert pattern.shape == (2, 0, 1, 6)


def test_a_cache_of_a_cross_attention_is_left_alone():
    cache = DynamicCache()
    emptied(keeps_cache=False)(torch.randn(2, 5, 6), cache=cache)
    assert cache.get_seq_length(1) == 0


def test_a_static_cache_learns_it_too():
    cache = StaticCache(config=models.build("llama").config, max_cache_len=16)
    emptied()(torch.randn(2, 5, 6), cache=cache)
    assert int(cache.get_seq_length(1)) == 5


SIZES = ((32, 24), (10, 8), (4, 3))


def test_only_sizes_that_do_not_fit_are_touched_and_the_last_one_first():
    with _Repair(SIZES):
        assert torch.zeros(4, 5, 32).view(4, 5, 4, 8).shape == (4, 5, 4, 8)
        assert torch.zeros(4, 5, 24).view(4, 5, 3, 10).shape == (4, 5, 3, 8)
        assert torch.zeros(4, 5, 24).view((4, 5, 4, 8)).shape == (4, 5, 3, 8), "the 4 rows stay"
        assert torch.zeros(32, 5, 24).reshape(32, 5, 32).shape == (32, 5, 24)
        assert torch.zeros(4, 5, 24).reshape(-1, 8, 4).shape == (15, 8, 4), "whether -1 fits depends on the rows"
        assert torch.zeros(4, 5, 24).reshape(-1, 32).shape == (20, 24), "the last axis, in its own size"
        assert torch.zeros(6, 3, 5, 5).view(-1, 4, 5, 5).shape == (6, 3, 5, 5)
        assert torch.zeros(2, 5, 4, 8).reshape(-1, 32).shape == (10, 32), "as it should"
        assert [part.shape[2] for part in torch.zeros(4, 5, 72).split(32, dim=2)] == [24, 24, 24]
        assert [part.shape[2] for part in torch.zeros(4, 5, 70).split(35, dim=2)] == [35, 35]
        assert torch.zeros(3, 4).view(torch.int32).dtype == torch.int32
        with pytest.raises(RuntimeError, match="invalid for input"):
            torch.zeros(5).view(7)


def test_repairs_end_with_the_forward():
    module = models.build("nanogpt").get_submodule("h.0.attn")
    repair_sizes(module, SIZES)
    module(torch.zeros(1, 3, 32))
    with pytest.raises(RuntimeError, match="invalid for input"):
        torch.zeros(24).view(32)
