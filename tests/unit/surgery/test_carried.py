"""The record in the configs of models that are made of several."""

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, BertModel, EncoderDecoderConfig, EncoderDecoderModel

from headscope.anatomy import discover
from headscope.anatomy.records import record_of
from headscope.surgery import load, prune
from tests import models

IDS = torch.arange(3, 13).view(2, 5)
BATCH = {"input_ids": IDS, "decoder_input_ids": IDS[:, :3]}
SIZES = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def both(encoder=None):
    """Two models in one, with a config that holds those of both."""
    torch.manual_seed(0)
    first = BertModel(BertConfig(**SIZES)) if encoder is None else encoder
    second = BertLMHeadModel(BertConfig(**SIZES, is_decoder=True, add_cross_attention=True))
    config = EncoderDecoderConfig.from_encoder_decoder_configs(first.config, second.config)
    return EncoderDecoderModel(config=config, encoder=first, decoder=second).eval()


def logits(model):
    with torch.no_grad():
        return model(**BATCH).logits


def numbers(model, example=None):
    return [(site.layer, site.head_ids) for site in discover(model, example).sites]


@pytest.mark.filterwarnings("ignore:the cut .* is unverified")
@pytest.mark.filterwarnings("ignore:.*", "ignore::FutureWarning")
def test_each_model_inside_carries_what_is_its_own(tmp_path):
    pruned = prune(both(), ["L0H1", "L1H2", "L2H3", "L5H0"], example=BATCH)
    pruned.save_pretrained(tmp_path / "both")
    loaded = load(tmp_path / "both")
    assert torch.equal(logits(loaded), logits(pruned))
    assert numbers(loaded, BATCH) == numbers(pruned, BATCH)
    pruned.encoder.save_pretrained(tmp_path / "encoder")
    encoder = load(tmp_path / "encoder")
    assert numbers(encoder) == [(0, (0, 2, 3)), (1, (0, 1, 3))]
    with torch.no_grad():
        assert torch.equal(encoder(IDS)[0], pruned.encoder(IDS)[0])
    pruned.decoder.save_pretrained(tmp_path / "decoder")
    removed = record_of(load(tmp_path / "decoder")).removed
    assert [str(head) for head in removed] == ["L0H3", "L3H0"], "counted from the decoder's own first layer"


@pytest.mark.filterwarnings("ignore:the cut .* is unverified")
@pytest.mark.filterwarnings("ignore:.*", "ignore::FutureWarning")
def test_a_cut_model_put_into_another_brings_its_record(tmp_path):
    whole = both(prune(models.build("bert"), ["L0H1"]))
    whole.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert torch.equal(logits(loaded), logits(whole))
    assert numbers(loaded, BATCH)[0] == (0, (0, 2, 3))
    assert numbers(loaded.encoder)[0] == (0, (0, 2, 3))


def test_nothing_of_the_original_is_touched():
    model = models.build("llama")
    before = model.config.to_dict()
    pruned = prune(model, ["L0H1"])
    assert model.config.to_dict() == before
    assert "save_pretrained" not in vars(model)
    assert pruned.config.headscope["format"] == 1
    assert "headscope" not in pruned.generation_config.to_dict()
