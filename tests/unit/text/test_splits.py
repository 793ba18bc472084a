"""Splits: whole documents on one side only, and samples of about so many positions."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headscope.errors import InputError
from headscope.text.splits import sample_batches, split_documents

# documents of the rows of each batch
layouts = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=8)


def _batches(layout: list[list[int]], named: bool = True) -> list[dict[str, Any]]:
    batches, number = [], 0
    for documents in layout:
        rows = len(documents)
        ids = torch.arange(number, number + rows)[:, None].expand(rows, 6).clone()  # every row has a number of its own
        mask = torch.ones(rows, 6, dtype=torch.long)
        mask[0, 4:] = 0
        batch = {"input_ids": ids, "attention_mask": mask, "flag": "as it was"}
        batches.append(batch | {"document": torch.tensor(documents)} if named else batch)
        number += rows
    return batches


def _rows(part: Any) -> dict[int, tuple[int, int]]:
    """Number of each row: its document, and how many of its positions count."""
    found = {}
    for batch in part:
        assert batch["flag"] == "as it was"
        numbers, lengths = batch["input_ids"][:, 0].tolist(), batch["attention_mask"].sum(1).tolist()
        found |= dict(zip(numbers, zip(batch["document"].tolist(), lengths, strict=True), strict=True))
    return found


@settings(deadline=None, max_examples=60)
@given(layouts, st.floats(0, 1), st.integers(0, 3))
def test_a_split_shares_no_document_and_loses_no_row(layout: list[list[int]], share: float, seed: int) -> None:
    batches = _batches(layout)
    documents = {document for batch in layout for document in batch}
    if len(documents) < 4:
        with pytest.raises(InputError, match=f"at least 4 documents, and there (is|are) only {len(documents)}"):
            split_documents(batches, share, seed)
        return
    rest, drawn = split_documents(batches, share, seed)
    whole, left, right = _rows(batches), _rows(rest), _rows(drawn)
    assert left | right == whole
    assert not left.keys() & right.keys()
    sides = [{document for document, _ in side.values()} for side in (left, right)]
    assert not sides[0] & sides[1]
    assert min(map(len, sides)) >= 2
    assert rest.documents == sides[0]
    assert drawn.documents == sides[1]
    assert [_rows(part) for part in split_documents(batches, share, seed)] == [left, right]


def test_the_drawn_share_is_as_near_as_whole_documents_allow() -> None:
    batches = _batches([[document] for document in range(40)])  # 40 documents of 4 positions
    for share in (0.1, 0.25, 0.5, 0.9):
        _, drawn = split_documents(batches, share)
        assert abs(len(drawn.documents) - 40 * share) <= 1
    assert split_documents(batches, 0.5, seed=0)[1].documents != split_documents(batches, 0.5, seed=1)[1].documents


def test_rows_that_name_no_document_are_split_too() -> None:
    rest, drawn = split_documents(_batches([[0, 0], [0, 0], [0, 0]], named=False), 0.5)
    assert len(rest.documents) == len(drawn.documents) == 3


@settings(deadline=None, max_examples=60)
@given(layouts, st.integers(1, 60), st.integers(0, 3))
def test_a_sample_stops_with_the_row_that_reaches_its_goal(layout: list[list[int]], tokens: int, seed: int) -> None:
    batches = _batches(layout)
    sample = sample_batches(batches, tokens, seed)
    whole, taken = _rows(batches), _rows(sample)
    assert all(whole[number] == row for number, row in taken.items())
    lengths = [length for _, length in taken.values()]
    total = sum(length for _, length in whole.values())
    assert sum(lengths) >= min(tokens, total)
    assert sum(lengths) - max(lengths) < tokens
    assert _rows(sample_batches(batches, tokens, seed)) == taken


def test_a_part_is_a_sequence() -> None:
    sample = sample_batches(_batches([[0], [1], [2]]), 100)
    assert len(sample) == 3
    assert [batch["document"].tolist() for batch in sample[:2]] == [
        sample[0]["document"].tolist(),
        sample[1]["document"].tolist(),
    ]
    assert sample[-1]["document"].tolist() == sample[2]["document"].tolist()
    with pytest.raises(IndexError):
        sample[3]


def test_a_sample_takes_every_document_before_any_a_second_time() -> None:
    batches = _batches([[0, 0, 1], [1, 2, 2], [3, 3, 3]])
    assert sample_batches(batches, 4 * 6).documents == {0, 1, 2, 3}


def test_rows_of_one_shape_come_back_in_whole_batches() -> None:
    batches = _batches([[0, 1, 2, 3], [4, 5, 6, 7]])
    rest, drawn = split_documents(batches, 0.5)
    for part in (rest, drawn):
        assert all(len(batch["document"]) == 4 for batch in part[:-1])
    assert len(rest) + len(drawn) <= 3
    wider = [{**batches[0], "input_ids": torch.ones(4, 9), "attention_mask": torch.ones(4, 9)}, batches[1]]
    shapes = {tuple(batch["input_ids"].shape[1:]) for batch in sample_batches(wider, 10**6)}
    assert shapes == {(9,), (6,)}
