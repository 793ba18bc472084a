"""The one query that shows best what a head does, kept while text streams by."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from headscope.statistics.role_targets import NO_TOKEN

__all__ = ["AROUND", "NEAR", "N_KEYS", "BestQueries"]

AROUND = 8  # tokens kept on each side of a query
NEAR = 4  # and on each side of the keys that it looks at most: some scripts need three tokens for a character
N_KEYS = 3


@dataclass(frozen=True, eq=False)
class BestQueries:
    """For each role and head, the query that shows the role best.

    Attributes:
        excess: (role, head) by how much it does so; 0 where there is no query.
        position: (role, head) the query's position in its row; -1 where there is no query.
        around: (role, head, 2 AROUND + 1) tokens around the query, itself in the middle.
        keys: (role, head, N_KEYS) positions of the keys with most weight, that first; -1 where there are fewer.
        weights: (role, head, N_KEYS) their weights in the map.
        near: (role, head, N_KEYS, 2 NEAR + 1) tokens around each key, itself in the middle.
    """

    excess: Float[Tensor, "role head"]
    position: Int[Tensor, "role head"]
    around: Int[Tensor, "role head beside"]
    keys: Int[Tensor, "role head rank"]
    weights: Float[Tensor, "role head rank"]
    near: Int[Tensor, "role head rank near"]

    @classmethod
    def none(cls, n_roles: int, n_heads: int) -> Self:
        """No query yet."""
        shape = (n_roles, n_heads)

        def nowhere(*more: int) -> Tensor:
            return torch.full((*shape, *more), -1)

        zeros = torch.zeros(*shape, dtype=torch.float64)
        ranked = torch.zeros(*shape, N_KEYS, dtype=torch.float64)
        around, near = nowhere(2 * AROUND + 1), nowhere(N_KEYS, 2 * NEAR + 1)
        return cls(zeros, nowhere(), around, nowhere(N_KEYS), ranked, near)

    @classmethod
    def find(
        cls,
        excess: Float[Tensor, "row head query role"],
        weights_of: Callable[..., Float[Tensor, "role head key"]],
        first_query: int,
        query_ids: Int[Tensor, "row position"],
        key_ids: Int[Tensor, "row key"],
    ) -> Self:
        """The best of some queries.

        Args:
            excess: how well each query shows each role; -inf where it does not at all.
            weights_of: from row, head and query, each (role, head), the weights among which keys are chosen.
            first_query: position of the first of these queries in its row.
            query_ids: tokens of the whole rows that queries stand in.
            key_ids: tokens of the whole rows that keys stand in.
        """
        n_queries = excess.shape[2]
        value, place = excess.permute(3, 1, 0, 2).flatten(2).max(-1)
        row, query = place // n_queries, place % n_queries
        head = torch.arange(value.shape[1], device=value.device).expand_as(value)
        weights, keys = weights_of(row, head, query).topk(min(N_KEYS, key_ids.shape[1]))
        value, row, weights, keys = value.cpu().double(), row.cpu(), weights.cpu().double(), keys.cpu()
        lacking = N_KEYS - keys.shape[-1]
        weights, keys = pad(weights, (0, lacking)), pad(keys, (0, lacking), value=-1)
        shown = value > -torch.inf
        keys = keys.masked_fill((weights == 0) | ~shown[..., None], -1)
        position = (query.cpu() + first_query).masked_fill(~shown, -1)
        return cls(
            excess=value.masked_fill(~shown, 0),
            position=position,
            around=_tokens(query_ids, row, position, AROUND),
            keys=keys,
            weights=weights.masked_fill(keys < 0, 0),
            near=_tokens(key_ids, row[..., None].expand_as(keys), keys, NEAR),
        )

    def or_better(self, other: Self) -> Self:
        """Role by role and head by head the better of two; this one where both are as good."""
        better = (other.position >= 0) & ((self.position < 0) | (other.excess > self.excess))
        chosen = {}
        for field in fields(self):
            own, others = getattr(self, field.name), getattr(other, field.name)
            chosen[field.name] = torch.where(better.reshape(*better.shape, *[1] * (own.ndim - 2)), others, own)
        return type(self)(**chosen)

    def state(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """Take over what `state` gave; other names are passed over."""
        return cls(**{field.name: state[field.name] for field in fields(cls)})


def _tokens(
    ids: Int[Tensor, "row position"], row: Int[Tensor, "*shape"], position: Int[Tensor, "*shape"], reach: int
) -> Int[Tensor, "*shape token"]:
    """Tokens from `reach` before to `reach` after each position; NO_TOKEN outside the row, and around no position."""
    window = position[..., None] + torch.arange(2 * reach + 1)  # in the padded row
    found = pad(ids, (reach, reach), value=NO_TOKEN)[row[..., None], window.clamp_min(0)]
    return found.masked_fill((position < 0)[..., None], NO_TOKEN)
