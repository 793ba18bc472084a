"""Random tokens said twice: the text on which a head that continues repetitions gives itself away."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headscope._support.running import ASIDE, LABELS
from headscope.errors import InputError
from headscope.sites import Padding
from headscope.text.batches import Batch, kept_positions, token_names

__all__ = ["kept_of", "repeated_sequences", "row_ends"]

_LENGTHS, _ROWS = 5, 8  # lengths of the repeated part, sequences of each length
_LONGEST, _SHORTEST = 48, 4  # tokens of the repeated part

_MASKS = (Padding("attention_mask", "zeros"), Padding("decoder_attention_mask", "zeros"))  # by names that all know
_KEEPS = {"zeros": 1, "ones": 0, "floor": 0}  # what a mask says of a position that is no padding
_COUNTS = {"lengths": 0, "last": -1}  # what a count says of a row without padding, beyond how long it is

Frames = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
"""By side, what every row begins with, and what every row ends with."""


def repeated_sequences(
    batches: Sequence[Batch], ids: Sequence[int], seed: int = 0, padding: Sequence[Padding] = ()
) -> list[dict[str, Any]]:
    """Rows [BOS r r EOS], r drawn at random without replacement; BOS and EOS only if the rows of the text have them.

    The repeated part is up to 48 tokens long and has a different length in each batch, so that a head which looks a
    fixed distance back cannot pass for one that looks for the same token. No row is longer than the longest of the
    text, padding left out. The decoder of an encoder-decoder gets the same r. Position ids, where the text has them,
    count up from the text's lowest.

    Args:
        batches: the text, as the model takes it, with "kept" where its padding is not known by name.
        ids: the tokens to draw from.
        seed: of the draws.
        padding: how masks of other names than transformers' mark padding.

    Returns:
        A batch of 8 rows for each of at most 5 lengths, without labels and documents.

    Raises:
        InputError: the batches hold tensors that cannot be made up, or their rows or `ids` allow fewer than 4 tokens.
    """
    first = batches[0]
    sides = token_names(first)
    if not sides:
        raise InputError(f"no token ids are known in a batch of {', '.join(sorted(map(str, first)))}")
    masks = {one.mask: one.marks for one in (*_MASKS, *padding) if one.marks in (*_KEEPS, *_COUNTS)}
    if foreign := [name for name in sorted(first) if not _can_be_made(first, name, sides, masks)]:
        raise InputError(f"the batches hold {foreign[0]}, which cannot be made up for sequences of random tokens")
    frames = {kind: row_ends(batches, kind) for kind in sides}
    pool = torch.tensor(sorted(set(ids) - {token for frame in frames.values() for token in (*frame[0], *frame[1])}))
    room = min((_longest(batches, kind) - sum(map(len, frames[kind]))) // 2 for kind in sides)
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
        made.append(_batch(first, frames, drawn, masks))
    return made


def _is_left_out(name: str) -> bool:
    """Whether an entry is not for the model, or what it is to tell."""
    return name in (*ASIDE, *LABELS)


def _can_be_made(first: Batch, name: str, sides: Mapping[str, str], masks: Mapping[str, str]) -> bool:
    """Whether it is known what an entry holds beside other tokens."""
    value = first[name]
    if not isinstance(value, Tensor) or _is_left_out(name) or name in sides.values():
        return True
    if name in masks:
        return value.ndim == (1 if masks[name] in _COUNTS else 2)
    return name in ("token_type_ids", "position_ids") and value.ndim == 2


def _batch(first: Batch, frames: Frames, drawn: Int[Tensor, "row token"], masks: Mapping[str, str]) -> dict[str, Any]:
    """A batch like `first` whose rows say `drawn` twice."""
    batch = {name: value for name, value in first.items() if not isinstance(value, Tensor) and not _is_left_out(name)}
    sides = token_names(first)
    for kind, (before, after) in frames.items():
        ends = (torch.tensor(part, dtype=torch.long).expand(len(drawn), -1) for part in (before, after))
        start, end = ends
        batch[sides[kind]] = torch.cat([start, drawn, drawn, end], dim=1)
    ids = batch[next(iter(sides.values()))]
    for name in (name for name in masks if isinstance(first.get(name), Tensor)):
        # the decoder's by its name: no other mask stands beside tokens of two sides
        own = batch[sides["causal"]] if name.startswith("decoder") and "causal" in sides else ids
        batch[name] = _unpadded(own, masks[name], first[name].dtype)
    if "token_type_ids" in first:
        batch["token_type_ids"] = torch.zeros_like(ids)
    if "position_ids" in first:
        kept = kept_of(first, "self")
        lowest = int(first["position_ids"].cpu().expand_as(kept)[kept].min())
        batch["position_ids"] = lowest + torch.arange(ids.shape[1]).expand_as(ids)
    return batch


def _unpadded(ids: Int[Tensor, "row position"], marks: str, dtype: torch.dtype) -> Tensor:
    """A mask, or a count, that keeps all positions."""
    if marks in _COUNTS:
        return torch.full((len(ids),), ids.shape[1] + _COUNTS[marks], dtype=dtype)
    return torch.full(ids.shape, _KEEPS[marks], dtype=dtype)


def kept_of(batch: Batch, kind: str) -> Bool[Tensor, "row position"]:
    """The positions of the tokens of one side that count."""
    ids = batch[token_names(batch)[kind]]
    return kept_positions(batch, kind, ids.shape[1]).expand_as(ids)


def _longest(batches: Sequence[Batch], kind: str) -> int:
    """Positions of the longest row of one side, padding left out."""
    return max(int(kept_of(batch, kind).sum(1).max()) for batch in batches)


def row_ends(batches: Sequence[Batch], kind: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The token that every row of one side begins with, and the one it ends with; nothing where rows differ."""
    firsts, lasts = [], []
    for batch in batches:
        ids = batch[token_names(batch)[kind]].cpu()
        kept = kept_of(batch, kind)
        rows = torch.arange(len(ids))
        firsts.append(ids[rows, kept.int().argmax(1)])
        lasts.append(ids[rows, kept.shape[1] - 1 - kept.flip(1).int().argmax(1)])
    ends = [torch.cat(found).unique().tolist() for found in (firsts, lasts)]
    n_rows = sum(map(len, firsts))
    before, after = (tuple(found) if len(found) == 1 and n_rows > 1 else () for found in ends)
    return before, after
