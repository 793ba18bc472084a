"""Text that means nothing: the same tokens in no order, for what a number would be without meaning."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headscope.errors import InputError
from headscope.text.batches import Batch, token_names
from headscope.text.repetition import kept_of, row_ends

__all__ = ["scramble_tokens"]


def scramble_tokens(batches: Sequence[Batch], seed: int = 0, fixed: Collection[int] = ()) -> list[dict[str, Any]]:
    """Batches of the same shape whose tokens are drawn, with replacement, from all tokens of the text.

    What every row of the text begins or ends with ([CLS], BOS, [SEP]) stays, and so does padding. A decoder's tokens
    are drawn from its own. All else in the batches stays.

    Args:
        batches: with token ids (batch, position), under whatever name; see `headscope.text.batches.token_names`.
        seed: of the draws.
        fixed: tokens that stay where they are, and are not drawn: they stand for a picture's patch, say.

    Raises:
        InputError: there is nothing to draw: no token ids in each of the batches, or no two different tokens.
    """
    sides = _sides(batches)
    stay = torch.tensor(sorted(fixed), dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    made = [dict(batch) for batch in batches]
    ends = {kind: row_ends(batches, kind) for kind in sides}
    inner = {
        kind: [_inner(kept_of(b, kind), *ends[kind]) & ~torch.isin(b[name].cpu(), stay) for b in batches]
        for kind, name in sides.items()
    }
    pools = {
        kind: torch.cat([batch[name].cpu()[own] for batch, own in zip(batches, inner[kind], strict=True)])
        for kind, name in sides.items()
    }
    if not any(len(pool.unique()) > 1 for pool in pools.values()):
        raise InputError("the text holds no two different tokens to draw from, so there are no random tokens")
    for number, batch in enumerate(batches):
        for kind, name in sides.items():
            own, pool = inner[kind][number], pools[kind]
            ids: Int[Tensor, "batch position"] = batch[name].clone()
            if len(pool):
                chosen = pool[torch.randint(len(pool), (int(own.sum()),), generator=generator)]
                ids[own.to(ids.device)] = chosen.to(ids.device)
            made[number][name] = ids
    return made


def _sides(batches: Sequence[Batch]) -> dict[str, str]:
    """What every batch holds of tokens, by the kind of layers that read them."""
    named = [token_names(batch) for batch in batches]
    sides = {kind: name for kind, name in named[0].items() if all(name == own.get(kind) for own in named)}
    if not sides:
        bare = next(batch for batch, own in zip(batches, named, strict=True) if not own or own != named[0])
        raise InputError(
            f"no token ids are known in a batch of {', '.join(sorted(map(str, bare)))}, so there are no random tokens; "
            "they are whole numbers by row and position, the only such entry beside masks and labels"
        )
    return sides


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
