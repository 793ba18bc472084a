"""What an example is given beside the first that a model runs on, so that all of it runs and is read."""

from inspect import Parameter
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from headscope._support.running import arguments
from headscope.anatomy import discover
from headscope.anatomy.examples import fitting, make_example
from headscope.anatomy.examples.arguments import added, may_be_added
from headscope.anatomy.examples.complaints import Complaint, complaint_of
from headscope.anatomy.examples.drafts import Draft, Maker
from headscope.anatomy.examples.facts import Facts
from headscope.anatomy.examples.repairs import repaired
from headscope.anatomy.examples.values import shapes_of
from headscope.anatomy.examples.widening import widened

_TEXT = {"vocab_size": 60, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "pad_token_id": 0}


def _config(**further: Any) -> hf.PreTrainedConfig:
    return hf.BertConfig(**_TEXT, **further)


class _Attention(nn.MultiheadAttention):
    """It attends to another sequence."""

    def __init__(self) -> None:
        super().__init__(16, 2, batch_first=True)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:  # type: ignore[override]
        return x + super().forward(x, seen, seen)[0]


class _Reader(nn.Module):
    """Text, and what a subclass reads beside it."""

    main_input_name = "input_ids"

    def __init__(self, **config: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = _config(**config)
        self.embed, self.read, self.beside = nn.Embedding(60, 16), _Attention(), _Attention()

    def text(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.read(x, x)


def test_a_decoder_by_itself_gets_what_an_encoder_made() -> None:
    sizes = {
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 16,
        "cross_attention_hidden_size": 16,
    }
    model = hf.TrOCRForCausalLM(hf.TrOCRConfig(d_model=16, vocab_size=60, **sizes)).eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    example = make_example(model)
    assert example["encoder_hidden_states"].shape[0::2] == (2, 16)
    assert {site.kind for site in discover(model).sites} == {"causal", "cross"}
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("listens", [False, True])
def test_a_text_model_is_run_only_where_a_part_may_listen(listens: bool) -> None:
    model = hf.BertModel(_config(is_decoder=listens, add_cross_attention=listens)).eval()
    ran: list[object] = []
    model.register_forward_hook(lambda *_: ran.append(1))
    assert ("encoder_hidden_states" in make_example(model)) == listens
    assert bool(ran) == listens


class _Hinted(_Reader):
    """A hint wakes the second attention; an offset does nothing, and any other argument is taken too."""

    def forward(
        self, input_ids: Tensor, offset: Tensor | None = None, hint: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        x = self.text(input_ids)
        return x if hint is None else self.beside(x, hint)


def test_what_wakes_attention_is_added_and_what_does_not_is_not() -> None:
    model = _Hinted(cross_attention_hidden_size=16)
    assert [*added(("input_ids",), arguments(model))] == [("offset",), ("hint",)]
    first = fitting.fit_one(model, Draft(("input_ids",)), _maker(model), Facts(model.config), 1)
    assert model.beside not in first.ran
    wide = widened(model, first, _maker(model), Facts(model.config))
    assert wide.example is not None
    assert set(wide.example) == {"input_ids", "hint"}
    assert model.beside in wide.ran


def _maker(model: nn.Module) -> Maker:
    return Maker(Facts(model.config), arguments(model), frozenset())


class _Seer(_Reader):
    """Patches of a picture take the place of tokens, as far as there are any, and nobody counts them."""

    def __init__(self) -> None:
        super().__init__(image_token_id=50, image_size=16, patch_size=8)
        self.patches = nn.Conv2d(3, 16, 8, 8)

    def forward(self, input_ids: Tensor, pixel_values: Tensor | None = None) -> Tensor:
        x = self.embed(input_ids)
        if pixel_values is not None:
            seen = self.patches(pixel_values).flatten(2).mT
            seen = self.beside(seen, seen)
            x = x.masked_scatter((input_ids == 50)[..., None], seen)
        return self.read(x, x)


def test_a_picture_that_nothing_reads_gets_places_in_the_text() -> None:
    model = _Seer().eval()
    example = make_example(model)
    assert bool((example["input_ids"] == 50).any(1).all())
    other = {**example, "pixel_values": -example["pixel_values"]}
    assert not torch.equal(model(**example), model(**other))


class _Asking(_Reader):
    """It says how many places a picture wants only where it has some, and insists on the picture's grid."""

    def __init__(self) -> None:
        super().__init__(image_token_id=50)

    def forward(
        self, input_ids: Tensor, pixel_values: Tensor | None = None, image_grid_thw: Tensor | None = None
    ) -> Tensor:
        places = int((input_ids == 50).sum())
        if pixel_values is not None:
            if image_grid_thw is None:
                raise ValueError("image_grid_thw is None, and goes with pictures")
            if not places:
                raise ValueError("the picture is nowhere")
            if places != 12:
                raise ValueError(f"12 feature vectors for {places} placeholder tokens")
            x = self.embed(input_ids)
            return self.beside(self.text(input_ids), x)
        return self.text(input_ids)


def test_a_few_places_make_a_model_say_how_many_it_wants() -> None:
    example = make_example(_Asking())
    assert int((example["input_ids"] == 50).sum()) == 12


class _Insisting(_Reader):
    """It runs on no picture, and says what is missing where the grid is."""

    def forward(self, input_ids: Tensor, pixel_values: Tensor, image_grid_thw: Tensor | None = None) -> Tensor:
        raise ValueError("image_grid_thw is None" if image_grid_thw is None else "not so, by 3 dimensions")


def test_what_was_dropped_and_was_asked_for_then_is_not_dropped_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[set[str]] = []
    real = fitting.try_once

    def count(model: nn.Module, example: dict[str, Any]) -> fitting.Trial:
        tried.append(set(example))
        return real(model, example)

    monkeypatch.setattr(fitting, "try_once", count)
    model, names = _Insisting(image_token_id=50), ("input_ids", "pixel_values", "image_grid_thw")
    found = fitting.fit_one(model, Draft(names), _maker(model), Facts(model.config), 20)
    assert (found.tries, len(tried)) == (20, 20)
    assert sum("image_grid_thw" not in names for names in tried) == 1


def test_no_other_shape_makes_up_for_what_is_missing() -> None:
    model, draft = _Asking(), Draft(("input_ids", "pixel_values"))
    facts, takes = Facts(model.config), arguments(model)
    for missing in ((), ("image_grid_thw",)):
        further = [*repaired(draft, Complaint("no", missing), _maker(model), takes, facts)]
        assert any(rank == 2 for rank, _ in further) == (not missing)
        assert any("image_grid_thw" in one.names for _, one in further) == bool(missing)


def test_what_is_taken_by_any_name_is_not_asked_for() -> None:
    assert may_be_added("more", {"more": Parameter("more", Parameter.KEYWORD_ONLY)})
    assert not may_be_added("more", {"more": Parameter("more", Parameter.VAR_KEYWORD)})


def test_places_stand_in_tokens_and_not_in_codes() -> None:
    draft = Draft(("input_ids",), choices={"input_ids": 2}).standing("image", 3)
    assert _maker(_Asking()).make(draft)["input_ids"].ndim == 3


@pytest.mark.parametrize(
    ("message", "pieces"),
    [
        ("Got 12 feature vectors for 0 placeholder tokens (id 110)", (12,)),
        ("Number of placeholder tokens (4) does not match number of tokens from VQVAE (6)", (6,)),
        ("Got 12 feature vectors", ()),
    ],
)
def test_counts_of_pieces_are_read(message: str, pieces: tuple[int, ...]) -> None:
    assert complaint_of(ValueError(message), (), 0).pieces == pieces


@pytest.mark.parametrize(
    ("message", "length"),
    [
        ("expects `length` to be a multiple of `n_window * 2` (100), but got 90.", 100),
        ("The shape of the mask [2, 90] at index 1 does not match the shape of the indexed tensor [2, 70, 6]", 70),
    ],
)
def test_lengths_that_are_asked_for_are_given(message: str, length: int) -> None:
    model, name = _Asking(), "input_features_mask"
    draft, maker = Draft((name,), sizes={(name, 1): 90}), _maker(model)
    further = [one for _, one in repaired(draft, Complaint(message), maker, arguments(model), Facts(model.config))]
    assert length in [one.sizes.get((name, 1)) for one in further]


def test_a_mask_of_a_sound_is_as_long_as_the_sound() -> None:
    draft = Draft(("input_features", "input_features_mask"), sizes={("input_features", 2): 44})
    example = _maker(_Asking()).make(draft)
    assert example["input_features_mask"].shape == (2, 44)
    assert _maker(_Asking()).make(Draft(("input_features_mask",)))["input_features_mask"].shape == (2, 90)


def test_truth_values_come_first_where_a_forward_says_so() -> None:
    takes = Parameter("pixel_attention_mask", Parameter.KEYWORD_ONLY, annotation=torch.BoolTensor)
    assert shapes_of("pixel_attention_mask", (), takes)[0].is_of_truth
    assert not shapes_of("pixel_attention_mask", (), None)[0].is_of_truth


def test_flat_patches_say_where_they_stand() -> None:
    patches = _maker(_Asking()).make(Draft(("flattened_patches",)))["flattened_patches"]
    rows, columns = patches[0, :, 0].long(), patches[0, :, 1].long()
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == [
        (r + 1, c + 1) for r in range(4) for c in range(6)
    ]
