"""Random tokens said twice: the text on which a head that continues repetitions gives itself away."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headscope.errors import InputError
from headscope.text.batches import Batch, kept_positions

__all__ = ["SIDES", "kept_of", "repeated_sequences", "row_ends"]

_LENGTHS, _ROWS = 5, 8  # lengths of the repeated part, sequences of each length
_LONGEST, _SHORTEST = 48, 4  # tokens of the repeated part

SIDES = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}


def repeated_sequences(batches: Sequence[Batch], ids: Sequence[int], seed: int = 0) -> list[dict[str, Any]]:
    """Rows [BOS r r EOS], r drawn at random without replacement; BOS and EOS only if the rows of the text have them.

    The repeated part is up to 48 tokens long and has a different length in each batch, so that a head which looks a
    fixed distance back cannot pass for one that looks for the same token. No row is longer than the longest of the
    text, padding left out. The decoder of an encoder-decoder gets the same r. Position ids, where the text has them,
    count up from the text's lowest.

    Args:
        batches: the text, as the model takes it.
        ids: the tokens to draw from.
        seed: of the draws.

    Returns:
        A batch of 8 rows for each of at most 5 lengths.

    Raises:
        InputError: the batches hold tensors that cannot be made up, or their rows or `ids` allow fewer than 4 tokens.
    """
    first = batches[0]
    tensors = {name for name, value in first.items() if isinstance(value, Tensor)} - {"document", "labels"}
    sides = [name for name in SIDES if name in tensors]
    if "input_ids" not in sides:
        raise InputError("the batches hold no input_ids, so no token can be said twice")
    shaped = {name for name in ("token_type_ids", "position_ids") if name in tensors and first[name].ndim == 2}
    if foreign := sorted(tensors - {*sides, *SIDES.values(), *shaped}):
        raise InputError(f"the batches hold {foreign[0]}, which cannot be made up for sequences of random tokens")
    frames = {name: row_ends(batches, name) for name in sides}
    pool = torch.tensor(sorted(set(ids) - {token for frame in frames.values() for token in (*frame[0], *frame[1])}))
    room = min((_longest(batches, name) - sum(map(len, frames[name]))) // 2 for name in sides)
    longest = min(room, len(pool), _LONGEST)
    if longest < _SHORTEST:
        raise InputError(
            f"the text has room for {max(room, 0)} tokens said twice and {len(pool)} tokens to draw them from, and it "
            f"takes {_SHORTEST} of either: give longer rows, or more text"
        )
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.linspace(max(_SHORTEST, longest / 2), longest, _LENGTHS).long().unique().tolist()
    made = []
    for length in lengths:
        drawn = torch.stack([pool[torch.randperm(len(pool), generator=generator)[:length]] for _ in range(_ROWS)])
        made.append(_batch(first, frames, drawn))
    return made


def _batch(
    first: Batch, frames: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]], drawn: Int[Tensor, "row token"]
) -> dict[str, Any]:
    """A batch like `first` whose rows say `drawn` twice."""
    batch = {name: value for name, value in first.items() if not isinstance(value, Tensor)}
    for name, (before, after) in frames.items():
        ends = (torch.tensor(part, dtype=torch.long).expand(len(drawn), -1) for part in (before, after))
        start, end = ends
        batch[name] = torch.cat([start, drawn, drawn, end], dim=1)
        if SIDES[name] in first:
            batch[SIDES[name]] = torch.ones_like(batch[name])
    if "token_type_ids" in first:
        batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    if "position_ids" in first:
        kept = kept_of(first, "input_ids")
        lowest = int(first["position_ids"].cpu().expand_as(kept)[kept].min())
        batch["position_ids"] = lowest + torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
    return batch


def kept_of(batch: Batch, name: str) -> Bool[Tensor, "row position"]:
    """The positions of one side that count."""
    return kept_positions(batch, "self" if name == "input_ids" else "causal", batch[name].shape[1])


def _longest(batches: Sequence[Batch], name: str) -> int:
    """Positions of the longest row, padding left out."""
    return max(int(kept_of(batch, name).sum(1).max()) for batch in batches)


def row_ends(batches: Sequence[Batch], name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The token that every row begins with, and the one that every row ends with; nothing where they differ."""
    firsts, lasts = [], []
    for batch in batches:
        ids = batch[name].cpu()
        kept = kept_of(batch, name)
        rows = torch.arange(len(ids))
        firsts.append(ids[rows, kept.int().argmax(1)])
        lasts.append(ids[rows, kept.shape[1] - 1 - kept.flip(1).int().argmax(1)])
    ends = [torch.cat(found).unique().tolist() for found in (firsts, lasts)]
    n_rows = sum(map(len, firsts))
    before, after = (tuple(found) if len(found) == 1 and n_rows > 1 else () for found in ends)
    return before, after
