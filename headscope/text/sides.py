"""Two sides: text for an encoder-decoder whose decoder has to be given what it reads, or under a model's own name."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from headscope._support.running import arguments, evaluating, is_two_sided, run_model
from headscope.errors import ModelError
from headscope.text.batches import Batch, MadeOnDemand
from headscope.text.feeding import feed_one
from headscope.text.splits import first_rows

__all__ = ["TWO_SIDES", "Reader", "halved", "needs_halves", "reader_of", "sides_of"]

TWO_SIDES = "the first half of each window is read by the encoder, the second by the decoder"
"""What was made of text for a model whose decoder has to be given what it reads."""


class Reader(NamedTuple):
    """How a model reads text that it does not take as it is.

    Attributes:
        model: the model.
        halves: whether it reads one half of each window on either side; else it reads all, by another name.
    """

    model: nn.Module
    halves: bool

    def take(self, batch: Batch) -> dict[str, Any]:
        """A batch of "input_ids" and "attention_mask" as the model takes it."""
        return halved(self.model, batch) if self.halves else _renamed(self.model, batch)


def reader_of(model: nn.Module, batch: Batch) -> Reader | None:
    """How a model reads text, where it does not take it as it is; None where it does.

    Args:
        model: what the batch is for.
        batch: of "input_ids" and "attention_mask", the padding at the end of a row.
    """
    takes = arguments(model)
    if takes and "input_ids" not in takes and all(one.kind is one.POSITIONAL_OR_KEYWORD for one in takes.values()):
        return Reader(model, halves=False)
    return Reader(model, halves=True) if needs_halves(model, batch) else None


def _renamed(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """Text whose tokens are the first that a forward takes."""
    given, takes = dict(batch), arguments(model)
    made = {next(iter(takes)): given.pop("input_ids")}
    if "attention_mask" not in takes:
        made["kept"] = given.pop("attention_mask")
    return made | {name: value for name, value in given.items() if name in (*takes, "document")}


def needs_halves(model: nn.Module, batch: Batch) -> bool:
    """Whether an encoder-decoder does not run on text alone: T5 does not; BART reads the same text on both sides.

    Args:
        model: what the batch is for.
        batch: of "input_ids" and "attention_mask".
    """
    if not is_two_sided(model):
        return False
    try:
        with torch.no_grad(), evaluating(model):
            run_model(model, first_rows(batch, 1))
    except ModelError:
        return True
    return False


def halved(model: nn.Module, given: Batch) -> dict[str, Any]:
    """A batch of text whose rows are halved: the first part for the encoder, the second for the decoder.

    Args:
        model: tells what the decoder begins with.
        given: of "input_ids" and "attention_mask", the padding at the end of a row.
    """
    rows = [ids[kept.bool()].tolist() for ids, kept in zip(given["input_ids"], given["attention_mask"], strict=True)]
    halves = {
        "input_ids": [row[: (len(row) + 1) // 2] for row in rows],
        "labels": [row[(len(row) + 1) // 2 :] or row for row in rows],
    }
    made = dict(feed_one(model, halves))
    made.setdefault("attention_mask", torch.ones_like(made["input_ids"]))
    del made["labels"]
    return made | {name: value for name, value in given.items() if name == "document"}


def sides_of(batches: Sequence[Batch]) -> dict[str, Any]:
    """What a table says of batches whose windows were halved; {} of others."""
    facts = batches.facts if isinstance(batches, MadeOnDemand) else {}
    return {"sides": facts["sides"]} if "sides" in facts else {}
