"""Saved models that loading is tried on."""

import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertForMaskedLM, BertModel, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from headscope._support.silence import quietly

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def make_tokenizer():
    vocabulary = {"[UNK]": 0, **{f"w{number}": number for number in range(1, 40)}}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, "[UNK]")), unk_token="[UNK]")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of saved models; tests that alter one copy it."""
    root = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    with quietly():
        BertModel(BertConfig(**SIZES)).save_pretrained(root / "bare")
        BertForMaskedLM(BertConfig(**SIZES)).save_pretrained(root / "masked")
        gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32))
        gpt2.bfloat16().save_pretrained(root / "causal")
        make_tokenizer().save_pretrained(root / "causal")
    return root


@pytest.fixture
def bare(saved, tmp_path):
    return Path(shutil.copytree(saved / "bare", tmp_path / "bare"))
