"""Text in, batches out: documents cut into windows of tokens, grouped into padded batches. Knows nothing of heads."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from headscope._support.objects import OWN_BATCHES
from headscope.errors import InputError
from headscope.text.batches import MadeOnDemand
from headscope.text.sides import TWO_SIDES, Reader, reader_of
from headscope.text.texts import Texts, gather_texts, read_documentation

__all__ = ["Corpus", "Frame", "Tokenizer", "Window", "text_batches"]

_MINIMUM = 16  # tokens; a shorter remainder of a document says little and is mostly padding
_PASSAGE = 1024  # tokens; about two printed pages, long enough to stand for a document
_PIECE = 65_536  # characters tokenised at once: a fast tokenizer holds some 640 bytes per token while it works

_Ids = npt.NDArray[np.int32]
_Batch = dict[str, Tensor]


@runtime_checkable
class Tokenizer(Protocol):
    """What is asked of a tokenizer; every tokenizer of transformers has it."""

    bos_token_id: Any
    pad_token_id: Any

    def __call__(self, text: str, **settings: Any) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Consecutive tokens of one document.

    Attributes:
        document: number of the document.
        ids: (token,) int32, without special tokens.
    """

    document: int
    ids: _Ids


@dataclass(frozen=True, slots=True)
class Frame:
    """What a tokenizer puts around a text.

    Attributes:
        before, after: ids of the special tokens.
        pad: the id that fills up shorter rows.
        types: token types before, in and after the text; None where the tokenizer makes none.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    pad: int
    types: tuple[tuple[int, ...], int, tuple[int, ...]] | None

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


@dataclass(frozen=True, eq=False, repr=False)
class Corpus(MadeOnDemand):
    """Batches of windows of text; each batch is built anew whenever it is asked for.

    A batch holds input_ids, attention_mask (1 = text or special token, 0 = padding, always on the right) and
    token_type_ids where the tokenizer makes them, each (row, position) int64, and document (row,) int64.

    Attributes:
        windows: the windows, ordered so that every beginning of the list is spread over as many documents as can be.
        names: name of every document of the text, by its number; some may have no window here.
        works: the file or essay that each of them belongs to, likewise.
        size: rows in a batch.
        seed: what the windows and the order of the batches are drawn from.
        frame: what the tokenizer puts around a text.
        about: facts of the whole text: source, sha256, unit, length.
        reader: how a model reads windows that it does not take as they are.
    """

    windows: tuple[Window, ...]
    names: tuple[str, ...]
    works: tuple[str, ...]
    size: int
    seed: int
    frame: Frame
    about: Mapping[str, Any]
    reader: Reader | None = None

    @cached_property
    def _batches(self) -> list[tuple[Window, ...]]:
        """Windows of similar length share a batch, to save padding; shuffled, so that no stretch is all short."""
        ordered = sorted(self.windows, key=lambda window: len(window.ids), reverse=True)
        batches = [tuple(ordered[start : start + self.size]) for start in range(0, len(ordered), self.size)]
        random.Random(self.seed).shuffle(batches)
        return batches

    def __len__(self) -> int:
        return len(self._batches)

    def make(self, index: int) -> dict[str, Any]:
        whole = _assemble(self._batches[index], self.frame)
        return dict(whole) if self.reader is None else self.reader.take(whole)

    def __repr__(self) -> str:
        facts = self.facts
        return (
            f"Corpus({facts['source']}: {facts['windows']} windows of at most {facts['length']} tokens "
            f"in {len(self)} batches, {facts['n_documents']} {facts['unit']}, {facts['n_tokens']} tokens)"
        )

    @cached_property
    def documents(self) -> Mapping[int, str]:
        """The documents that have a window here: number → name, by number."""
        return {number: self.names[number] for number in sorted({window.document for window in self.windows})}

    @property
    def facts(self) -> dict[str, Any]:
        """What was read, as JSON values.

        Of the whole text: source, sha256, unit, length, seed. Of these batches: n_documents, windows, n_tokens (the
        positions that attention_mask keeps, special tokens included); sides, where windows were halved.
        """
        counts = {"n_documents": len(self.documents), "windows": len(self.windows)}
        sides = {"sides": TWO_SIDES} if self.reader is not None and self.reader.halves else {}
        n_tokens = sum(map(self._n_tokens, self.windows))
        return {**self.about, **counts, "n_tokens": n_tokens, "seed": self.seed, **sides}

    def _n_tokens(self, window: Window) -> int:
        return len(window.ids) + len(self.frame)


def text_batches(
    tokenizer: Tokenizer | None,
    texts: Texts | str | Mapping[str, str] | Iterable[str] | None = None,
    *,
    length: int = 256,
    size: int = 8,
    windows: int | None = 64,
    seed: int = 0,
    model: nn.Module | None = None,
) -> Corpus:
    """Batches of windows of text for a language model, a text encoder or, where it is given, an encoder-decoder.

    A window is cut from one document, begins with BOS wherever the tokenizer has one (or with what it puts there
    itself, such as [CLS]) and ends as the tokenizer ends a text. What a document leaves over below 16 tokens is
    dropped, unless it is all there is. Special tokens spelled out in the text stay text.

    Args:
        tokenizer: a tokenizer of transformers, fast or slow, with or without a pad token.
        texts: texts, each one a document (a mapping names them); one string, cut into passages of about 1,024 tokens;
            what `read_texts` returned; None is the documentation of the running Python, a document per section.
        length: tokens in a window at most, special tokens included.
        size: windows in a batch.
        windows: how many windows to draw, over as many documents as possible; None takes all.
        seed: what the windows and the order of the batches are drawn from.
        model: what the batches are for. An encoder-decoder that does not run on what its encoder reads alone, as T5,
            gets the first half of each window on the encoder's side and the second on the decoder's; the facts say so.
            A forward of one's own that takes no input_ids gets the tokens as its first argument, and "kept" beside.

    Returns:
        A sequence of batches, each a dict of tensors as models of transformers take them, and "document".

    Raises:
        InputError: no tokenizer, a size that cannot be, or text that is empty or too short.
    """
    for name, value in (("length", length), ("size", size), ("windows", 1 if windows is None else windows)):
        _positive(name, value)
    if tokenizer is None:
        raise InputError(
            "this model has no tokenizer, so text cannot be read",
            python="pass one, or batches of your own",
            shell=f"save one in the model's folder, or {OWN_BATCHES} or (model, tokenizer)",
        )
    if not isinstance(tokenizer, Tokenizer):
        raise InputError(
            f"a {type(tokenizer).__name__} is no tokenizer of transformers",
            python="PreTrainedTokenizerFast(tokenizer_object=…) makes one of a Tokenizer of tokenizers; of what any "
            "other gives, make batches= of your own: tensors (row, position) under the name that the model has for "
            "them",
            shell=f"{OWN_BATCHES}: tensors (row, position) under the name that the model has for them",
        )
    if texts is None:
        texts = read_documentation()
    elif not isinstance(texts, Texts):
        texts = gather_texts(texts)
    frame = _probe(tokenizer, texts)
    names, works, drawn = _windows(tokenizer, texts, length, len(frame))
    about = {"source": texts.source, "sha256": texts.sha256, "unit": texts.unit, "length": length}
    made = Corpus(tuple(_spread(drawn, seed)[:windows]), names, works, size, seed, frame, about)
    return made if model is None else replace(made, reader=reader_of(model, made[0]))


def _probe(tokenizer: Tokenizer, texts: Texts) -> Frame:
    """Tokenise a beginning of the text with and without special tokens, and see what stands around it."""
    for document in texts.documents:
        beginning = document.text.lstrip()[:200]
        bare = list(_call(tokenizer, beginning, special=False)["input_ids"])
        if bare:
            break
    else:
        raise InputError(f"the text ({texts.source}) has no tokens and at least {_MINIMUM} are needed; give more text")
    dressed = _call(tokenizer, beginning, special=True)
    ids, types = list(dressed["input_ids"]), dressed.get("token_type_ids")
    start = next((i for i in range(len(ids)) if ids[i : i + len(bare)] == bare), None)
    if start is None:
        kind = type(tokenizer).__name__
        raise InputError(f"cannot tell what {kind} puts around a text: special tokens change the tokens of the text")
    stop = start + len(bare)
    before, after = tuple(ids[:start]), tuple(ids[stop:])
    kinds = None if types is None else (tuple(types[:start]), int(types[start]), tuple(types[stop:]))
    if not before and tokenizer.bos_token_id is not None:
        # GPT-2's tokenizer, for one, has a BOS token and does not add it, and models lose their way without it
        before = (int(tokenizer.bos_token_id),)
        kinds = kinds and ((kinds[1],), *kinds[1:])
    # 0 is an id in every vocabulary; where there is no pad token, nothing looks at it but the embedding
    return Frame(before, after, int(tokenizer.pad_token_id or 0), kinds)


def _call(tokenizer: Tokenizer, text: str, *, special: bool) -> Mapping[str, Any]:
    # verbose: no warning that this is longer than the model's longest input, since windows are cut afterwards
    return tokenizer(text, add_special_tokens=special, split_special_tokens=True, truncation=False, verbose=False)


def _windows(
    tokenizer: Tokenizer, texts: Texts, length: int, n_special: int
) -> tuple[tuple[str, ...], tuple[str, ...], list[Window]]:
    """Names and works of the documents that have a window, by their number; and every window of the text."""
    room = length - n_special
    if room < 2:
        raise InputError(
            f"length is {length}, of which {n_special} go to special tokens: at least {n_special + 2} is needed, "
            "and 128 to 512 is usual"
        )
    names: list[str] = []
    works: list[str] = []
    found: list[Window] = []
    n_tokens = 0
    for name, work, ids in _tokenise(tokenizer, texts, room):
        n_tokens += len(ids)
        own = [Window(len(names), piece) for piece in _cut(ids, room)]
        if own:
            names.append(name)
            works.append(work)
            found += own
    if n_tokens < _MINIMUM or not found:
        has = f"{n_tokens} tokens" + (f" in {len(texts.documents)} documents" if len(texts.documents) > 1 else "")
        raise InputError(f"the text ({texts.source}) has {has} and at least {_MINIMUM} are needed; give more text")
    return tuple(names), tuple(works), found


def _tokenise(tokenizer: Tokenizer, texts: Texts, room: int) -> Iterator[tuple[str, str, _Ids]]:
    """Name, work and tokens of every document, passages cut."""
    passage = max(1, round(_PASSAGE / room)) * room  # whole windows, so that cutting leaves no remainders
    for document in texts.documents:
        pieces = [_call(tokenizer, piece, special=False)["input_ids"] for piece in _pieces(document.text)]
        ids = np.concatenate([np.asarray(piece, dtype=np.int32) for piece in [[], *pieces]])
        if document.whole:
            yield document.name, document.work, ids
            continue
        count = max(1, round(len(ids) / passage))
        for number in range(count):
            stop = len(ids) if number == count - 1 else (number + 1) * passage
            yield f"{document.name}#{number + 1}", document.work, ids[number * passage : stop]


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces of at most _PIECE characters that end with a line, or else a word, where they can."""
    start = 0
    while start < len(text):
        stop = start + _PIECE
        if stop < len(text):
            stop = next((at + 1 for mark in "\n " if (at := text.rfind(mark, start, stop)) > start), stop)
        yield text[start:stop]
        start = stop


def _cut(ids: _Ids, room: int) -> Iterator[_Ids]:
    """Windows of `room` tokens, one after the other; the last may be shorter."""
    for start in range(0, len(ids), room):
        piece = ids[start : start + room]
        if len(piece) >= min(_MINIMUM, room) or (start == 0 and len(piece) >= 2):
            yield piece


def _spread(windows: Iterable[Window], seed: int) -> list[Window]:
    """One window of every document, then a second of every document that has one, and so on; all in random order."""
    rng = random.Random(seed)
    by_document: dict[int, list[Window]] = {}
    for window in windows:
        by_document.setdefault(window.document, []).append(window)
    documents = list(by_document.values())
    rng.shuffle(documents)
    for own in documents:
        rng.shuffle(own)
    turns = sorted((turn, place) for place, own in enumerate(documents) for turn in range(len(own)))
    return [documents[place][turn] for turn, place in turns]


def _assemble(windows: Sequence[Window], frame: Frame) -> _Batch:
    """The tensors of one batch, padded on the right."""
    shape = (len(windows), len(frame) + max(len(window.ids) for window in windows))
    ids = torch.full(shape, frame.pad, dtype=torch.int64)
    mask, types = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, window in enumerate(windows):
        tokens = torch.tensor((*frame.before, *window.ids.tolist(), *frame.after))
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
        if frame.types is not None:
            before, inside, after = frame.types
            types[row, : len(tokens)] = torch.tensor((*before, *[inside] * len(window.ids), *after))
    document = torch.tensor([window.document for window in windows])
    batch = {"input_ids": ids, "attention_mask": mask, "document": document}
    return batch if frame.types is None else {**batch, "token_type_ids": types}


def _positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is {value!r}; it must be a whole number of at least 1")
