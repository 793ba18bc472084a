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
