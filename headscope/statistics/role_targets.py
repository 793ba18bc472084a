"""Which keys a role looks at: the position before, the one after, the same token elsewhere and so on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headscope.text.batches import Batch, kept_positions, token_names

__all__ = ["NO_TOKEN", "TARGETS", "View", "ids_of_side"]

NO_TOKEN = -1  # stands for the id of a position that is padding, or of a model that takes no tokens

Mask = Bool[Tensor, "#row #query key"]


@dataclass(frozen=True, eq=False)
class View:
    """Queries of one site, and the keys before them.

    Attributes:
        aligned: queries and keys stand at the same positions of the same text.
        queries: (1, query, 1) the queries' positions in their row.
        keys: (1, 1, key) the keys' positions.
        query_ids: (row, query, 1) tokens; NO_TOKEN where there is none.
        key_ids: (row, 1, key) tokens; NO_TOKEN where there is none.
        delimiters: (delimiter,) tokens that count as delimiters.
    """

    aligned: bool
    queries: Int[Tensor, "1 query 1"]
    keys: Int[Tensor, "1 1 key"]
    query_ids: Int[Tensor, "row query 1"]
    key_ids: Int[Tensor, "row 1 key"]
    delimiters: Int[Tensor, " delimiter"]

    def holds_same_token(self) -> Mask:
        """Which keys hold the query's token, its own position included."""
        same = (self.query_ids == self.key_ids) & (self.key_ids != NO_TOKEN)
        return same if self.aligned else torch.zeros_like(same)


def _at(step: int) -> Callable[[View], Mask]:
    def target(view: View) -> Mask:
        there = view.keys == view.queries + step
        return there if view.aligned else torch.zeros_like(there)

    return target


def _duplicate(view: View) -> Mask:
    return view.holds_same_token() & (view.keys != view.queries)


def _delimiter(view: View) -> Mask:
    return torch.isin(view.key_ids, view.delimiters)


def _induction(view: View) -> Mask:
    earlier = view.holds_same_token() & (view.keys < view.queries)
    after = (earlier * (view.keys + 1)).amax(-1, keepdim=True)  # 0 where the token is here for the first time
    return (view.keys == after) & (after > 0)


# For each role the keys that it looks at, whether the query sees them or not. Previous, next, duplicate and induction:
# Olsson et al. 2022, arXiv:2209.11895, and Clark et al. 2019, arXiv:1906.04341, section 3, which has the delimiters.
TARGETS: Mapping[str, Callable[[View], Mask]] = {
    "previous": _at(-1),
    "next": _at(1),
    "same": _at(0),
    "duplicate": _duplicate,
    "delimiter": _delimiter,
    "induction": _induction,
}


def ids_of_side(batch: Batch, kind: str, length: int, *, of_two: bool) -> Int[Tensor, "row position"]:
    """The tokens on one side of a model, NO_TOKEN at padding and where the model takes no tokens.

    Args:
        batch: the model's arguments.
        kind: "self" for an encoder's side, "causal" for a decoder's.
        length: how many positions there are.
        of_two: the model has both; tokens that its decoder is not given are made inside, and are not known.
    """
    kept = kept_positions(batch, kind, length)
    names = token_names(batch)
    decodes = kind != "self" and (of_two or "causal" in names)
    ids = batch.get(names.get("causal" if decodes else "self", ""))
    if ids is None or ids.shape != kept.shape:
        return torch.full(kept.shape, NO_TOKEN)
    return ids.cpu().long().masked_fill(~kept, NO_TOKEN)
