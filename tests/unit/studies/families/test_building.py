"""Tiny models: rules by field names, the same for the same seed, repaired where a config complains."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    CLIPConfig,
    DepthAnythingConfig,
    LlamaConfig,
    OmDetTurboConfig,
    Qwen3NextConfig,
    RTDetrConfig,
    Sam2Config,
    SegGptConfig,
    T5Config,
    VitMatteConfig,
    YolosConfig,
    ZambaConfig,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from headscope.anatomy.called import is_called_attention
from headscope.anatomy.examples import make_example
from headscope.errors import AnatomyError, InputError, ModelError
from headscope.studies.families import building, configuring
from headscope.studies.families.building import build, model_class, tiny_model
from headscope.studies.families.configuring import VARIANTS, Variant, tiny_settings
from headscope.studies.families.following import fit_prompts, rope_sections, shares
from headscope.studies.families.repairing import Settings, repair
from headscope.studies.families.sizes import size_of


def test_sizes_go_by_the_name_of_a_field() -> None:
    made = tiny_settings(LlamaConfig())
    assert made["hidden_size"] == 64
    assert (made["num_attention_heads"], made["num_key_value_heads"], made["head_dim"]) == (4, 2, 16)
    assert (made["num_hidden_layers"], made["vocab_size"]) == (2, 120)
    assert tiny_settings(T5Config())["d_kv"] == 16


@pytest.mark.parametrize(
    ("name", "value", "size"),
    [
        ("hidden_size", 4096, 64), ("hidden_size", None, None), ("head_dim", None, 16), ("kv_lora_rank", 0, None),
        ("new_num_attention_heads", 12, 4), ("num_layers_per_block", 12, None), ("tie_word_embeddings", True, None),
        ("some_dim", 1024, 64), ("qk_dim", 1024, None), ("dropout", 0.1, None), ("image_token_id", None, 110),
    ],
)  # fmt: skip
def test_a_size_is_set_where_there_was_one(name: str, value: object, size: int | None) -> None:
    assert size_of(name, value) == size


def test_tokens_lie_in_the_vocabulary() -> None:
    assert 100 <= (size_of("speech_end_token_id", 50_000) or 0) < 110
    assert size_of("speech_end_token_id", 5) is None


def test_one_layer_of_each_kind_stays() -> None:
    made = tiny_settings(Qwen3NextConfig())
    assert sorted(made["layer_types"]) == ["full_attention", "linear_attention"]
    first = tiny_settings(Qwen3NextConfig(), Variant(attention_first=True))
    assert first["layer_types"][0] == "full_attention"


def test_variants_do_what_they_say() -> None:
    assert "head_dim" not in tiny_settings(LlamaConfig(), Variant(head_dim=False))
    assert tiny_settings(LlamaConfig(), Variant(grouped=False))["num_key_value_heads"] == 4
    assert tiny_settings(LlamaConfig(), Variant(heads=8))["num_attention_heads"] == 8
    wide = tiny_settings(LlamaConfig(), Variant(width=96))
    assert (wide["hidden_size"], wide["head_dim"]) == (96, 24)
    assert "hidden_size" not in tiny_settings(LlamaConfig(), Variant(sizes=False))
    assert len({*VARIANTS}) == len(VARIANTS)


def test_sections_of_rotary_positions_fill_half_a_head() -> None:
    assert shares(8, 3) == [4, 2, 2]
    by_kind = {"full_attention": {"mrope_section": [16, 24, 24]}}
    assert rope_sections(by_kind, 8) == {"full_attention": {"mrope_section": [4, 2, 2]}}
    assert by_kind["full_attention"]["mrope_section"] == [16, 24, 24], "the default stays as it was"


def test_no_rule_knows_a_model_type() -> None:
    folder = Path(configuring.__file__).parent
    known = {name for name in CONFIG_MAPPING if re.search(r"\d|_", name)}
    for file in ("sizes.py", "configuring.py", "repairing.py", "following.py", "building.py"):
        strings = set(re.findall(r'"([\w-]+)"', (folder / file).read_text("utf-8")))
        assert strings & known <= {"timm_backbone", "timm_wrapper"}, file  # those come from another package


def test_the_same_seed_makes_the_same_model() -> None:
    state = torch.random.get_rng_state()
    first, again, other = (tiny_model("bert", seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state), "nobody else's draws are changed"
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pooler.dense.weight"], other["pooler.dense.weight"])
    norms = [value for name, value in first.items() if name.endswith("LayerNorm.weight")]
    assert norms
    assert all(norm.std() > 0 for norm in norms), "no norm of ones hides a path"


def test_what_is_no_type_or_has_no_model_is_refused() -> None:
    with pytest.raises(InputError, match="knows no model type 'lama'"):
        tiny_model("lama")
    with pytest.raises(ModelError, match="a config without a model of its own"):
        tiny_model("gemma4_unified_audio")


def test_what_is_too_large_is_told_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "_MOST_PARAMETERS", 10)
    built = build("bert")
    assert built.model is None
    assert "too large" in built.complaints[0]


def test_a_complaint_is_repaired_and_the_model_tried_again() -> None:
    complaints = iter(["vocab_size (120) must be divisible by hidden_size (128)", ""])
    built = build("bert", complain=lambda _: next(complaints))
    assert built.runs
    assert built.model is not None
    assert built.model.config.vocab_size == 128


def test_a_model_that_never_runs_is_kept_with_what_was_said() -> None:
    built = build("bert", complain=lambda _: "it does not run")
    assert (built.model is None, built.runs) == (False, False)
    assert {*built.complaints} == {"it does not run"}


@pytest.mark.parametrize(
    ("complaint", "changed"),
    [
        ("`num_key_value_heads` (2) must equal `num_attention_heads` (4)", ("num_key_value_heads", 4)),
        ("only `num_hidden_layers=1` only", ("num_hidden_layers", 1)),
        ("hidden_size should be equal to the last value. hidden_size = 64, out_features = 256", ("hidden_size", 256)),
        ("The size of tensor a (16) must match the size of tensor b (32)", ("num_attention_heads", 2)),
        ("shapes cannot be multiplied (8x256 and 96x64)", ("intermediate_size", 256)),
        ("index 10784 is out of bounds for dimension 0 with size 120", ("vocab_size", 10785)),
    ],
)
def test_a_repair_is_read_off_the_message(complaint: str, changed: tuple[str, int]) -> None:
    settings = Settings(LlamaConfig(), tiny_settings(LlamaConfig()))
    assert repair(complaint, settings)
    assert settings.values[changed[0]] == changed[1]
    assert not repair(complaint, settings), "nothing is left to repair"


def test_towers_that_are_compared_get_one_width() -> None:
    settings = Settings(CLIPConfig(), tiny_settings(CLIPConfig()))
    assert repair("mat1 and mat2 shapes cannot be multiplied (2x64 and 640x2)", settings)
    assert settings.values["projection_dim"] == 640


def test_patches_are_as_large_again_where_what_is_beside_them_is() -> None:
    settings = Settings(VitMatteConfig(), tiny_settings(VitMatteConfig()))
    assert settings.values["backbone_config"]["patch_size"] == 8
    assert repair("Sizes of tensors must match except in dimension 1. Expected size 4 but got size 8", settings)
    assert settings.values["backbone_config"]["patch_size"] == 16


def test_rotary_positions_are_shared_where_a_model_counts_none() -> None:
    settings = Settings(LlamaConfig(), tiny_settings(LlamaConfig()))
    assert repair("it expects at least 3 multimodal RoPE axes, got 0.", settings)
    assert settings.values["rope_parameters"]["mrope_section"] == [4, 2, 2]


def test_what_the_outer_config_tells_the_one_within_is_kept() -> None:
    made = tiny_settings(DepthAnythingConfig())["backbone_config"]
    assert made["reshape_hidden_states"] is False
    assert made["hidden_size"] == 64, "sizes are made small all the same"


def test_lists_follow_the_width_and_the_picture_they_go_with() -> None:
    assert tuple(tiny_settings(RTDetrConfig())["decoder_in_channels"]) == (64, 64, 64)
    made = tiny_settings(Sam2Config())
    grids, prompts = made["vision_config"]["backbone_feature_sizes"], made["prompt_encoder_config"]
    assert grids == [[8, 8], [4, 4], [2, 2]], "of 32 x 32 points, as 256, 128 and 64 were of 1024"
    assert prompts["image_size"] // prompts["patch_size"] == 2
    assert tuple(tiny_settings(SegGptConfig())["image_size"]) == (64, 32), "as high for its width as it was"
    assert tuple(tiny_settings(YolosConfig())["image_size"]) == (32, 64), "in whole patches"


def test_prompts_without_a_picture_are_left() -> None:
    parts = [{"patch_size": 8, "image_size": 32}, {"hidden_size": 64}]
    fit_prompts(parts)
    assert parts == [{"patch_size": 8, "image_size": 32}, {"hidden_size": 64}]


def test_a_width_that_a_config_works_out_is_left_to_it() -> None:
    assert "attention_hidden_size" not in tiny_settings(ZambaConfig())
    assert ZambaConfig(**tiny_settings(ZambaConfig())).attention_hidden_size == 128


def test_a_field_that_is_kept_under_another_name_gets_small_too() -> None:
    assert OmDetTurboConfig(**tiny_settings(OmDetTurboConfig())).d_model == 64


def test_a_class_that_is_mapped_but_built_of_a_config_within_is_not_taken() -> None:
    assert model_class("musicgen").__name__ == "MusicgenForConditionalGeneration"
    assert model_class("exaone").__name__ == "LlamaModel", "there is no other"


def test_a_field_that_a_config_lacks_is_put_into_it() -> None:
    settings = Settings(LlamaConfig(), {})
    assert repair("'LlamaConfig' object has no attribute 'embedding_dropout'", settings)
    assert settings.config().embedding_dropout == 0.0


def test_the_bare_model_is_taken() -> None:
    assert model_class("llama").__name__ == "LlamaModel"
    assert model_class("qwen2_vl_vision").__name__.startswith("Qwen2") if "qwen2_vl_vision" in CONFIG_MAPPING else True


# types whose tiny towers run only where their sizes fit each other, and the example has all that they read
TOWERS = (
    "aria", "glm_image", "instructblip_qformer", "kosmos-2.5", "llava_next", "mllama", "phi4_multimodal",
    "qwen2_5_omni_thinker", "qwen3_asr", "voxtral",
)  # fmt: skip
MORE_TOWERS = (
    "chameleon", "deepseek_ocr2", "granite_docling", "inkling2_loop_text", "minicpmv4_6", "molmo2", "muse_glimmer",
    "qwen2_audio", "video_llama_3", "video_llava",
)  # fmt: skip


@pytest.mark.parametrize(
    "model_type", [*TOWERS, *(pytest.param(model_type, marks=pytest.mark.slow) for model_type in MORE_TOWERS)]
)
def test_every_tower_of_a_tiny_model_runs_on_its_example(model_type: str) -> None:
    given: dict[str, object] = {}

    def complain(model: nn.Module) -> str:
        try:
            given.update(example=make_example(model))
        except AnatomyError as error:
            return str(error)
        return ""

    model = build(model_type, 0, complain).model
    assert model is not None
    ran: set[nn.Module] = set()
    for module in model.modules():
        module.register_forward_hook(lambda module, *_: ran.add(module))
    model(**given["example"])  # type: ignore[arg-type]
    idle = [name for name, one in model.named_modules() if is_called_attention(one) and one not in ran]
    assert [name for name in idle if next(model.get_submodule(name).parameters(), None) is not None] == []


def test_widths_that_others_make_up_follow_them() -> None:
    made = {kind: tiny_settings(CONFIG_MAPPING[kind]()) for kind in ("muse_glimmer", "mllama", "emu3", "voxtral")}
    assert made["muse_glimmer"]["out_hidden_size"] == 4 * made["muse_glimmer"]["vision_config"]["hidden_size"]
    seen = made["mllama"]["vision_config"]
    assert seen["vision_output_dim"] == (1 + len(seen["intermediate_layers_indices"])) * seen["hidden_size"]
    codes = made["emu3"]["vq_config"]
    assert codes["hidden_size"] == 4 * codes["base_channels"]
    heard = made["voxtral"]["audio_config"]
    assert heard["intermediate_size"] % heard["hidden_size"] == 0
