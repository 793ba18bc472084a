"""Batches as people have them, as dicts of what the model takes."""

from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchEncoding, BertConfig, BertForSequenceClassification

import headscope as hs
from headscope.errors import InputError
from headscope.text.feeding import feed, feed_one

X = torch.randint(0, 50, (20, 9), generator=torch.Generator().manual_seed(0))
Y = torch.cat([X[:, 1:], X[:, :1]], 1)  # each the token that follows
MASK = torch.ones(20, 9, dtype=torch.long)
MASK[::2, 6:] = 0
CLASSES = torch.randint(0, 2, (20,), generator=torch.Generator().manual_seed(2))


class _Gpt(nn.Module):
    """A language model of one's own, which takes what is to be told beside what it reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(50, 16), nn.Linear(16, 50)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x, length = self.embed(idx), idx.shape[1]
        ahead = torch.ones(length, length, dtype=torch.bool).triu(1)
        logits = self.head(x + self.attention(x, x, x, attn_mask=ahead, need_weights=False)[0])
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _classifier() -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 16}
    return BertForSequenceClassification(BertConfig(vocab_size=50, **sizes)).eval()


PAIRED = {"idx": X, "targets": Y}
OWN: dict[str, tuple[Any, dict[str, Tensor]]] = {
    "a tensor": (X, {"idx": X}), "an array": (X.numpy(), {"idx": X}), "a dict": ({"idx": X}, {"idx": X}),
    "a tuple": ((X, Y), PAIRED), "tensors": ([X[:8], X[8:]], {"idx": X}),
    "tuples": ([(X[:8], Y[:8]), (X[8:], Y[8:])], PAIRED),
    "a loader": (DataLoader(TensorDataset(X, Y), batch_size=4), PAIRED), "a dataset": (TensorDataset(X, Y), PAIRED),
    "lists": ([{"idx": X.tolist()}], {"idx": X}), "a generator": (({"idx": part} for part in X.split(8)), {"idx": X}),
    "named tuples": ([namedtuple("Pair", "idx targets")(X, Y)], PAIRED),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_a_model_of_one_s_own_is_given_its_arguments(name: str) -> None:
    given, want = OWN[name]
    batches = feed(_Gpt().eval(), given)
    assert list(batches[0]) == list(want)
    for argument, whole in want.items():
        assert torch.equal(torch.cat([batch[argument] for batch in batches]), whole)
    assert all(len(batch["idx"]) for batch in batches)


def _whole(batches: Any) -> dict[str, Tensor]:
    names = [name for name, value in batches[0].items() if isinstance(value, Tensor)]
    return {name: torch.cat([batch[name] for batch in batches]) for name in names}


def test_what_stands_where_a_mask_may_stand_is_one_if_it_looks_like_one_and_else_labels() -> None:
    model = _classifier()
    for given, want in (
        ((X, MASK, CLASSES), {"input_ids": X, "attention_mask": MASK, "labels": CLASSES}),
        ((X, CLASSES), {"input_ids": X, "labels": CLASSES}),
        ((X, Y), {"input_ids": X, "labels": Y}),  # token labels are no mask
    ):
        whole = _whole(feed(model, given))
        assert whole.keys() == want.keys()
        assert all(torch.equal(whole[name], want[name]) for name in want)


def test_rows_of_unlike_length_are_filled_up_and_masked() -> None:
    rows: list[list[int]] = [[1, 2, 3], [4, 5, 6, 7, 8], [9, 8, 7, 6]]
    (batch,) = feed(_classifier(), [{"input_ids": rows, "label": [0, 1, 0], "text": ["a", "b", "c"]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 0, 0], [4, 5, 6, 7, 8], [9, 8, 7, 6, 0]]
    assert batch["attention_mask"].sum(1).tolist() == [3, 5, 4]
    assert batch["labels"].tolist() == [0, 1, 0]
    assert batch["text"] == ["a", "b", "c"]
    (own,) = feed(_Gpt(), [{"idx": rows}])
    assert own["kept"].sum(1).tolist() == [3, 5, 4]
    assert feed_one(_classifier(), BatchEncoding({"input_ids": X}))["input_ids"] is X


class _Columns:
    """What is read of a dataset of `datasets`: a slice of it is a dict of columns."""

    column_names = ("input_ids", "attention_mask", "label")

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, rows: slice) -> dict[str, list[Any]]:
        return {name: part[rows].tolist() for name, part in zip(self.column_names, (X, MASK, CLASSES), strict=True)}


def test_columns_are_read_by_slices() -> None:
    whole = _whole(feed(_classifier(), _Columns()))
    for name, want in (("input_ids", X), ("attention_mask", MASK), ("labels", CLASSES)):
        assert torch.equal(whole[name], want)


def test_what_the_forward_does_not_take_is_for_the_metric_alone() -> None:
    model, seen = _Gpt().eval(), []

    def metric(output: tuple[Tensor, Tensor | None], batch: Any) -> Tensor:
        seen.append(batch["weight"])
        return output[0].float().mean((1, 2)) * batch["weight"]

    batch = {"idx": X[:4], "weight": torch.arange(4.0)}
    table = hs.importance(model, [batch], metric=metric)
    assert np.isfinite(table.score).all()
    assert torch.equal(seen[0], torch.arange(4.0))


def test_numbers_are_the_same_however_the_batches_come() -> None:
    model = _Gpt().eval()
    want = hs.importance(model, [{"idx": part} for part in X.split(8)], score="norm")
    for given in (X, X.numpy(), {"idx": X}, DataLoader(TensorDataset(X), batch_size=8)):
        np.testing.assert_allclose(hs.importance(model, given, score="norm").score, want.score, rtol=1e-6)
    assert hs.discover(model, X) == hs.discover(model, (X, Y)) == hs.discover(model, {"idx": X})


OTHER = torch.randint(0, 50, (20, 9), generator=torch.Generator().manual_seed(1))


class _Denoises(nn.Module):
    def forward(self, picture: Tensor) -> Tensor:
        return picture


PICTURE = torch.randn(4, 3, 8, 8)
EITHER = {
    "tokens": (_Gpt, (X, OTHER)), "tokens of unlike length": (_Gpt, (X, OTHER[:, :7])),
    "three": (_Gpt, (X, OTHER, OTHER.flip(0))), "arrays": (_Gpt, (X.numpy(), OTHER.numpy())),
    "pictures": (_Denoises, (PICTURE, PICTURE + 1)), "a mask's place": (_classifier, (X, OTHER)),
}  # fmt: skip


@pytest.mark.parametrize("name", EITHER)
def test_a_tuple_that_may_be_batches_or_a_pair_is_refused_with_both_spellings(name: str) -> None:
    kind, given = EITHER[name]
    names = ", ".join("abc"[: len(given)])
    with pytest.raises(InputError, match=rf"batches=\[{names}\] are .* batches=\[\({names}\)\] is one with labels"):
        feed(kind(), given)
    assert len(feed(kind(), list(given))) == len(given)
    assert len(feed(kind(), [given])) == 1


def test_a_tuple_is_one_pair_where_its_numbers_tell() -> None:
    masked = torch.where(MASK.bool(), OTHER, -100)
    for labels in (Y, X, masked, CLASSES, torch.rand(20, 9)):
        whole = _whole(feed(_classifier(), (X, labels)))
        assert whole.keys() == {"input_ids", "labels"}
        assert torch.equal(whole["labels"], labels)


def test_of_a_tuple_what_the_forward_needs_is_an_argument() -> None:
    class Both(nn.Module):
        def forward(self, source: Tensor, target: Tensor) -> Tensor:
            return source + target

    whole = _whole(feed(Both(), (X, OTHER)))
    assert torch.equal(whole["target"], OTHER)


def test_of_a_tuple_parts_of_unlike_numbers_of_rows_are_batches() -> None:
    assert [len(batch["idx"]) for batch in feed(_Gpt(), (X, OTHER[:5]))] == [20, 5]


def test_dicts_in_a_tuple_are_batches() -> None:
    assert len(feed(_Gpt(), ({"idx": X}, {"idx": OTHER}))) == 2
    with pytest.raises(InputError, match="put labels into the dict"):
        feed(_Gpt(), ({"idx": X}, Y))


def test_a_named_tuple_alone_is_one_batch() -> None:
    (batch,) = feed(_Gpt(), namedtuple("Pair", "idx targets")(X, OTHER))
    assert torch.equal(batch["idx"], X)
    assert torch.equal(batch["targets"], OTHER)


WRONG = {
    "text": ("a text", "this is 'a text'"), "texts": (["a", "b"], r"hs\.text_batches\(tokenizer, texts\)"),
    "nothing": (None, "this is None"), "a number": (5, "this is a int"), "no rows": ([X[:0]], "no rows"),
    "objects": ([object()], "it was a object"), "lists of objects": ([[object()]], "it was a list of object"),
    "a row's labels": ([(X[0], torch.tensor(1))], r"one row: labels is \(\);.*DataLoader"),
    "a row's tokens": ([{"input_ids": X[0].tolist(), "label": 1}], r"one row: input_ids is .*DataLoader"),
    "a column of text": ([{"text": ["a", "b"]}], r"hs\.text_batches\(tokenizer, texts\)"),
    "misspelled": ([{"input_ids": X, "attention_masks": MASK}], "'attention_masks', .* is 'attention_mask' meant"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_batch_is_refused_with_what_to_do(name: str) -> None:
    given, told = WRONG[name]
    with pytest.raises(InputError, match=told):
        hs.importance(_classifier(), given, score="norm")
