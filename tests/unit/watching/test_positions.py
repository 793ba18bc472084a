"""Which positions count, and whose documents rows of a site are: against the same text without padding or windows."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn
from transformers import BertConfig, BertModel, SwinConfig, SwinModel, Wav2Vec2Config, Wav2Vec2Model

from headscope.anatomy import discover
from headscope.errors import InputError, MetricError
from headscope.likeness.comparing import similarity
from headscope.scoring.rating import importance
from headscope.sites import Padding
from headscope.statistics import STATISTICS
from headscope.watching.observation import observe

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def _bert() -> BertModel:
    torch.manual_seed(0)
    return BertModel(BertConfig(vocab_size=90, **_SMALL)).eval()


class _Renamed(nn.Module):
    """BERT whose mask has another name, says the contrary, or is added to the scores."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.inner, self.way = _bert(), way

    def forward(self, tokens: Tensor, padding_mask: Tensor) -> Tensor:
        keep = {"ones": ~padding_mask.bool(), "zeros": padding_mask.bool(), "floor": padding_mask}[self.way]
        return self.inner(tokens, attention_mask=keep if self.way == "floor" else keep.long()).last_hidden_state


_IDS = torch.randint(3, 90, (3, 12), generator=torch.Generator().manual_seed(0))
_GONE = torch.zeros(3, 12, dtype=torch.bool)
_GONE[0, 7:] = _GONE[2, 10:] = True


def _mask(way: str) -> Tensor:
    if way == "floor":
        return torch.zeros(3, 1, 12, 12).masked_fill(_GONE[:, None, None], torch.finfo(torch.float32).min)
    return _GONE if way == "ones" else (~_GONE).float()


def _rows(way: str) -> list[dict[str, Tensor]]:
    """The same text, a row at a time, without padding."""
    mask, found = _mask(way), []
    for row in range(3):
        n = int((~_GONE[row]).sum())
        own = mask[row : row + 1, ..., :n] if way != "floor" else mask[row : row + 1, :, :n, :n]
        found.append({"tokens": _IDS[row : row + 1, :n], "padding_mask": own})
    return found


class _Counted(nn.Module):
    """BERT that is told how many positions of each row count, or which is the last; by a name that says nothing."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.inner, self.way = _bert(), way

    def forward(self, tokens: Tensor, n: Tensor) -> Tensor:
        ends = {"lengths": n, "last": n + 1}.get(self.way)
        keep = n == 0 if ends is None else torch.arange(tokens.shape[1]) < ends[:, None]
        return self.inner(tokens, attention_mask=keep.long()).last_hidden_state


@pytest.mark.parametrize("way", ["lengths", "last", "gone"])
def test_padding_is_known_whatever_it_is_called_and_by_counts(way: str) -> None:
    model, lengths = _Counted(way).eval(), (~_GONE).sum(1)
    told = {"lengths": lengths, "last": lengths - 1, "gone": _GONE.long()}[way]
    batch = {"tokens": _IDS, "n": told}
    anatomy = discover(model, batch)
    assert anatomy.padding == (Padding("n", "ones" if way == "gone" else way),)
    table = importance(model, [batch], score="norm", anatomy=anatomy)
    assert table.facts["tokens"] == int(lengths.sum())
    want = importance(_Renamed("ones").eval(), _rows("ones"), score="norm")
    np.testing.assert_allclose(table.score, want.score, rtol=1e-5)


def test_counts_that_mask_nothing_are_not_believed() -> None:
    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = _bert()

        def forward(self, tokens: Tensor, kind: Tensor) -> Tensor:
            return self.inner(tokens).last_hidden_state + kind[:, None, None]

    assert discover(Told().eval(), {"tokens": _IDS, "kind": torch.tensor([3, 1, 2])}).padding == ()


def test_kept_of_another_shape_is_refused() -> None:
    model = _bert()
    batch = {"input_ids": _IDS, "kept": ~_GONE[:, :5]}
    with pytest.raises(InputError, match=r"kept is \(3, 5\) in batch 0, and no layer has as many rows and positions"):
        importance(model, [batch], score="norm")


@pytest.mark.parametrize("way", ["ones", "zeros", "floor"])
def test_padding_is_known_by_what_it_does(way: str) -> None:
    model, batch = _Renamed(way).eval(), {"tokens": _IDS, "padding_mask": _mask(way)}
    assert discover(model, batch).padding == (Padding("padding_mask", way),)
    padded, plain = (importance(model, batches, score="norm") for batches in ([batch], _rows(way)))
    assert padded.facts["tokens"] == plain.facts["tokens"] == int((~_GONE).sum())
    np.testing.assert_allclose(padded.score, plain.score, rtol=1e-5)
    likeness = [similarity(model, batches, measure="cka").matrix for batches in ([batch], _rows(way))]
    np.testing.assert_allclose(likeness[0], likeness[1], atol=1e-5)


class _Deaf(nn.Module):
    """It takes a mask, and looks at nothing but the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _bert()

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        del attention_mask
        return self.inner(tokens).last_hidden_state


def test_a_mask_that_masks_nothing_is_not_believed_and_it_is_said() -> None:
    batch = {"tokens": _IDS, "attention_mask": (~_GONE).long()}
    anatomy = discover(_Deaf().eval(), batch)
    assert anatomy.padding == ()
    assert "its attention_mask does not keep padding out" in anatomy.remarks[0]


def test_the_user_may_say_what_is_kept() -> None:
    model, batch = _bert(), {"input_ids": _IDS, "kept": ~_GONE}
    table = importance(model, [batch], score="norm")
    assert table.facts["tokens"] == int((~_GONE).sum())


def _speech() -> Wav2Vec2Model:
    torch.manual_seed(0)
    return Wav2Vec2Model(Wav2Vec2Config(
        vocab_size=32, **_SMALL, conv_dim=(16, 16, 16), conv_stride=(5, 4, 4), conv_kernel=(10, 8, 4),
        num_feat_extract_layers=3, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer",
    )).eval()  # fmt: skip


def test_frames_of_sound_follow_the_models_own_reduction() -> None:
    model, sound, mask = _speech(), torch.randn(2, 6000), torch.ones(2, 6000, dtype=torch.long)
    mask[1, 2400:], sound[1, 2400:] = 0, 0
    one = [{"input_values": sound[:1], "attention_mask": mask[:1]},
           {"input_values": sound[1:, :2400], "attention_mask": mask[1:, :2400]}]  # fmt: skip
    padded = importance(model, [{"input_values": sound, "attention_mask": mask}], score="norm")
    plain = importance(model, one, score="norm")
    assert padded.facts["tokens"] == plain.facts["tokens"]
    np.testing.assert_allclose(padded.score, plain.score, rtol=1e-4)


def test_windows_keep_the_document_of_their_row() -> None:
    torch.manual_seed(0)
    model = SwinModel(
        SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4)
    ).eval()
    pixels = torch.randn(4, 3, 32, 32)
    anatomy = discover(model, {"pixel_values": pixels})
    assert [site.batch for site in anatomy.sites] == ["b w", "b"]
    halves = [{"pixel_values": pixels[:2]}, {"pixel_values": pixels[2:]}]
    whole, parted = (importance(model, batches, score="norm") for batches in ([{"pixel_values": pixels}], halves))
    assert whole.facts["documents"] == parted.facts["documents"] == 4
    np.testing.assert_allclose(whole.score, parted.score, rtol=1e-5)
    np.testing.assert_allclose(whole.high, parted.high, rtol=1e-5)


class _Channels(nn.Module):
    """Channels of a series, each a row of its own, in turn: (channel, row)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.qkv, self.o = nn.Linear(1, 8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, series: Tensor) -> Tensor:
        rows = self.enter(series.permute(2, 0, 1).flatten(0, 1)[..., None])
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(rows).chunk(3, -1))
        z = (q @ k.mT).softmax(-1) @ v
        return self.o(z.transpose(1, 2).flatten(2)).unflatten(0, (series.shape[2], -1)).transpose(0, 1)


def test_rows_that_take_turns_keep_their_documents_too() -> None:
    torch.manual_seed(0)
    model, series = _Channels().eval(), torch.randn(3, 6, 2)
    anatomy = discover(model, {"series": series})
    assert anatomy.sites[0].batch == "w b"
    means = STATISTICS["means"]()
    seen = observe(model, [{"series": series}], [means], anatomy=anatomy)
    assert (seen.n_documents, seen.n_tokens) == (3, 36)


class _Packed(nn.Module):
    """Patches of all pictures in one row, as towers of vision–language models have them; then a layer as usual."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o, self.text_qkv, self.text_o = (nn.Linear(8, n) for n in (24, 8, 24, 8))

    def forward(self, patches: Tensor, pictures: int = 2) -> Tensor:
        rows, length = patches.shape[:2]
        own = torch.arange(rows).repeat_interleave(length)
        flat = patches.flatten(0, 1)[None]
        x = self._attend(flat, self.qkv, self.o, own[:, None] == own[None])
        x = x.unflatten(1, (rows, length))[0]
        return self._attend(x, self.text_qkv, self.text_o)

    @staticmethod
    def _attend(x: Tensor, qkv: nn.Linear, o: nn.Linear, seen: Tensor | None = None) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in qkv(x).chunk(3, -1))
        return o(F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2))


def test_where_rows_cannot_be_told_a_batch_is_one_document_and_it_is_said() -> None:
    torch.manual_seed(0)
    model, batches = _Packed().eval(), [{"patches": torch.randn(3, 5, 8)} for _ in range(4)]
    anatomy = discover(model, batches[0])
    assert [site.batch for site in anatomy.sites] == ["", "b"]
    assert "all of a batch is one document there" in anatomy.remarks[0]
    norm = importance(model, batches, score="norm", anatomy=anatomy)
    assert (norm.facts["documents"], norm.facts["tokens"]) == (12, 60)
    # by hand: what each head adds, and a document for each batch (delete one of four)
    squares = np.stack([_squared_lengths(model, batch["patches"]) for batch in batches])
    np.testing.assert_allclose(norm.score[:2], np.sqrt(squares.mean(0)), rtol=1e-5)
    without = np.sqrt([np.delete(squares, place, axis=0).mean(0) for place in range(4)])
    apart = np.sqrt(3 * without.var(0))
    np.testing.assert_allclose((norm.high - norm.low)[:2] / 2, stats.t.ppf(0.975, 3) * apart, rtol=1e-4)
    gradient = importance(model, batches, score="gradient", metric=_squares, anatomy=anatomy)
    assert np.isnan(gradient.score[:2]).all()
    assert np.isfinite(gradient.score[2:]).all()
    assert "not for layers 0, whose rows cannot be told from each other" in gradient.facts["why_no_value"]
    ablation = importance(model, batches, score="ablation", metric=_squares, anatomy=anatomy)
    assert np.isfinite(ablation.score).all()


def _squares(output: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return output.square().mean((1, 2))


def _squared_lengths(model: _Packed, patches: Tensor) -> np.ndarray:
    """The mean squared length of what each head of the first layer adds."""
    weight = model.o.weight.detach().double()
    found = []
    for picture in patches.double():
        q, k, v = (picture @ model.qkv.weight.double().T + model.qkv.bias.double()).chunk(3, -1)
        z = [((q[:, own] @ k[:, own].T / 2).softmax(-1) @ v[:, own]) for own in (slice(0, 4), slice(4, 8))]
        found.append(torch.stack([(z[h] @ weight[:, 4 * h : 4 * h + 4].T).square().sum(-1) for h in range(2)]))
    return torch.cat(found, dim=1).mean(1).detach().numpy()


def test_gradients_of_rows_that_take_turns_are_not_told_and_those_of_windows_are_right() -> None:
    torch.manual_seed(0)
    model, series = _Channels().eval(), {"series": torch.randn(3, 6, 2)}
    anatomy = discover(model, series)
    with pytest.raises(MetricError, match="tells its gradients by row"):
        importance(model, [series], score="gradient", metric=lambda out, batch: out.flatten(1).sum(1), anatomy=anatomy)
    swin = SwinModel(
        SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4)
    ).eval()
    pixels = torch.randn(3, 3, 32, 32)

    def metric(output: Any, batch: dict[str, Tensor]) -> Tensor:
        rows: Tensor = output.pooler_output.square().sum(1)
        return rows

    whole = importance(swin, [{"pixel_values": pixels}], score="gradient", metric=metric)
    alone = importance(swin, [{"pixel_values": one[None]} for one in pixels], score="gradient", metric=metric)
    np.testing.assert_allclose(whole.score, alone.score, rtol=1e-4)


def test_several_rows_that_cannot_be_told_are_one_document_too() -> None:
    torch.manual_seed(0)
    model, series = _Channels().eval(), torch.randn(3, 6, 2)
    anatomy = discover(model, {"series": series})
    lost = replace(anatomy, sites=tuple(replace(site, batch="") for site in anatomy.sites))
    seen = observe(model, [{"series": series}], [STATISTICS["means"]()], anatomy=lost)
    assert (seen.n_documents, seen.n_tokens) == (1, 36)


class _PositionsFirst(nn.Module):
    """PyTorch's own encoder as it is by default: positions first, rows second."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(90, 16)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24), 2, enable_nested_tensor=False)
        self.causal = causal

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(len(tokens)) if self.causal else None
        out: Tensor = self.encoder(self.embed(tokens), mask=mask)
        return out


class _RowsFirst(nn.Module):
    """What the remark tells to put around it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.inner(tokens.T)
        return out.transpose(0, 1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rows", [2, 7, 3])
def test_positions_that_come_first_are_no_rows_even_where_there_are_as_many(rows: int, causal: bool) -> None:
    model = _PositionsFirst(causal).eval()
    tokens = torch.randint(0, 90, (7, rows), generator=torch.Generator().manual_seed(1))
    anatomy = discover(model, {"tokens": tokens})
    assert [site.batch for site in anatomy.sites] == ["", ""]
    assert "it takes positions first and rows second" in anatomy.remarks[0]
    around = discover(_RowsFirst(model), {"tokens": tokens.T})
    assert [site.batch for site in around.sites] == ["b", "b"]
    assert around.remarks == ()


class _Soft(nn.Module):
    """BERT that is told which share of the longest text each row has."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _bert()

    def forward(self, tokens: Tensor, wav_lens: Tensor) -> Tensor:
        keep = torch.arange(tokens.shape[1]) < (wav_lens * tokens.shape[1]).round()[:, None]
        return self.inner(tokens, attention_mask=keep.long()).last_hidden_state


def test_an_argument_that_sounds_like_padding_and_is_not_understood_is_told() -> None:
    model, batch = _Soft().eval(), {"tokens": _IDS, "wav_lens": (~_GONE).float().mean(1)}
    (told,) = discover(model, batch).remarks
    assert told.startswith("it takes wav_lens, and which positions that marks as padding, if any, was not told by")
    table = importance(model, [batch], score="norm")
    assert (table.facts["tokens"], table.facts["remarks"]) == (36, [told])
    kept = importance(model, [{**batch, "kept": ~_GONE}], score="norm")
    assert kept.facts["tokens"] == int((~_GONE).sum())


class _Nested(nn.Module):
    """BERT whose mask lies in a dict of its batch, in a pair, or is made of the tokens."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.inner, self.way = _bert(), way

    def forward(self, tokens: Any = None, more: Any = None, pair: Any = None) -> Tensor:
        if self.way == "pair":
            tokens, keep = pair
        else:
            keep = tokens != 0 if self.way == "ids" else more["inner"]["m"]
        return self.inner(tokens, attention_mask=keep.long()).last_hidden_state


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("way", ["dict", "pair", "ids"])
def test_padding_is_known_wherever_the_mask_lies_and_where_the_model_makes_it_of_the_tokens(
    way: str, side: str
) -> None:
    model = _Nested(way).eval()
    keep = ~_GONE if side == "right" else (~_GONE).flip(1)
    tokens = torch.where(keep, _IDS, 0)
    batch: dict[str, Any] = {
        "dict": {"tokens": tokens, "more": {"inner": {"m": keep}}}, "pair": {"pair": (tokens, keep)},
        "ids": {"tokens": tokens},
    }[way]  # fmt: skip
    (padding,) = discover(model, batch).padding
    assert padding == {
        "dict": Padding("more.inner.m", "zeros"), "pair": Padding("pair.1", "zeros"), "ids": Padding("tokens", "id 0"),
    }[way]  # fmt: skip
    table = importance(model, [batch], score="norm")
    want = importance(_bert(), [{"input_ids": tokens, "attention_mask": keep.long()}], score="norm")
    assert table.facts["tokens"] == int(keep.sum())
    np.testing.assert_allclose(table.score, want.score, rtol=1e-5)


def test_tokens_that_nobody_keeps_out_count() -> None:
    assert discover(_bert(), {"input_ids": torch.where(_GONE, 0, _IDS)}).padding == ()


class _Windows(nn.Module):
    """Text in windows of 4, the last one filled up by the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.o = nn.Embedding(90, 8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, text: Tensor) -> Tensor:
        x = self.embed(text)
        more = -x.shape[1] % 4
        x = F.pad(x, (0, 0, 0, more)).unflatten(1, (-1, 4)).flatten(0, 1)
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        out = self.o(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))
        return out.unflatten(0, (len(text), -1)).flatten(1, 2)[:, : text.shape[1]]


def test_what_a_model_fills_its_last_window_up_with_does_not_count() -> None:
    torch.manual_seed(0)
    model, batch = _Windows().eval(), {"text": _IDS[:, :10]}
    assert discover(model, batch).sites[0].batch == "b w"
    table = importance(model, [batch], score="norm")
    assert table.facts["tokens"] == 30
    x = F.pad(model.embed(batch["text"]), (0, 0, 0, 2)).unflatten(1, (3, 4)).double()
    model.double()
    q, k, v = (part.unflatten(-1, (2, 4)).transpose(2, 3) for part in model.qkv(x).chunk(3, -1))
    z = ((q @ k.mT).softmax(-1) @ v).transpose(2, 3).flatten(1, 2)[:, :10]
    parts = [z[:, :, head] @ model.o.weight[:, 4 * head : 4 * head + 4].T for head in range(2)]
    want = [float(part.detach().square().sum(-1).mean().sqrt()) for part in parts]
    np.testing.assert_allclose(table.score, want, rtol=1e-5)


class _Sometimes(nn.Module):
    """A second layer that only long text reaches; or none at all for text of an odd length."""

    def __init__(self, even: bool) -> None:
        super().__init__()
        self.layers, self.even = nn.ModuleList(_bert().encoder.layer), even
        self.embed = nn.Embedding(90, 32)

    def forward(self, text: Tensor) -> Tensor:
        x = self.embed(text)
        if self.even and text.shape[1] % 2:
            return x
        for layer in self.layers[: 1 if text.shape[1] < 8 and not self.even else 2]:
            x = layer(x)
        return x


def test_layers_that_did_not_run_are_told_and_batches_without_any_are_refused() -> None:
    anatomy = discover(_Sometimes(False).eval(), {"text": _IDS[:, :6]})
    assert len(anatomy.sites) == 1
    assert any("layers.1" in remark and "did not run on the example" in remark for remark in anatomy.remarks)
    model = _Sometimes(True).eval()
    with pytest.raises(InputError, match="none of the attention layers ran on batch 1, though they ran on the example"):
        importance(model, [{"text": _IDS}, {"text": _IDS[:, :11]}], score="norm")


class _Prompted(nn.Module):
    """BERT with two positions before the text, as prompt tuning has them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.prompt = _bert(), nn.Parameter(torch.randn(2, 32))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        prompt = self.prompt.expand(len(input_ids), -1, -1)
        x = torch.cat([prompt, self.inner.embeddings.word_embeddings(input_ids)], 1)
        mask = F.pad(attention_mask, (2, 0), value=1)
        return self.inner(inputs_embeds=x, attention_mask=mask).last_hidden_state


def test_positions_that_no_mask_fits_are_told() -> None:
    model, batch = _Prompted().eval(), {"input_ids": _IDS, "attention_mask": (~_GONE).long()}
    table = importance(model, [batch], score="norm")
    assert table.facts["tokens"] == 3 * 14
    assert table.facts["caution"].startswith("layers 0, 1 have other positions than the mask tells of")
    assert (
        "caution" not in importance(model, [{**batch, "kept": F.pad(~_GONE, (2, 0), value=True)}], score="norm").facts
    )
    whole = {"input_ids": _IDS, "attention_mask": torch.ones_like(_IDS)}
    assert "caution" not in importance(model, [whole], score="norm").facts


def test_segments_of_packed_text_leave_padding_out() -> None:
    class Segments(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = _bert()

        def forward(self, tokens: Tensor, segment_ids: Tensor) -> Tensor:
            same = (segment_ids[:, None] == segment_ids[:, :, None]) & (segment_ids > 0)[:, None]
            same |= torch.eye(tokens.shape[1], dtype=torch.bool)
            return self.inner(tokens, attention_mask=same[:, None]).last_hidden_state

    segments = (1 + torch.arange(12) // 4).masked_fill(_GONE, 0)
    batch = {"tokens": _IDS, "segment_ids": segments}
    assert discover(Segments().eval(), batch).padding == (Padding("segment_ids", "zeros"),)
    assert importance(Segments().eval(), [batch], score="norm").facts["tokens"] == int((~_GONE).sum())
