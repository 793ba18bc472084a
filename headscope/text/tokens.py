"""Token ids as people read them: the text of each in its place, and which of them only delimit."""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

__all__ = ["Decoder", "delimiter_ids", "spell"]

_BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a decoder puts where bytes make no character, as those of a piece of one
_SPREAD = 8  # tokens that one character can be spread over: four bytes in UTF-8, each token a byte, and some room


@runtime_checkable
class Decoder(Protocol):
    """What is asked of a tokenizer here; every tokenizer of transformers has it."""

    all_special_ids: Any

    def decode(self, token_ids: list[int], **settings: Any) -> str: ...


def spell(tokenizer: Decoder | None, ids: Sequence[int]) -> tuple[str, ...]:
    """The text that each token adds to those before it; joined, they are the text of all.

    Tokens are decoded together, since one alone may be a piece of a word, or of a character: the first token of a
    character that is spread over several has it whole, and the others are empty.

    Args:
        tokenizer: None gives the numbers themselves, a space before each.
        ids: consecutive tokens.

    Returns:
        A string for each token, with the space before it where there is one.
    """
    if tokenizer is None:
        return tuple(f" {number}" for number in ids)
    pieces: list[str] = []
    done = ""
    while len(pieces) < len(ids):
        start = len(pieces)
        ends = range(start + 1, min(start + _SPREAD, len(ids)) + 1)
        found = ((_added(tokenizer, ids[:end], done, start), end) for end in ends)
        whole = next(((piece, end) for piece, end in found if _BROKEN not in piece), None)
        # half a character, its other half cut off: no more than one token is lost to it
        piece, end = whole or (_added(tokenizer, ids[: start + 1], done, start), start + 1)
        pieces += [piece, *[""] * (end - start - 1)]
        done = _decode(tokenizer, ids[:end])
    return tuple(pieces)


def _added(tokenizer: Decoder, ids: Sequence[int], done: str, start: int) -> str:
    """The text of all tokens without that of the first `start`, which is `done`."""
    text = _decode(tokenizer, ids)
    # what comes after may change what bytes before it stand for
    return text[len(done) :] if text.startswith(done) else _decode(tokenizer, ids[start:])


def delimiter_ids(tokenizer: Decoder, ids: Iterable[int]) -> set[int]:
    """Those of some tokens that are special, or nothing but punctuation and line breaks.

    Punctuation is what Unicode calls so, in any script; white space around it does not matter.

    Args:
        tokenizer: what the ids belong to.
        ids: the tokens in question.
    """
    special = {int(number) for number in tokenizer.all_special_ids}
    return {number for number in map(int, ids) if number in special or _delimits(_decode(tokenizer, [number]))}


def _delimits(text: str) -> bool:
    marks = text.strip()
    if not marks:
        return "\n" in text or "\r" in text
    return all(unicodedata.category(mark).startswith("P") or mark.isspace() for mark in marks)


def _decode(tokenizer: Decoder, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
