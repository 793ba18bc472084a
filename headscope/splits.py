"""Parts of a sequence of batches: whole documents held out, or about so many tokens. Rows are picked when asked for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from headscope.batches import Batch, document_ids, n_rows, row_lengths
from headscope.errors import InputError

__all__ = ["Part", "sample_batches", "split_documents"]


@dataclass(frozen=True, eq=False)
class Part(Sequence[dict[str, Any]]):
    """Some rows of a sequence of batches, as batches; each carries "document".

    Attributes:
        base: the batches.
        picks: for each batch of this part: which of `base`, which of its rows, and their documents.
    """

    base: Sequence[Batch]
    picks: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]

    def __len__(self) -> int:
        return len(self.picks)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        number, rows, documents = self.picks[index]
        batch = self.base[number]
        size = n_rows(batch)
        picked = {
            name: value[list(rows)] if isinstance(value, Tensor) and value.ndim and value.shape[0] == size else value
            for name, value in batch.items()
        }
        return picked | {"document": torch.tensor(documents)}

    @property
    def documents(self) -> frozenset[int]:
        """The documents that have rows here."""
        return frozenset(document for _, _, documents in self.picks for document in documents)


def split_documents(batches: Sequence[Batch], share: float, seed: int = 0, least: int = 4) -> tuple[Part, Part]:
    """Two parts that have no document in common.

    Args:
        batches: with or without "document".
        share: of the positions, that the second part gets, as nearly as whole documents allow.
        seed: of the draw of documents.
        least: documents below which a split says nothing; each part gets half of them at the least.

    Returns:
        The rest, and the drawn share.

    Raises:
        InputError: fewer documents than `least`.
    """
    sizes: dict[int, int] = {}
    for batch, ids in document_ids(batches):
        for document, length in zip(ids.tolist(), row_lengths(batch).tolist(), strict=True):
            sizes[document] = sizes.get(document, 0) + length
    if len(sizes) < least:
        count = "is only 1" if len(sizes) == 1 else f"are only {len(sizes)}"
        raise InputError(
            f"a held-out split needs at least {least} documents, and there {count}; bring more text, or split it finer"
        )
    drawn = _draw(sizes, share, seed, least // 2)
    return _part(batches, set(sizes) - drawn), _part(batches, drawn)


def _draw(sizes: dict[int, int], share: float, seed: int, least: int) -> set[int]:
    order = list(sizes)
    goal, have = share * sum(sizes.values()), 0
    drawn: set[int] = set()
    for index in torch.randperm(len(order), generator=torch.Generator().manual_seed(seed)).tolist():
        if len(drawn) == len(order) - least or (have >= goal and len(drawn) >= least):
            break
        drawn.add(order[index])
        have += sizes[order[index]]
    return drawn


def _part(batches: Sequence[Batch], documents: Iterable[int]) -> Part:
    wanted, picks = set(documents), []
    for number, (_, ids) in enumerate(document_ids(batches)):
        own = ids.tolist()
        rows = tuple(row for row, document in enumerate(own) if document in wanted)
        if rows:
            picks.append((number, rows, tuple(own[row] for row in rows)))
    return Part(batches, tuple(picks))


def sample_batches(batches: Sequence[Batch], tokens: int, seed: int = 0) -> Part:
    """Batches drawn by seed until they hold about `tokens` positions; the last gives only the rows still needed."""
    named = [(ids.tolist(), row_lengths(batch).tolist()) for batch, ids in document_ids(batches)]
    picks: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []
    count = 0
    for number in torch.randperm(len(named), generator=torch.Generator().manual_seed(seed)).tolist():
        ids, lengths = named[number]
        rows: list[int] = []
        for row, length in enumerate(lengths):
            if count >= tokens:
                break
            rows.append(row)
            count += length
        if rows:
            picks.append((number, tuple(rows), tuple(ids[row] for row in rows)))
    return Part(batches, tuple(picks))
