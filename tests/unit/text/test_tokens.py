"""Tokens as text: every script is whole, and punctuation is known in any of them."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from headscope.text.tokens import Decoder, delimiter_ids, spell


@pytest.fixture(scope="module")
def of_bytes() -> PreTrainedTokenizerFast:
    """A tokenizer whose every token is one byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>")


@pytest.fixture(scope="module")
def of_words() -> PreTrainedTokenizerFast:
    """A tokenizer of word pieces."""
    words = ["[UNK]", "[CLS]", "play", "##ing", "the", ",", "。", "\n", "...", "don", "'", "t", "—", "$", " "]
    made = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", cls_token="[CLS]")


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_both_are_decoders(of_bytes, of_words) -> None:
    assert isinstance(of_bytes, Decoder)
    assert isinstance(of_words, Decoder)


@pytest.mark.parametrize("text", ["the cat", "猫が座った。", "안녕 세계", "中文,字符", "🦕!", "naïve"])
def test_pieces_joined_are_the_text_and_characters_stay_whole(of_bytes, text: str) -> None:
    tokens = ids(of_bytes, text)
    pieces = spell(of_bytes, tokens)
    assert len(pieces) == len(tokens) == len(text.encode())
    assert "".join(pieces) == text
    assert [piece for piece in pieces if piece] == list(text)


def test_half_a_character_at_either_end_does_not_swallow_its_neighbours(of_bytes) -> None:
    tokens = ids(of_bytes, "猫a猫")[1:-1]
    pieces = spell(of_bytes, tokens)
    assert len(pieces) == 5
    assert pieces[2] == "a"


def test_pieces_of_words_join(of_words) -> None:
    assert spell(of_words, [1, 4, 2, 3, 5]) == ("[CLS]", " the", " play", "ing", " ,")


def test_without_a_tokenizer_tokens_are_numbers() -> None:
    assert spell(None, [7, 12]) == (" 7", " 12")
    assert spell(None, []) == ()


def test_delimiters_are_special_or_nothing_but_punctuation(of_words) -> None:
    words = of_words.get_vocab()
    found = delimiter_ids(of_words, words.values())
    names = {word for word, number in words.items() if number in found}
    assert names == {"[UNK]", "[CLS]", ",", "。", "\n", "...", "'", "—"}


def test_only_the_tokens_in_question_are_looked_at(of_words) -> None:
    words = of_words.get_vocab()
    assert delimiter_ids(of_words, [words[","], words["the"]]) == {words[","]}
