"""Text that means nothing: the same tokens in no order, for what a number would be without meaning."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headscope.text.batches import Batch
from headscope.text.repetition import SIDES, kept_of, row_ends

__all__ = ["scramble_tokens"]


def scramble_tokens(batches: Sequence[Batch], seed: int = 0, fixed: Collection[int] = ()) -> Iterator[dict[str, Any]]:
    """Batches of the same shape whose tokens are drawn, with replacement, from all tokens of the text.

    What every row of the text begins or ends with ([CLS], BOS, [SEP]) stays, and so does padding. A decoder's tokens
    are drawn from its own.

    Args:
        batches: with "input_ids" and, for a decoder, "decoder_input_ids" (batch, position); others are handed on as
            they are.
        seed: of the draws.
        fixed: tokens that stay where they are, and are not drawn: they stand for a picture's patch, say.
    """
    generator = torch.Generator().manual_seed(seed)
    names = [name for name in SIDES if all(_has_tokens(batch, name) for batch in batches)]
    ends = {name: row_ends(batches, name) for name in names}
    stay = torch.tensor(sorted(fixed), dtype=torch.long)
    inner = {
        name: [_inner(kept_of(b, name), *ends[name]) & ~torch.isin(b[name].cpu(), stay) for b in batches]
        for name in names
    }
    pools = {
        name: torch.cat([batch[name].cpu()[own] for batch, own in zip(batches, inner[name], strict=True)])
        for name in names
    }
    for number, batch in enumerate(batches):
        drawn = dict(batch)
        for name in names:
            own = inner[name][number]
            ids: Int[Tensor, "batch position"] = batch[name].clone()
            if len(pools[name]):
                chosen = pools[name][torch.randint(len(pools[name]), (int(own.sum()),), generator=generator)]
                ids[own.to(ids.device)] = chosen.to(ids.device)
            drawn[name] = ids
        yield drawn


def _has_tokens(batch: Batch, name: str) -> bool:
    ids = batch.get(name)
    return isinstance(ids, Tensor) and ids.ndim == 2


def _inner(
    kept: Bool[Tensor, "batch position"], before: tuple[int, ...], after: tuple[int, ...]
) -> Bool[Tensor, "batch position"]:
    """The positions that count, without the first and the last of each row where these are the same in all rows."""
    inner = kept.clone()
    rows = torch.arange(len(kept))
    last = kept.shape[1] - 1 - kept.flip(1).int().argmax(1)
    for ends, same in ((kept.int().argmax(1), before), (last, after)):
        if same:
            inner[rows, ends] = False
    return inner
