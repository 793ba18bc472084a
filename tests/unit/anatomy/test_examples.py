"""What a model is probed with: made up where it says what it takes, else a corner of a batch."""

import pytest
import torch
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEModel, ViTConfig, ViTModel

from headscope.anatomy import discover
from headscope.anatomy.examples import corner, make_example
from headscope.errors import AnatomyError, ModelError
from tests.families import build_further
from tests.models import VOCABULARY, build


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "gemma3"])
def test_text_models_run_on_it(name: str) -> None:
    model = build(name)
    example = make_example(model)
    assert set(example) == {"input_ids", "attention_mask"}
    ids = example["input_ids"]
    assert ids.shape[0] >= 2
    assert ids.shape[1] >= 2
    assert int(ids.min()) >= 0
    assert int(ids.max()) < VOCABULARY
    assert len(ids.unique()) > 4
    assert example["attention_mask"].all()
    model(**example)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_decoder_gets_tokens_of_another_length(name: str) -> None:
    model = build_further(name)
    example = make_example(model)
    assert example["decoder_input_ids"].shape[1] not in (1, example["input_ids"].shape[1])
    model(**example)


def test_the_padding_token_is_not_among_the_tokens() -> None:
    model = build("bert")
    model.config.vocab_size = 3  # so few that it would be drawn
    model.config.pad_token_id = 1
    assert set(make_example(model)["input_ids"].flatten().tolist()) == {0, 2}
    model.config.pad_token_id = None
    assert set(make_example(model)["input_ids"].flatten().tolist()) == {0, 1, 2}


def test_it_is_the_same_every_time_and_leaves_the_random_state_alone() -> None:
    model = build("llama")
    state = torch.get_rng_state()
    first, second = make_example(model), make_example(model)
    assert torch.equal(first["input_ids"], second["input_ids"])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [16, (8, 16)])
def test_vision_models_get_pixels_of_their_size(size: int | tuple[int, int]) -> None:
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, patch_size=8,
                       image_size=size, num_channels=1)  # fmt: skip
    model = ViTModel(config).eval()
    pixels = make_example(model)["pixel_values"]
    assert pixels.shape == (2, 1, *(size if isinstance(size, tuple) else (size, size)))
    model(pixel_values=pixels)


def test_a_model_that_does_not_say_what_it_takes_needs_an_example() -> None:
    with pytest.raises(AnatomyError, match=r"Linear does not say what it takes; pass example="):
        make_example(nn.Linear(2, 2))


def test_films_are_made_up_with_their_frames() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = VideoMAEModel(VideoMAEConfig(**sizes, image_size=16, patch_size=8, num_frames=4)).eval()
    assert make_example(model)["pixel_values"].shape == (2, 4, 3, 16, 16)
    assert discover(model).n_heads == 2


def test_what_a_forward_of_one_s_own_needs_is_named() -> None:
    class Own(nn.Module):
        def forward(self, picture: Tensor, words: Tensor, mask: Tensor | None = None) -> Tensor:
            return picture

    with pytest.raises(AnatomyError, match=r"{'picture': …, 'words': …}"):
        make_example(Own())


def test_a_config_that_raises_instead_of_answering_is_survived() -> None:
    class Touchy:
        vocab_size = 10

        @property
        def pad_token_id(self) -> int:
            raise RuntimeError("ambiguous")

    class Reader(nn.Module):
        main_input_name, config = "input_ids", Touchy()

        def forward(self, input_ids: Tensor) -> Tensor:
            return input_ids

    model = Reader()
    assert make_example(model)["input_ids"].shape == (2, 7)


def _summed(batch: dict[str, object]) -> Tensor:
    """A made-up model: rows are independent of each other, whatever the others are."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    positions = batch.get("positions", torch.arange(ids.shape[1]))
    if len(positions) != ids.shape[1]:
        raise ModelError("positions and tokens do not match")
    return (ids * mask * positions.float()).cumsum(1)


def test_two_rows_and_a_few_tokens_are_taken_of_a_batch() -> None:
    ids = torch.arange(100).reshape(4, 25)
    batch = {"input_ids": ids, "attention_mask": torch.ones(4, 25), "flag": True, "scale": torch.tensor(2.0),
             "document": torch.arange(4)}  # fmt: skip
    small = corner(batch, _summed)
    assert torch.equal(small["input_ids"], ids[:2, :16])
    assert small["attention_mask"].shape == (2, 16)
    assert small["flag"] is True
    assert small["scale"].ndim == 0
    assert "document" not in small


def test_of_text_that_is_padded_on_the_left_the_end_is_taken() -> None:
    ids, mask = torch.arange(100).reshape(4, 25), torch.ones(4, 25)
    mask[:, :12] = 0
    small = corner({"input_ids": ids, "attention_mask": mask}, _summed)
    assert torch.equal(small["input_ids"], ids[:2, -16:])


@pytest.mark.parametrize("rows", [3, 10])
def test_an_argument_without_rows_is_left_whole_however_long_it_is(rows: int) -> None:
    """Positions (position,) beside tokens (row, position), of as many positions as there are rows too."""
    ids = torch.arange(rows * 10).reshape(rows, 10)
    batch = {"input_ids": ids, "attention_mask": torch.ones(rows, 10), "positions": torch.arange(10)}
    small = corner(batch, _summed)
    assert small["input_ids"].shape == (2, 10)
    assert torch.equal(small["positions"], torch.arange(10))


def test_rows_that_see_each_other_are_not_parted() -> None:
    batch = {"input_ids": torch.arange(40).reshape(4, 10)}
    assert (
        corner(batch, lambda batch: batch["input_ids"] - batch["input_ids"].float().mean(0))["input_ids"].shape[0] == 4
    )


def test_a_row_that_is_alone_gets_another_one() -> None:
    ids = torch.arange(1, 11)[None]
    small = corner({"input_ids": ids, "attention_mask": torch.ones(1, 10)}, _summed)
    assert torch.equal(small["input_ids"][0], ids[0])
    assert not torch.equal(small["input_ids"][1], ids[0])


def test_batches_inside_batches_are_cut_too() -> None:
    ids = torch.arange(40).reshape(4, 10)
    inner = {"input_ids": ids, "attention_mask": torch.ones(4, 10)}
    small = corner({"batch": inner}, lambda batch: _summed(batch["batch"]))
    assert torch.equal(small["batch"]["input_ids"], ids[:2])


def test_pictures_stay_whole() -> None:
    batch = {"input_ids": torch.ones(4, 32, dtype=torch.long), "pixels": torch.randn(4, 3, 32, 32)}
    small = corner(batch, lambda batch: batch["pixels"].mean((1, 2, 3)) + batch["input_ids"].sum(1))
    assert small["input_ids"].shape == (2, 32)
    assert small["pixels"].shape == (2, 3, 32, 32)
