"""One small model for each kind of rule by which examples are made: none is known by its name."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from headscope._support.running import spelled_inputs
from headscope.anatomy import discover
from headscope.anatomy.examples import fitting, make_example
from headscope.anatomy.examples.values import shapes_of
from headscope.errors import AnatomyError, ModelError


class _Model(nn.Module):
    """What all have: a config, a main input, a weight."""

    main_input_name: Any = "pixel_values"

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config, self.layer = SimpleNamespace(**config), nn.Linear(4, 4)


class _Windows(_Model):
    main_input_name = "input_features"

    def forward(self, input_features: Tensor, input_features_mask: Tensor) -> Tensor:
        length = input_features.shape[-1]
        if length % 100:
            raise ValueError(f"expects a length that is a multiple of `n_window * 2` (100), but got {length}.")
        return input_features * input_features_mask.reshape(len(input_features), 1, length)


def test_a_multiple_is_read_behind_the_name_of_what_it_is_of() -> None:
    example = make_example(_Windows(num_mel_bins=6))
    assert example["input_features"].shape[-1] % 100 == 0


class _SideBySide(_Model):
    def forward(self, pixel_values: Tensor, prompt_pixel_values: Tensor) -> Tensor:
        both = torch.cat([pixel_values, prompt_pixel_values], 2)
        if both.shape[2:] != (32, 16):
            raise ValueError(f"Input image size ({both.shape[2]}*{both.shape[3]}) doesn't match model (32*16).")
        return both


def test_pictures_that_are_laid_together_shrink_together(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []
    real = fitting.try_once
    monkeypatch.setattr(fitting, "try_once", lambda *given: (tries.append(given), real(*given))[1])
    example = make_example(_SideBySide(image_size=[32, 16]))
    assert example["pixel_values"].shape[2:] == example["prompt_pixel_values"].shape[2:] == (16, 16)
    assert len(tries) <= 5, "at once, not one after the other"


class _Places(_Model):
    main_input_name = "flattened_patches"

    def __init__(self) -> None:
        super().__init__(patch_embed_hidden_size=5, patch_size=8)
        self.rows, self.patches = nn.Embedding(5, 4), nn.Linear(5, 4)

    def forward(self, flattened_patches: Tensor) -> Tensor:
        return self.patches(flattened_patches[..., 2:]) + self.rows(flattened_patches[..., 0].long())


def test_patches_in_a_row_say_where_they_stand_and_are_as_wide_as_the_config_says() -> None:
    patches = make_example(_Places())["flattened_patches"]
    assert patches.shape == (2, 24, 7)
    assert sorted({*map(tuple, patches[0, :, :2].tolist())}) == [(row, column) for row in range(1, 5)
                                                                 for column in range(1, 7)]  # fmt: skip


class _Film(_Model):
    def forward(self, pixel_values: Tensor) -> Tensor:
        rows, _, _, _ = pixel_values.shape
        return pixel_values.mean((1, 2, 3)).reshape(rows // 5, 5).reshape(-1, 5, 1) @ torch.ones(2, 1, 1)


def test_frames_of_all_films_may_stand_in_one_row() -> None:
    assert make_example(_Film(num_frames=5))["pixel_values"].shape[0] == 10


class _Grouped(_Model):
    main_input_name = "input_ids"

    def __init__(self) -> None:
        super().__init__(vocab_size=50, hidden_size=4)
        self.table, self.by_place = nn.Embedding(50, 9), nn.Parameter(torch.ones(7, 9, 3))

    def forward(self, input_ids: Tensor, last_hidden_state: Tensor | None = None) -> Tensor:
        if last_hidden_state is None:
            raise ValueError("last_hidden_state is missing")
        return torch.bmm(last_hidden_state.transpose(0, 1), self.by_place)


def test_a_width_is_read_off_a_product_of_batches() -> None:
    with pytest.raises(RuntimeError, match="of batch2 tensor"):
        _Grouped()(torch.ones(2, 7, dtype=torch.long), torch.ones(2, 7, 4))
    assert make_example(_Grouped(), tried=True)["last_hidden_state"].shape == (2, 7, 9)


class _Towers(_Model):
    """Two towers of different widths: no input makes them alike."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        return torch.ones(2, 32) @ torch.ones(11, 2)


def test_rows_against_rows_are_no_matter_of_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []
    real = fitting.try_once
    monkeypatch.setattr(fitting, "try_once", lambda *given: (tries.append(given), real(*given))[1])
    with pytest.raises(AnatomyError, match="at best: RuntimeError: mat1 and mat2 shapes cannot be multiplied"):
        make_example(_Towers(image_size=32))
    assert len(tries) == 1


class _Attends(_Model):
    """Attention over what is embedded already: tokens are refused."""

    main_input_name = "input_ids"

    def __init__(self) -> None:
        super().__init__(vocab_size=50, hidden_size=8)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8, bias=False) for _ in range(4))

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None) -> Tensor:
        if input_ids is not None:
            raise ValueError("`input_ids` is expected to be `None`")
        assert inputs_embeds is not None
        q, k, v = (part(inputs_embeds).unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        z = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o(z.transpose(1, 2).flatten(2))


def test_a_text_model_that_refuses_tokens_is_given_something_else() -> None:
    model = _Attends()
    assert set(make_example(model)) == {"input_ids", "attention_mask"}, "not run unless it is asked for"
    assert set(make_example(model, tried=True)) == {"inputs_embeds"}
    assert len(discover(model).sites) == 1


class _Broken(_Model):
    main_input_name = "input_ids"

    def forward(self, input_ids: Tensor) -> Tensor:
        raise ValueError("the moon is not full")


def test_a_text_model_that_runs_on_nothing_fails_with_what_it_said() -> None:
    with pytest.raises(ModelError, match="the moon is not full"):
        discover(_Broken(vocab_size=50))


class _Languages(_Model):
    main_input_name = "input_ids"

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, lang_ids: Tensor | None = None
    ) -> Tensor:
        if lang_ids is None:
            raise ValueError("Input language unknown.")
        return (input_ids + lang_ids).float()


def test_one_more_number_by_token_is_told_where_a_model_does_not_name_it() -> None:
    assert "lang_ids" in make_example(_Languages(vocab_size=50), tried=True)


class _Conditioned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(4, 4)

    def forward(self, hidden: Tensor, t_cond: Tensor | None = None) -> Tensor:
        return hidden * self.scale(t_cond)


class _PassesOn(_Model):
    main_input_name = "input_ids"

    def __init__(self) -> None:
        super().__init__(vocab_size=50, hidden_size=4)
        self.table, self.part = nn.Embedding(50, 4), _Conditioned()

    def forward(self, input_ids: Tensor, **further: Any) -> Tensor:
        return self.part(self.table(input_ids), **further)


def test_what_a_part_of_the_model_misses_is_passed_on_to_it() -> None:
    assert make_example(_PassesOn(), tried=True)["t_cond"].shape == (2, 7, 4)


class _Furthest(_Model):
    def forward(self, pixel_values: Tensor) -> Tensor:
        if pixel_values.shape != (2, 3, 32, 32):
            raise ValueError("no such picture")
        self.layer(torch.ones(1, 4))
        raise ValueError("the config is inconsistent")


class _OnTwoSides(_Model):
    def forward(self, pixel_values: Tensor | None = None, inputs_embeds: Tensor | None = None) -> Tensor:
        raise ValueError("no picture" if pixel_values is not None else "no stream")


def test_what_is_said_to_less_is_noted_beside_it() -> None:
    with pytest.raises(AnatomyError, match="at best: ValueError: no picture") as refused:
        make_example(_OnTwoSides(image_size=32))
    assert refused.value.__notes__ == ["with less, the model said at best: ValueError: no stream"]


def test_the_complaint_that_is_told_is_that_of_the_try_that_came_furthest() -> None:
    with pytest.raises(AnatomyError, match="at best: ValueError: the config is inconsistent"):
        make_example(_Furthest(image_size=32))


class _Captions(_Model):
    """Pictures stand between tokens, which come as one row each, however they are shaped."""

    main_input_name = "input_ids"

    def forward(self, input_ids: Tensor, pixel_values: Tensor, image_attention_mask: Tensor | None = None) -> Tensor:
        row, picture, _, _, _ = pixel_values.shape
        if image_attention_mask is None:
            raise ValueError("image_attention_mask is needed")
        assert image_attention_mask.shape == (row, input_ids.shape[1], picture)
        return pixel_values


def test_a_mask_of_tokens_and_pictures_has_an_axis_of_each() -> None:
    assert make_example(_Captions(vocab_size=50, image_size=16))["image_attention_mask"].shape == (2, 7, 3)


def test_a_model_may_name_several_main_inputs() -> None:
    class Several(_Model):
        main_input_name = ["pixel_values", "task_inputs"]  # noqa: RUF012 # as models of transformers say it

        def forward(self, pixel_values: Tensor, task_inputs: Tensor) -> Tensor:
            return pixel_values

    assert spelled_inputs(Several()) == "{'pixel_values': (row, channel, height, width), 'task_inputs': …}"


def test_of_two_configs_of_text_the_encoder_s_makes_tokens_and_the_decoder_s_makes_codes() -> None:
    small = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "ffn_dim": 16}
    config = hf.MusicgenConfig(
        text_encoder={"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2,
                      "vocab_size": 30},
        audio_encoder={"model_type": "encodec", "num_filters": 4, "hidden_size": 8, "codebook_dim": 8,
                       "codebook_size": 16},
        decoder={**small, "vocab_size": 16, "num_codebooks": 4, "bos_token_id": 1, "pad_token_id": 16},
    )  # fmt: skip
    example = make_example(hf.MusicgenForConditionalGeneration(config).eval())
    assert 16 <= int(example["input_ids"].max()) < 30
    assert int(example["decoder_input_ids"].max()) < 16


class _Patches(_Model):
    """Reads patches, and runs on a picture whose rows are as long too."""

    def __init__(self) -> None:
        super().__init__(patch_size=8, image_size=32)
        self.embed = nn.Linear(3 * 8 * 8, 4)

    def forward(self, pixel_values: Tensor) -> Tensor:
        out: Tensor = self.embed(pixel_values)
        return out


def test_a_shape_of_the_wanted_size_comes_before_one_that_is_made_to_fit() -> None:
    assert make_example(_Patches())["pixel_values"].shape == (2, 24, 192)


def test_pictures_beside_their_sizes_lie_in_one_strip() -> None:
    first = shapes_of("pixel_values", ["pixel_values", "target_sizes"], None)[0]
    assert first.axes == ("1", "channel", "side", "strip")
    assert shapes_of("pixel_values", ["pixel_values"], None)[0].axes == ("row", "channel", "height", "across")


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"num_static_real_features": 1},
        {"num_static_categorical_features": 1, "cardinality": [5], "embedding_dimension": [3]},
        {"input_size": 2, "num_time_features": 3},
    ],
)
def test_series_have_features_of_their_own_and_may_be_several(more: dict[str, Any]) -> None:
    sizes = {f"{side}_{what}": many for side in ("encoder", "decoder") for what, many in _SMALL.items()}
    config = hf.TimeSeriesTransformerConfig(prediction_length=4, d_model=16, **sizes, **more)
    assert len(discover(hf.TimeSeriesTransformerForPrediction(config).eval()).sites) == 3


_SMALL = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}


def test_a_part_of_a_film_is_masked() -> None:
    sides = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    seen = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = hf.VideoMAEConfig(
        image_size=16, patch_size=8, num_frames=4, tubelet_size=2, decoder_intermediate_size=24, **seen, **sides
    )
    example = make_example(hf.VideoMAEForPreTraining(config).eval())
    assert example["bool_masked_pos"].shape == (2, 8)
    assert example["bool_masked_pos"].sum(1).tolist() == [4, 4]
