"""What a model is probed with: made up where it says what it takes, else a corner of a batch."""

import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTModel

from headscope.anatomy.examples import make_example, probe_example
from headscope.errors import AnatomyError
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
    model = build("bert")
    model.main_input_name = "input_values"
    with pytest.raises(AnatomyError, match=r"BertModel takes 'input_values', which cannot be made up; pass example="):
        make_example(model)


def test_a_config_that_raises_instead_of_answering_is_survived() -> None:
    class Touchy:
        vocab_size = 10

        @property
        def pad_token_id(self) -> int:
            raise RuntimeError("ambiguous")

    model = nn.Linear(2, 2)
    model.main_input_name, model.config = "input_ids", Touchy()
    assert make_example(model)["input_ids"].shape == (2, 7)


def test_a_model_is_probed_with_a_corner_of_its_batch_unless_one_can_be_made_up() -> None:
    model = nn.Linear(2, 2)
    ids = torch.arange(100).reshape(4, 25)
    batch = {"input_ids": ids, "attention_mask": torch.ones(4, 25), "state": torch.ones(4, 9), "flag": True,
             "scale": torch.tensor(2.0), "document": torch.arange(4)}  # fmt: skip
    corner = probe_example(model, batch)
    assert corner is not None
    assert torch.equal(corner["input_ids"], ids[:2, :16])
    assert corner["attention_mask"].shape == (2, 16)
    assert corner["state"].shape == (2, 9)
    assert corner["flag"] is True
    assert corner["scale"].ndim == 0
    assert "document" not in corner
    model.main_input_name = "input_ids"
    assert probe_example(model, batch) is None
    model.main_input_name = "input_values"
    assert probe_example(model, batch) is not None
