"""Masks where nobody would look for them: deep in a batch, in the tokens, in the model; and padding that none tells."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from headscope.anatomy import discover
from headscope.errors import InputError
from headscope.scoring.rating import importance
from headscope.sites import Padding

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def _bert() -> BertModel:
    torch.manual_seed(0)
    return BertModel(BertConfig(vocab_size=90, **_SMALL)).eval()


_IDS = torch.randint(3, 90, (3, 12), generator=torch.Generator().manual_seed(0))
_GONE = torch.zeros(3, 12, dtype=torch.bool)
_GONE[0, 7:] = _GONE[2, 10:] = True


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
    assert table.facts["caution"].startswith("layers 0, 1: it was not proven which positions are padding")
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
