"""Cut models of kinds that are awkward to read: they are read again, cut again, and run as they did."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    ProphetNetConfig,
    ProphetNetModel,
    SqueezeBertConfig,
    SqueezeBertModel,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from headscope.anatomy import discover
from headscope.anatomy.records import record_of
from headscope.effects.ablation import ablate
from headscope.surgery import prune
from headscope.watching.observation import capture

IDS = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))


def shaken(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def test_two_attentions_of_a_module_say_each_which_heads_are_left() -> None:
    config = ProphetNetConfig(
        vocab_size=60, hidden_size=36, num_encoder_layers=1, num_decoder_layers=1, num_encoder_attention_heads=3,
        num_decoder_attention_heads=3, encoder_ffn_dim=8, decoder_ffn_dim=8, ngram=2, max_position_embeddings=32,
    )  # fmt: skip
    model = shaken(ProphetNetModel(config))
    batch = {"input_ids": IDS, "decoder_input_ids": IDS[:, :5]}
    smaller = prune(model, ["L1H2", "L2H2"])
    found = discover(smaller)
    assert [site.head_ids for site in found.sites] == [(0, 1, 2), (0, 1), (0, 1), (0, 1, 2)]
    again = prune(smaller, ["L1H0", "L2H0"])
    with ablate(model, ["L1H2", "L2H2", "L1H0", "L2H0"]), torch.no_grad():
        torch.testing.assert_close(again(**batch)[0], model(**batch)[0], rtol=0, atol=1e-5)


def test_a_convolution_that_reads_fewer_heads_is_read_again() -> None:
    config = SqueezeBertConfig(
        vocab_size=60, embedding_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=32, q_groups=4, k_groups=4, v_groups=4, post_attention_groups=1,
    )  # fmt: skip
    model = shaken(SqueezeBertModel(config))
    smaller = prune(model, ["L0H3", "L1H1"])
    assert [site.head_ids for site in discover(smaller).sites] == [(0, 1, 2), (0, 2, 3)]
    heard: list[Tensor] = []
    projection = smaller.encoder.layers[0].post_attention.conv1d
    projection.register_forward_hook(lambda _, __, out: heard.append(out))
    with capture(smaller, ("contribution",)) as seen, torch.no_grad():
        smaller(input_ids=IDS)
    total = seen[0].contribution.sum(1) + projection.bias
    torch.testing.assert_close(total, heard[-1].mT, rtol=0, atol=1e-5)


@pytest.mark.parametrize("multiple", [None, 8])
def test_heads_that_are_filled_up_to_attend_are_told_apart(multiple: int | None) -> None:
    config = MoonshineConfig(
        vocab_size=60, hidden_size=48, intermediate_size=32, encoder_num_hidden_layers=1, decoder_num_hidden_layers=1,
        encoder_num_attention_heads=4, decoder_num_attention_heads=4, pad_head_dim_to_multiple_of=multiple,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = shaken(MoonshineForConditionalGeneration(config))
    batch = {"input_values": torch.randn(2, 8000), "decoder_input_ids": IDS}
    heads = ["L0H1", "L1H0", "L2H3"]
    smaller = prune(model, heads)
    with ablate(model, heads), torch.no_grad():
        torch.testing.assert_close(smaller(**batch).logits, model(**batch).logits, rtol=0, atol=1e-5)
    assert smaller.model.encoder.layers[0].self_attn.q_proj.weight.shape == (36, 48)
    assert [site.n_heads for site in discover(smaller).sites] == [3, 3, 3]


def test_a_decoder_without_cross_attention_in_a_layer_hands_out_its_cache() -> None:
    config = WhisperConfig(
        vocab_size=60, d_model=24, encoder_layers=1, decoder_layers=2, encoder_attention_heads=3,
        decoder_attention_heads=3, encoder_ffn_dim=8, decoder_ffn_dim=8, num_mel_bins=8, max_source_positions=20,
        max_target_positions=30, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = shaken(WhisperForConditionalGeneration(config))
    sound = torch.randn(2, 8, 40)
    masked = copy.deepcopy(model)
    with torch.no_grad():
        masked.model.decoder.layers[0].encoder_attn.out_proj.weight.zero_()
    settings = {"max_new_tokens": 5, "return_dict_in_generate": True}
    made = prune(model, {2: [0, 1, 2]}).generate(sound, **settings)
    assert torch.equal(made.sequences, masked.generate(sound, **settings).sequences)


class Uneven(nn.Module):
    """Heads of different widths, side by side."""

    WIDTHS = (4, 4, 8, 8, 12, 12)

    def __init__(self) -> None:
        super().__init__()
        self.widths = [*self.WIDTHS]
        self.q, self.k, self.v, self.o = (nn.Linear(48, 48) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        split = (part(x).split(self.widths, -1) for part in (self.q, self.k, self.v))
        z = [(q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v for q, k, v in zip(*split, strict=True)]
        return self.o(torch.cat(z, -1))


@pytest.mark.parametrize("heads", [["L0H1"], ["L2H1", "L0H0"], ["L1H0", "L1H1"]])
def test_heads_of_different_widths_are_sites_of_their_own(heads: list[str]) -> None:
    torch.manual_seed(0)
    model, x = Uneven().eval(), torch.randn(2, 7, 48)
    found = discover(model, x)
    assert [(site.n_heads, site.head_dim) for site in found.sites] == [(2, 4), (2, 8), (2, 12)]
    with capture(model, ("contribution",), anatomy=found) as seen:
        out = model(x)
    torch.testing.assert_close(sum(seen[layer].contribution.sum(1) for layer in seen) + model.o.bias, out)
    smaller, masked = prune(model, heads, example=x), copy.deepcopy(model)
    starts = [0, 4, 8, 16, 24, 36, 48]
    for number in (2 * int(head[1]) + int(head[3]) for head in heads):
        with torch.no_grad():
            masked.o.weight[:, starts[number] : starts[number + 1]] = 0
    y = torch.randn(3, 5, 48)
    torch.testing.assert_close(smaller(y), masked(y), rtol=0, atol=1e-5)


def test_t5_cut_twice_is_read_again_and_gets_smaller() -> None:
    config = T5Config(
        vocab_size=60, d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=4, decoder_start_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = shaken(T5ForConditionalGeneration(config))
    once = prune(model, {layer: [1] for layer in range(3)})
    twice = prune(once, {0: [2], 1: [0]})
    assert [site.head_ids for site in discover(twice).sites] == [(0, 3), (2, 3), (0, 2, 3)]
    assert twice.encoder.block[0].layer[0].SelfAttention.q.weight.shape == (16, 32)
    record = record_of(twice)
    assert record is not None
    assert not record.ways
    batch = {"input_ids": IDS, "decoder_input_ids": IDS[:, :4]}
    with ablate(model, {0: [1, 2], 1: [0, 1], 2: [1]}), torch.no_grad():
        torch.testing.assert_close(twice(**batch).logits, model(**batch).logits, rtol=0, atol=1e-5)


class Remembering(nn.Module):
    """Keeps its table by head, looked up, as long as it only evaluates."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.table, self.looked_up = nn.Parameter(torch.randn(4, 9)), dict[int, Tensor]()

    def train(self, mode: bool = True) -> "Remembering":
        super().train(mode)
        if mode:
            self.looked_up = {}
        return self

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        length = x.shape[1]
        if self.training or length not in self.looked_up:
            place = torch.arange(length)
            self.looked_up[length] = self.table[:, (place[:, None] - place).abs()]
        return self.o(((q @ k.mT / 2 + self.looked_up[length]).softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("training", [False, True])
def test_what_a_module_keeps_by_head_to_evaluate_is_made_anew(training: bool) -> None:
    torch.manual_seed(0)
    model, x = Remembering().train(training), torch.randn(2, 5, 16)
    with torch.no_grad():
        model(x)
        smaller = prune(model, ["L0H1"], example=x)
        assert smaller.training == training
        assert len(smaller.o.weight[0]) == 12
        with ablate(model, ["L0H1"], example=x):
            torch.testing.assert_close(smaller(x), model(x), rtol=0, atol=1e-5)


def test_a_layer_whose_weight_something_else_holds_stays_whole() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Remembering(), nn.Linear(16, 16)).eval(), torch.randn(2, 5, 16)
    model[1].weight = model[0].q.weight
    smaller = prune(model, ["L0H1"], example=x)
    assert smaller[1].weight is smaller[0].q.weight
    assert len(smaller[0].v.weight) == 12
    with ablate(model, ["L0H1"], example=x), torch.no_grad():
        torch.testing.assert_close(smaller(x), model(x), rtol=0, atol=1e-5)


def test_a_layer_is_cut_beside_an_empty_one() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Remembering(), Remembering()).eval(), torch.randn(2, 5, 16)
    once = prune(model, {0: [0, 1, 2, 3]}, example=x)
    twice = prune(once, ["L1H0"], example=x)
    with ablate(model, {0: [0, 1, 2, 3], 1: [0]}, example=x), torch.no_grad():
        torch.testing.assert_close(twice(x), model(x), rtol=0, atol=1e-5)


class Halves(nn.Module):
    """Two attentions, of two heads each, side by side before one projection; their sizes are written out."""

    def __init__(self) -> None:
        super().__init__()
        self.makers = nn.ModuleList(nn.Linear(16, 8) for _ in range(6))
        self.o = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        made = [maker(x).view(*x.shape[:2], 2, 4).transpose(1, 2) for maker in self.makers]
        z = [(q @ k.mT / 2).softmax(-1) @ v for q, k, v in (made[:3], made[3:])]
        return self.o(torch.cat([one.transpose(1, 2).reshape(*x.shape[:2], 8) for one in z], -1))


@pytest.mark.parametrize("head", [0, 3])
def test_heads_in_two_pieces_are_told_after_a_cut_and_cut_again(head: int) -> None:
    torch.manual_seed(0)
    model, x = Halves().eval(), torch.randn(2, 5, 16)
    (site,) = discover(model, x).sites
    once = prune(model, [(0, head)], example=x)
    assert discover(once, x).sites[0].head_ids == tuple(own for own in range(4) if own != head)
    twice = prune(once, ["L0H1"], example=x)
    assert site.n_heads == 4
    with ablate(model, [(0, head), (0, 1)], example=x), torch.no_grad():
        torch.testing.assert_close(twice(x), model(x), rtol=0, atol=1e-5)


def test_one_module_in_two_places_gets_smaller() -> None:
    torch.manual_seed(0)
    attention, x = Halves(), torch.randn(2, 5, 16)
    model = nn.Sequential(attention, nn.Tanh(), nn.Sequential(attention)).eval()
    smaller = prune(model, ["L0H1", "L1H1"], example=x)
    assert smaller[2][0] is smaller[0]
    assert len(smaller[0].makers[0].weight) == 4
    with ablate(model, ["L0H1", "L1H1"], example=x), torch.no_grad():
        torch.testing.assert_close(smaller(x), model(x), rtol=0, atol=1e-5)
