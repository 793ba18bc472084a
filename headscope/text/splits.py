"""Parts of a sequence of batches: whole documents held out, or about so many tokens. Rows are picked when asked for."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headscope.errors import InputError
from headscope.text.batches import Batch, MadeOnDemand, document_ids, n_rows, row_lengths

__all__ = ["Part", "Row", "first_rows", "sample_batches", "split_documents"]


class Row(NamedTuple):
    """One row of a sequence of batches: which batch, which of its rows, its document, how many positions count."""

    batch: int
    row: int
    document: int
    length: int


@dataclass(frozen=True, eq=False)
class Part(MadeOnDemand):
    """Some rows of a sequence of batches, put together anew; each batch carries "document".

    Attributes:
        base: the batches that the rows come from.
        picks: the rows of each batch of this part; all of one shape.
    """

    base: Sequence[Batch]
    picks: tuple[tuple[Row, ...], ...]

    def __len__(self) -> int:
        return len(self.picks)

    def make(self, index: int) -> dict[str, Any]:
        rows = self.picks[index]
        sources = {number: self.base[number] for number in dict.fromkeys(row.batch for row in rows)}
        first = sources[rows[0].batch]
        batch = {
            name: torch.stack([sources[row.batch][name][row.row] for row in rows])
            if _is_by_row(value, first)
            else value
            for name, value in first.items()
        }
        return batch | {"document": torch.tensor([row.document for row in rows])}

    @property
    def facts(self) -> Mapping[str, Any]:
        """What is known of the batches that the rows come from."""
        return self.base.facts if isinstance(self.base, MadeOnDemand) else {}

    @property
    def documents(self) -> frozenset[int]:
        """The documents that have rows here."""
        return frozenset(row.document for rows in self.picks for row in rows)


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
    rows, shapes = _rows(batches)
    sizes: dict[int, int] = {}
    for row in rows:
        sizes[row.document] = sizes.get(row.document, 0) + row.length
    if len(sizes) < least:
        count = "is only 1" if len(sizes) == 1 else f"are only {len(sizes)}"
        raise InputError(
            f"a held-out split needs at least {least} documents, and there {count}; bring more text, or split it finer"
        )
    drawn = _draw(sizes, share, seed, least // 2)
    kept, held = ([row for row in rows if (row.document in drawn) == side] for side in (False, True))
    return Part(batches, _grouped(batches, kept, shapes)), Part(batches, _grouped(batches, held, shapes))


def sample_batches(batches: Sequence[Batch], tokens: int, seed: int = 0) -> Part:
    """Rows drawn by seed, one document after another, until they hold at least `tokens` positions.

    Every document gives a row before any gives a second one.
    """
    rows, shapes = _rows(batches)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    turn: dict[int, int] = {}
    turns = []
    for place in order:
        document = rows[place].document
        turn[document] = turn.get(document, -1) + 1
        turns.append((turn[document], place))
    taken, count = [], 0
    for _, place in sorted(turns, key=lambda item: item[0]):
        if count >= tokens:
            break
        taken.append(rows[place])
        count += rows[place].length
    return Part(batches, _grouped(batches, sorted(taken), shapes))


def first_rows(batch: Batch, size: int) -> Batch:
    """The first so many rows of a batch."""
    return {name: value[:size] if _is_by_row(value, batch) else value for name, value in batch.items()}


def _rows(batches: Iterable[Batch]) -> tuple[list[Row], list[Hashable]]:
    """Every row, and the shape that the rows of each batch have."""
    rows: list[Row] = []
    shapes: list[Hashable] = []
    for number, (batch, ids) in enumerate(document_ids(batches)):
        lengths = row_lengths(batch).tolist()
        rows += [Row(number, row, document, lengths[row]) for row, document in enumerate(ids.tolist())]
        shapes.append(tuple(sorted((n, v.shape[1:], v.dtype) for n, v in batch.items() if _is_by_row(v, batch))))
    return rows, shapes


def _is_by_row(value: Any, batch: Batch) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == n_rows(batch)


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


def _grouped(batches: Sequence[Batch], rows: Iterable[Row], shapes: list[Hashable]) -> tuple[tuple[Row, ...], ...]:
    """Rows of one shape put together into batches as large as the largest that they come from."""
    size = max(n_rows(batch) for batch in batches)
    by_shape: dict[Hashable, list[Row]] = {}
    for row in rows:
        by_shape.setdefault(shapes[row.batch], []).append(row)
    return tuple(tuple(own[start : start + size]) for own in by_shape.values() for start in range(0, len(own), size))
