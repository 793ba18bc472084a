"""Text that means nothing: the same tokens in no order, for what a number would be without meaning."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headscope.batches import Batch, kept_positions

__all__ = ["scramble_tokens"]


def scramble_tokens(batches: Iterable[Batch], seed: int = 0) -> Iterator[dict[str, Any]]:
    """Batches of the same shape whose tokens are drawn, with replacement, from all tokens of the batch.

    What every row of a batch begins or ends with ([CLS], BOS, [SEP]) stays, and so does padding. A decoder's tokens are
    drawn from its own.

    Args:
        batches: with "input_ids" and, for a decoder, "decoder_input_ids" (batch, position); others are handed on as
            they are.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    for batch in batches:
        drawn = dict(batch)
        for name, kind in (("input_ids", "self"), ("decoder_input_ids", "causal")):
            ids = batch.get(name)
            if isinstance(ids, Tensor) and ids.ndim == 2:
                kept = kept_positions(batch, kind, ids.shape[1]).to(ids.device)
                drawn[name] = _draw(ids, _inner(ids, kept), generator)
        yield drawn


def _draw(
    ids: Int[Tensor, "batch position"], inner: Bool[Tensor, "batch position"], generator: torch.Generator
) -> Int[Tensor, "batch position"]:
    pool, drawn = ids[inner], ids.clone()
    if len(pool):
        drawn[inner] = pool[torch.randint(len(pool), (len(pool),), generator=generator).to(ids.device)]
    return drawn


def _inner(ids: Int[Tensor, "batch position"], kept: Bool[Tensor, "batch position"]) -> Bool[Tensor, "batch position"]:
    """The positions that count, without the first and the last of each row where these are the same in all rows."""
    inner = kept.clone()
    rows = torch.arange(len(ids), device=ids.device)
    last = kept.shape[1] - 1 - kept.flip(1).int().argmax(1)
    for ends in (kept.int().argmax(1), last):
        if len(ids) > 1 and len(ids[rows, ends].unique()) == 1:
            inner[rows, ends] = False
    return inner
