"""Examples made up for models of every kind: a model runs on its own, with all it perceives, and stays as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from transformers.models.musicgen.modeling_musicgen import MusicgenModel

from headscope._support.running import run_model
from headscope.anatomy import discover
from headscope.anatomy.examples import fitting, make_example
from headscope.anatomy.examples.fitting import Trial
from headscope.errors import AnatomyError
from tests.models import build

_LAYERS = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
_SEEN = {**_LAYERS, "image_size": 16, "patch_size": 8}
_READ = {
    **_LAYERS,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _llava() -> nn.Module:
    text = {**_READ, "model_type": "llama", "num_key_value_heads": 2}
    seen = {**_SEEN, "model_type": "clip_vision_model"}
    config = hf.LlavaConfig(vision_config=seen, text_config=text, image_token_index=40, vision_feature_layer=-1)
    return hf.LlavaModel(config)


def _qwen() -> nn.Module:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    seen = {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 16, "patch_size": 4, "mlp_ratio": 2}
    text = {**_READ, "num_key_value_heads": 2, "rope_parameters": rope}
    marks = {"image_token_id": 40, "video_token_id": 41, "vision_start_token_id": 42, "vision_end_token_id": 43}
    return hf.Qwen2VLModel(hf.Qwen2VLConfig(vision_config=seen, text_config=text, **marks))


def _sam() -> nn.Module:
    seen = {
        **_SEEN,
        "mlp_dim": 16,
        "output_channels": 8,
        "global_attn_indexes": [0],
        "window_size": 2,
        "num_pos_feats": 4,
    }
    prompt = {"hidden_size": 8, "image_size": 16, "patch_size": 8}
    mask = {"hidden_size": 8, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_hidden_dim": 8}
    config = hf.SamConfig(vision_config=seen, prompt_encoder_config=prompt, mask_decoder_config=mask)
    return hf.SamModel(config)


def _sides(**further: Any) -> dict[str, Any]:
    sides = ("encoder", "decoder")
    return {
        f"{side}_{name}": n for side in sides for name, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))
    } | further


_HEARD = {"conv_dim": (8, 8), "conv_stride": (4, 4), "conv_kernel": (8, 4), "num_conv_pos_embeddings": 4,
          "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2}  # fmt: skip

# by kind: how the model is built, what of its example shows that it perceives all it can, and how many sites it has
MODELS: dict[str, tuple[Callable[[], nn.Module], set[str], int]] = {
    "picture": (lambda: hf.ViTModel(hf.ViTConfig(**_SEEN)), {"pixel_values"}, 1),
    "text and picture": (
        lambda: hf.CLIPModel(hf.CLIPConfig(text_config=_READ, vision_config=_SEEN, projection_dim=8)),
        {"input_ids", "pixel_values"}, 2,
    ),
    "picture in the text": (_llava, {"input_ids", "pixel_values"}, 2),
    "patches in the text": (_qwen, {"input_ids", "pixel_values", "image_grid_thw"}, 2),
    "captions": (
        lambda: hf.BlipModel(hf.BlipConfig(text_config={**_READ, "encoder_hidden_size": 16}, vision_config=_SEEN)),
        {"input_ids", "pixel_values"}, 2,
    ),
    "masks": (_sam, {"pixel_values"}, 5),
    "film": (
        lambda: hf.VivitModel(hf.VivitConfig(**_LAYERS, image_size=16, num_frames=4, tubelet_size=[2, 8, 8])),
        {"pixel_values"}, 1,
    ),
    "boxes": (lambda: hf.LayoutLMModel(hf.LayoutLMConfig(**_READ)), {"input_ids", "bbox"}, 1),
    "spectrum": (
        lambda: hf.WhisperModel(hf.WhisperConfig(**_sides(
            d_model=16, vocab_size=50, num_mel_bins=6, max_source_positions=20, pad_token_id=0, bos_token_id=1,
            eos_token_id=2, decoder_start_token_id=1,
        ))),
        {"input_features", "decoder_input_ids"}, 3,
    ),
    "wave": (lambda: hf.Wav2Vec2Model(hf.Wav2Vec2Config(**_LAYERS, **_HEARD)), {"input_values"}, 1),
    "speech on two sides": (
        lambda: hf.SpeechT5Model(hf.SpeechT5Config(**_sides(hidden_size=16, vocab_size=50))),
        {"input_values", "decoder_input_values"}, 3,
    ),
    "codes": (
        lambda: MusicgenModel(hf.MusicgenDecoderConfig(
            hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=50, num_codebooks=3,
        )),
        {"input_ids"}, 1,
    ),
    "series": (
        lambda: hf.PatchTSTModel(hf.PatchTSTConfig(
            context_length=24, patch_length=8, patch_stride=8, d_model=16, num_hidden_layers=1, num_attention_heads=2,
            ffn_dim=16, num_input_channels=3,
        )),
        {"past_values"}, 1,
    ),
    "series with a calendar": (
        lambda: hf.TimeSeriesTransformerModel(hf.TimeSeriesTransformerConfig(**_sides(
            prediction_length=3, context_length=6, lags_sequence=[1, 2], num_time_features=2, d_model=16,
        ))),
        {"past_values", "past_time_features"}, 1,
    ),
}  # fmt: skip


def _made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[kind][0]().eval()


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_model_runs_on_its_example_and_all_its_attention_is_found(kind: str) -> None:
    model = _made(kind)
    example = make_example(model)
    _, perceived, sites = MODELS[kind]
    assert perceived <= set(example)
    # patches of all pictures stand in one row, and codes of a row below each other may
    assert all(value.shape[0] == 2 for value in example.values() if value.ndim < 4 and value.shape[0] not in (6, 48))
    run_model(model, example)
    assert len(discover(model).sites) >= sites


@pytest.mark.parametrize("kind", MODELS)
def test_it_is_the_same_twice_and_the_model_is_left_as_it_was(kind: str) -> None:
    model = _made(kind).train()
    weights = {name: value.clone() for name, value in model.state_dict(keep_vars=False).items()}
    state = torch.get_rng_state()
    first, second = make_example(model), make_example(model)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("kind", MODELS)
def test_few_forwards_are_enough(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = _counted(monkeypatch)
    make_example(_made(kind))
    assert 1 <= len(tries) <= 16


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the model is tried on from now on."""
    tries: list[dict[str, Any]] = []
    real = fitting.try_once

    def count(model: nn.Module, example: dict[str, Any]) -> Trial:
        tries.append(example)
        return real(model, example)

    monkeypatch.setattr(fitting, "try_once", count)
    return tries


def test_models_of_text_alone_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    ran: list[object] = []
    model.register_forward_hook(lambda *_: ran.append(1))
    make_example(model)
    assert ran == []


def test_as_many_tokens_stand_for_a_picture_as_it_has_pieces_and_none_by_chance() -> None:
    model = _made("patches in the text")
    example = make_example(model)
    ids, grid = example["input_ids"], example["image_grid_thw"]
    assert grid.shape == (2, 3)
    assert int((ids == 40).sum()) == int(grid.prod(1).sum()) // 4
    assert torch.equal(example["mm_token_type_ids"] == 1, ids == 40)
    assert not bool(torch.isin(ids, torch.tensor([41])).any())
    assert example["attention_mask"].shape == ids.shape


def test_numbers_are_in_the_precision_of_the_weights() -> None:
    assert make_example(_made("picture").to(torch.bfloat16))["pixel_values"].dtype == torch.bfloat16


class _Odd(nn.Module):
    """Takes what nobody can make up."""

    main_input_name = "pixel_values"

    def __init__(self) -> None:
        super().__init__()
        self.config, self.layer = hf.ViTConfig(**_SEEN), nn.Linear(2, 2)

    def forward(self, pixel_values: Tensor, input_features: Tensor | None = None, input_values: Any = None) -> Tensor:
        raise ValueError(f"the moon is not\nfull, {'so wait, ' * 40}")


def test_what_cannot_be_made_up_is_told_with_what_was_tried_and_the_model_s_last_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries = _counted(monkeypatch)
    with pytest.raises(AnatomyError) as refused:
        discover(_Odd())
    told = str(refused.value)
    assert "_Odd takes 'pixel_values', which cannot be made up" in told
    assert f"run {len(tries)} times on pixel_values, input_features and input_values" in told
    assert "said at best: ValueError: the moon is not full, so wait" in told
    assert "..." in told
    assert "pass example=" in told
    assert "return (model, batches)" in refused.value.on_command_line
    assert len(tries) == 30
