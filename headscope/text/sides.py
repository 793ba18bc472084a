"""Two sides: text for an encoder-decoder whose decoder has to be given what it reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from headscope._support.running import evaluating, run_model, unwrapped
from headscope.errors import ModelError
from headscope.text.batches import Batch, MadeOnDemand
from headscope.text.feeding import feed_one
from headscope.text.splits import first_rows

__all__ = ["TWO_SIDES", "on_both_sides"]

TWO_SIDES = "the first half of each window is read by the encoder, the second by the decoder"
"""What was made of text for a model whose decoder has to be given what it reads."""


def on_both_sides(model: nn.Module, batches: Sequence[Batch]) -> Sequence[Batch]:
    """Batches of text as they are, or halved where an encoder-decoder does not run on them.

    T5 is such a model; BART reads the same text on both sides by itself.

    Args:
        model: what they are for.
        batches: of "input_ids" and "attention_mask", the padding at the end of a row.
    """
    config = getattr(unwrapped(model), "config", None)
    if not getattr(config, "is_encoder_decoder", False) or not len(batches):
        return batches
    try:
        with torch.no_grad(), evaluating(model):
            run_model(model, first_rows(batches[0], 1))
    except ModelError:
        return _Halved(model, batches)
    return batches


@dataclass(frozen=True, eq=False)
class _Halved(MadeOnDemand):
    """Windows of text whose first half is for the encoder."""

    model: nn.Module
    base: Sequence[Batch]

    def __len__(self) -> int:
        return len(self.base)

    def make(self, index: int) -> dict[str, Any]:
        given = self.base[index]
        rows = [
            ids[kept.bool()].tolist() for ids, kept in zip(given["input_ids"], given["attention_mask"], strict=True)
        ]
        halves = {
            "input_ids": [row[: (len(row) + 1) // 2] for row in rows],
            "labels": [row[(len(row) + 1) // 2 :] or row for row in rows],
        }
        made = dict(feed_one(self.model, halves))
        made.setdefault("attention_mask", torch.ones_like(made["input_ids"]))
        del made["labels"]
        return made | {name: value for name, value in given.items() if name == "document"}
