"""Which positions of which rows a mask speaks of: proven by what moves, never by how many there are."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertLMHeadModel, CLIPConfig, CLIPModel

from headscope.anatomy import discover
from headscope.errors import InputError, MetricError
from headscope.likeness.comparing import similarity
from headscope.scoring.rating import importance

LENGTHS = torch.tensor([3, 8, 5, 6])
KEEP = torch.arange(8) < LENGTHS[:, None]
IDS = torch.randint(1, 50, (4, 8), generator=torch.Generator().manual_seed(1)) * KEEP
TEXT = {"input_ids": IDS, "attention_mask": KEEP.long()}


class _Attention(nn.Module):
    """4 heads of 4 dimensions; `heard` holds its contributions and its mask, row by row as they stand here."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.heard: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (4, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
        z = (q @ k.mT / 2).masked_fill(~keep[:, None, None], -1e9).softmax(-1) @ v
        adds = torch.einsum("bhtd,mhd->bthm", z, self.o.weight.unflatten(1, (4, 4)))
        self.heard.append((adds.detach().square().sum(-1), keep))
        out: Tensor = self.o(z.transpose(1, 2).flatten(2))
        return out


Way = Callable[["_Encoder", Tensor, Tensor], Tensor]


class _Encoder(nn.Module):
    """Two layers of attention; a way of its own leads through them."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.layers, self.way = nn.Embedding(50, 16), nn.ModuleList([_Attention(), _Attention()]), way

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, pad_mask: Tensor | None = None,
        start_mask: Tensor | None = None, lengths: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        keep = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        for mask in (pad_mask, start_mask):
            keep = keep if mask is None else keep & ~mask
        if lengths is not None:
            keep = keep & (torch.arange(input_ids.shape[1]) < lengths[:, None])
        return self.way(self, self.embed(input_ids), keep)


def plain(model: _Encoder, x: Tensor, keep: Tensor) -> Tensor:
    for layer in model.layers:
        x = x + layer(x, keep)
    return x


def by_length(model: _Encoder, x: Tensor, keep: Tensor) -> Tensor:
    order = keep.sum(1).argsort(descending=True)
    return plain(model, x[order], keep[order])[order.argsort()]


def shortest_first(model: _Encoder, x: Tensor, keep: Tensor) -> Tensor:
    order = keep.sum(1).argsort()
    return plain(model, x[order], keep[order])[order.argsort()]


def backwards(model: _Encoder, x: Tensor, keep: Tensor) -> Tensor:
    first, second = model.layers
    out: Tensor = first(x, keep) + second(x.flip(1), keep.flip(1)).flip(1)
    return out


def norms(model: _Encoder, layer: int, batches: list[dict[str, Any]]) -> np.ndarray:
    """Root mean square of what each head adds, over what the layer itself kept."""
    own: Any = model.layers[layer]
    own.heard.clear()
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    rows = torch.cat([adds[keep] for adds, keep in own.heard])
    return rows.mean(0).sqrt().numpy()


@pytest.mark.parametrize("way", [by_length, shortest_first, backwards])
def test_padding_in_another_order_is_refused(way: Way) -> None:
    model = _Encoder(way).eval()
    anatomy = discover(model, TEXT)
    assert "stand in another order" in " ".join(anatomy.remarks) or not anatomy.sites[0].batch
    with pytest.raises(InputError, match="has rows or positions of the batch in another order"):
        importance(model, [TEXT], score="norm", anatomy=anatomy)
    # without padding, where all rows are of one length, there is nothing to be mistaken
    full = {"input_ids": IDS.clamp(min=1), "attention_mask": torch.ones_like(IDS)}
    table = importance(model, [full], score="norm", anatomy=anatomy)
    np.testing.assert_allclose(table.score[4:], norms(model, 1, [full]), rtol=1e-5)


def test_rows_in_their_order_are_told_from_those_in_another() -> None:
    assert [site.batch for site in discover(_Encoder(plain).eval(), TEXT).sites] == ["b", "b"]
    for way in (by_length, shortest_first):
        assert [site.batch for site in discover(_Encoder(way).eval(), TEXT).sites] == ["", ""]


TWO = {
    "one hides the end, one the start": {"pad_mask": ~KEEP, "start_mask": torch.arange(8).expand(4, 8) < 1},
    "beside attention_mask": {"attention_mask": KEEP.long(), "start_mask": torch.arange(8).expand(4, 8) < 1},
    "beside lengths": {"attention_mask": (torch.arange(8).expand(4, 8) > 0).long(), "lengths": LENGTHS},
}


@pytest.mark.parametrize("name", TWO)
def test_all_masks_of_a_batch_are_obeyed(name: str) -> None:
    model, batch = _Encoder(plain).eval(), {"input_ids": IDS, **TWO[name]}
    table = importance(model, [batch], score="norm")
    assert table.facts["tokens"] == int(LENGTHS.sum()) - 4
    for layer in range(2):
        np.testing.assert_allclose(table.score[4 * layer : 4 * layer + 4], norms(model, layer, [batch]), rtol=1e-5)


LATER: dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]] = {
    "a mask": ({}, {"pad_mask": ~KEEP}), "lengths": ({}, {"lengths": LENGTHS}),
    "another one": ({"pad_mask": ~KEEP}, {"lengths": LENGTHS}),
}  # fmt: skip


@pytest.mark.parametrize("name", LATER)
def test_a_mask_that_heads_were_not_found_with_is_refused(name: str) -> None:
    model = _Encoder(plain).eval()
    batches = [{"input_ids": IDS, **more} for more in LATER[name]]
    with pytest.raises(InputError, match="which positions it marks as padding is not known"):
        importance(model, batches, score="norm")
    said = [batch | {"kept": KEEP} for batch in batches]
    assert importance(model, said, score="norm").facts["tokens"] == 2 * int(LENGTHS.sum())


def _windows(order: str) -> Way:
    def way(model: _Encoder, x: Tensor, keep: Tensor) -> Tensor:
        shift = 2 if order == "shifted" else 0
        x, keep = x.roll(-shift, 1), keep.roll(-shift, 1)
        if order == "dilated":
            cut = [one.unflatten(1, (4, 2)).transpose(1, 2).flatten(0, 1) for one in (x, keep)]
        else:
            cut = [one.unflatten(1, (2, 4)).flatten(0, 1) for one in (x, keep)]
        parts = plain(model, *cut).unflatten(0, (len(x), 2))
        whole = parts.transpose(1, 2).flatten(1, 2) if order == "dilated" else parts.flatten(1, 2)
        return whole.roll(shift, 1)

    return way


def test_windows_side_by_side_have_their_padding_and_others_are_refused() -> None:
    model = _Encoder(_windows("plain")).eval()
    table = importance(model, [TEXT], score="norm")
    np.testing.assert_allclose(table.score[:4], norms(model, 0, [TEXT]), rtol=1e-5)
    for order in ("shifted", "dilated"):
        with pytest.raises(InputError, match="sees parts of rows, and which of their positions are padding"):
            importance(_Encoder(_windows(order)).eval(), [TEXT], score="norm")


def test_a_picture_of_as_many_patches_as_the_text_has_tokens_has_no_padding() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = sizes | {"vocab_size": 60, "max_position_embeddings": 16, "eos_token_id": 59, "pad_token_id": 0}
    torch.manual_seed(0)
    model: Any = CLIPModel(
        CLIPConfig(text_config=text, vision_config=sizes | {"image_size": 8, "patch_size": 4}, projection_dim=8)
    ).eval()
    keep = torch.arange(5) < torch.tensor([3, 5, 2, 4])[:, None]
    batch = {
        "input_ids": IDS[:, :5] * keep, "attention_mask": keep.long(),
        "pixel_values": torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
    }  # fmt: skip
    entering: list[Tensor] = []
    projection = model.vision_model.encoder.layers[0].self_attn.out_proj
    with torch.no_grad():
        handle = projection.register_forward_pre_hook(lambda _, args: entering.append(args[0]))
        model(**batch)
        handle.remove()
    adds = torch.einsum("bthd,mhd->bthm", entering[0].unflatten(-1, (4, 4)), projection.weight.unflatten(1, (4, 4)))
    want = adds.detach().square().sum(-1).mean((0, 1)).sqrt()
    anatomy = discover(model, batch)
    (site,) = (site for site in anatomy.sites if "vision" in site.module_name)
    assert site.query_masks == ("none",)
    table = importance(model, [batch], score="norm", anatomy=anatomy)
    own = [score for score, head in zip(table.score, table.heads, strict=True) if head.layer == site.layer]
    np.testing.assert_allclose(own, want.numpy(), rtol=1e-5)
    assert "caution" not in table.facts


class _Latents(nn.Module):
    """Six learned latents look at a text, and at each other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.latents = nn.Embedding(50, 16), nn.Parameter(torch.randn(6, 16))
        self.look, self.talk = (nn.MultiheadAttention(16, 4, batch_first=True) for _ in range(2))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x, latents = self.embed(input_ids), self.latents.expand(len(input_ids), -1, -1)
        latents = latents + self.look(latents, x, x, key_padding_mask=attention_mask == 0)[0]
        out: Tensor = latents + self.talk(latents, latents, latents)[0]
        return out


@pytest.mark.parametrize("length", [6, 8])
def test_latents_cross_however_many_there_are_and_what_is_not_proven_is_said(length: int) -> None:
    batch = {"input_ids": IDS[:, :length], "attention_mask": KEEP[:, :length].long()}
    model = _Latents().eval()
    anatomy = discover(model, batch)
    assert [site.kind for site in anatomy.sites] == ["cross", "self"]
    # queries that are latents themselves do not move with the text; what they have read of it does
    table = importance(model, [batch], score="norm", anatomy=anatomy)
    assert table.facts["caution"].startswith(
        "layers 1: it was not proven" if length == 6 else "layers 0, 1: it was not"
    )


def test_rows_that_look_at_rows_are_none_of_the_batch_where_there_are_as_many_as_positions() -> None:
    def across(model: _Encoder, x: Tensor, keep: Tensor) -> Tensor:
        first, second = model.layers
        x = x + first(x, keep)
        x = x.transpose(0, 1)
        out: Tensor = (x + second(x, torch.ones_like(keep.T))).transpose(0, 1)
        return out

    model = _Encoder(across).eval()
    square = {name: value[:, :4] for name, value in TEXT.items()}
    with pytest.raises(InputError, match="has rows or positions of the batch in another order"):
        importance(model, [square], score="norm")
    full = {"input_ids": IDS[:, :4].clamp(min=1), "attention_mask": torch.ones(4, 4, dtype=torch.long)}
    table = importance(model, [full], score="norm")
    np.testing.assert_allclose(table.score[4:], norms(model, 1, [full]), rtol=1e-5)
    assert np.isnan(table.low[4:]).all()  # all of a batch is one document there


@pytest.mark.parametrize("length", [8, 6])
def test_keys_of_another_text_are_kept_by_its_own_mask(length: int) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        is_decoder=True, add_cross_attention=True,
    )  # fmt: skip
    model: Any = BertLMHeadModel(config).eval()
    seen = torch.arange(length) < torch.tensor([4, 6, 5, 3])[:, None]
    states = torch.randn(4, length, 16, generator=torch.Generator().manual_seed(0))
    batch = TEXT | {"encoder_hidden_states": states, "encoder_attention_mask": seen.long()}
    table = similarity(model, [batch], measure="cka_biased", of="k")
    layer = model.bert.encoder.layer[0].crossattention.self.key
    keys = layer(states).detach().double()[seen].unflatten(-1, (2, 8))
    first, second = (keys[:, head] - keys[:, head].mean(0) for head in range(2))
    want = (first.T @ second).norm() ** 2 / (first.T @ first).norm() / (second.T @ second).norm()
    np.testing.assert_allclose(table.matrix[2, 3], float(want), rtol=1e-5)


def test_an_embedding_of_other_positions_than_the_masks_has_no_drift() -> None:
    def prompted(model: _Encoder, x: Tensor, keep: Tensor) -> Tensor:
        return plain(model, F.pad(x, (0, 0, 2, 0), value=0.5), F.pad(keep, (2, 0), value=True))

    model = _Encoder(prompted).eval()
    with pytest.raises(MetricError, match="puts out 10 positions and no mask in the batch has as many"):
        importance(model, [TEXT], score="ablation", metric="drift")
    full = {"input_ids": IDS.clamp(min=1), "attention_mask": torch.ones_like(IDS)}
    assert np.isfinite(importance(model, [full], score="ablation", metric="drift").score).all()
