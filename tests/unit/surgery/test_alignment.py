"""Heads that a model's settings call by number keep being called."""

import copy

import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from headscope.errors import PlanError
from headscope.surgery import prune
from headscope.surgery.storage import load, save


@pytest.fixture(scope="module")
def whisper():
    torch.manual_seed(0)
    sides = {f"{side}_{what}": many for side in ("encoder", "decoder") for what, many in _SIZES.items()}
    config = WhisperConfig(
        vocab_size=120, d_model=32, num_mel_bins=8, max_source_positions=50, max_target_positions=60, **sides,
        decoder_start_token_id=1, pad_token_id=0, bos_token_id=1, eos_token_id=119, suppress_tokens=None,
        begin_suppress_tokens=None, median_filter_width=3,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for name, own in model.named_parameters():
            if own.ndim > 1:
                own.mul_(12 if "q_proj" in name or "k_proj" in name else 5)
    settings = model.generation_config
    settings._from_model_config = False  # as that of a checkpoint; transformers drops what it does not know of others
    settings.alignment_heads, settings.no_timestamps_token_id, settings.is_multilingual = [[0, 1], [1, 3]], 110, False
    return model


_SIZES = {"layers": 2, "attention_heads": 4, "ffn_dim": 32}
SOUND = torch.randn(2, 8, 100, generator=torch.Generator().manual_seed(1))
EXAMPLE = {"input_features": SOUND, "decoder_input_ids": torch.arange(12).view(2, 6) + 3}


def times(model):
    said = model.generate(SOUND, return_token_timestamps=True, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    return said["sequences"].tolist(), said["token_timestamps"].tolist()


def masked(model, *heads):
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for layer, head in heads:
            twin.model.decoder.layers[layer].encoder_attn.out_proj.weight[:, head * 8 : head * 8 + 8] = 0
    return twin


def test_times_of_words_are_read_off_the_same_heads(whisper, tmp_path):
    once = prune(whisper, ["L3H0", "L5H1"], example=EXAMPLE)
    assert once.generation_config.alignment_heads == [[0, 0], [1, 2]]
    assert whisper.generation_config.alignment_heads == [[0, 1], [1, 3]]
    assert times(once) == times(masked(whisper, (0, 0), (1, 1)))
    twice = prune(once, ["L5H0", "L3H2"], example=EXAMPLE)
    assert twice.generation_config.alignment_heads == [[0, 0], [1, 1]]
    assert times(twice) == times(masked(whisper, (0, 0), (0, 2), (1, 0), (1, 1)))
    assert times(load(save(twice, tmp_path / "cut"))) == times(twice)


def test_a_head_that_is_called_for_does_not_go(whisper):
    with pytest.raises(PlanError, match=r"L5H3 is one of generation_config.alignment_heads"):
        prune(whisper, ["L5H3"], example=EXAMPLE)
    free = copy.deepcopy(whisper)
    free.generation_config.alignment_heads = None
    assert prune(free, ["L5H3"], example=EXAMPLE).generation_config.alignment_heads is None
