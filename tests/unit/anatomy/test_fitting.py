"""An anatomy that is given has to be the model's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, XLNetConfig, XLNetLMHeadModel

from headscope.anatomy import anatomy_of, discover
from headscope.effects.ablation import ablate
from headscope.errors import AnatomyError
from headscope.likeness.comparing import similarity
from headscope.scoring.rating import importance
from headscope.sites import Anatomy
from headscope.surgery import prune
from headscope.watching.observation import capture
from tests import models

X = {"input_ids": torch.arange(3, 21).view(2, 9)}


def llama(heads: int) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 60}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=heads, num_key_value_heads=heads)).eval()


def _cut(model: nn.Module, anatomy: Anatomy) -> object:
    return prune(model, ["L0H3"], anatomy=anatomy)


def _switched_off(model: nn.Module, anatomy: Anatomy) -> object:
    with ablate(model, ["L0H3"], anatomy=anatomy), torch.no_grad():
        return model(**X)


def _captured(model: nn.Module, anatomy: Anatomy) -> object:
    with capture(model, anatomy=anatomy) as seen, torch.no_grad():
        model(**X)
    return seen


def _compared(model: nn.Module, anatomy: Anatomy) -> object:
    return similarity(model, [X], anatomy=anatomy)


def _rated(model: nn.Module, anatomy: Anatomy) -> object:
    return importance(model, [X], score="norm", anatomy=anatomy)


VERBS: list[Callable[..., Any]] = [_cut, _switched_off, _captured, _compared, _rated]


@pytest.mark.parametrize("verb", VERBS)
def test_one_of_before_a_cut_is_refused_and_one_of_after_it_is_taken(verb: Callable[..., Any]) -> None:
    model = llama(8)
    before = discover(model)
    smaller = prune(model, ["L0H0", "L0H1"])
    with pytest.raises(AnatomyError, match=r"of before heads were cut.*has heads 0, 1, .*here it has heads 2, 3, 4"):
        verb(smaller, before)
    after = discover(smaller)
    assert verb(smaller, after) is not None
    with pytest.raises(AnatomyError, match=r"of a model from which heads were cut: in it layer 0 .* has heads 2, 3"):
        verb(model, after)


@pytest.mark.parametrize("verb", VERBS)
def test_one_of_another_model_is_refused(verb: Callable[..., Any]) -> None:
    with pytest.raises(AnatomyError, match="has 4 heads of 16 dimensions here, and 8 of 8 in the anatomy"):
        verb(llama(4), discover(llama(8)))
    with pytest.raises(
        AnatomyError, match=r"of a LlamaForCausalLM with a module model.layers.0.*GPT2LMHeadModel has no"
    ):
        verb(models.build("gpt2"), discover(llama(8)))


def test_one_of_a_layer_that_is_empty_now_is_refused() -> None:
    model = llama(4)
    before = discover(model)
    with pytest.raises(AnatomyError, match="here it has no heads left"):
        anatomy_of(prune(model, {0: [0, 1, 2, 3]}), anatomy=before)


def test_other_weights_of_the_same_sizes_are_no_other_model() -> None:
    model = llama(8)
    anatomy = discover(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01
    assert anatomy_of(model, anatomy=anatomy) is anatomy


def test_heads_are_counted_however_often_a_model_attends() -> None:
    config = XLNetConfig(vocab_size=60, d_model=32, n_layer=1, n_head=4, d_inner=32)
    torch.manual_seed(0)
    model = XLNetLMHeadModel(config).eval()
    anatomy = discover(model)
    smaller = prune(model, ["L0H1"], anatomy=anatomy)
    settings = {"max_new_tokens": 3, "do_sample": False, "max_length": None}  # two streams attend as it generates
    with ablate(model, ["L0H1"], anatomy=anatomy):
        made = model.generate(X["input_ids"], **settings)
    assert torch.equal(made, smaller.generate(X["input_ids"], **settings))
