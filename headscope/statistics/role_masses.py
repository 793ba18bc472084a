"""Where heads look: how much of each map goes to the previous token, to a delimiter, to the sink and so on."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from headscope.errors import UnknownNameError
from headscope.sites import Site
from headscope.statistics import STATISTICS, Statistic
from headscope.statistics.role_examples import BestQueries
from headscope.statistics.role_targets import NO_TOKEN, TARGETS, View, ids_of_side
from headscope.text.batches import Batch, kept_positions
from headscope.uncertainty.blocks import N_BLOCKS

__all__ = ["RoleMasses", "RoleSums"]

_AT_ONCE = 2**24  # numbers of a map that are worked on at once, so that long rows need no more memory than short ones


@dataclass(frozen=True, eq=False)
class RoleSums:
    """What one layer's maps came to.

    Attributes:
        sums: (block, role, head, 3): over the queries that have the role's target, the mass on it; the mass that could
            have been there; the mass that would be there if it were spread evenly.
        n_queries: (block,) how many queries counted.
        best: the query that shows each role best.
    """

    sums: Float64[Tensor, "block role head 3"]
    n_queries: Int[Tensor, " block"]
    best: BestQueries

    def __add__(self, other: Self) -> Self:
        sums = self.sums + other.sums.to(self.sums.device)
        return replace(
            self, sums=sums, n_queries=self.n_queries + other.n_queries, best=self.best.or_better(other.best)
        )


@STATISTICS.register("role_masses")
class RoleMasses(Statistic):
    """Attention mass by role, for every head and block of documents, judged off the sink.

    The sink of a row is its first position that is not padding, and whatever a row of the map lacks to 1 (a learned
    sink). A key is visible to a query if any head of the layer gives it weight: masks and windows leave exact zeros. A
    query that sees nothing but the sink has no choice and does not count. For the others, with `off` the mass off the
    sink and `n` the number of visible keys off the sink, the sums are, over the queries where the target exists,

        role         mass                     out of        by chance
        of TARGETS   on the target            off           off · (keys of the target) / n
        sink         1 - off                  1             1 / (n + 1), or 0 where the first position is not visible
        broad        off · entropy (nats)     off · ln n    off · ln n

    so that a query with hardly any mass off the sink hardly matters.

    Args:
        targets: the roles that have a target, out of `headscope.statistics.role_targets.TARGETS`.
        delimiters: ids of the tokens that count as delimiters.
        of_two: the model has an encoder and a decoder; see `headscope.statistics.role_targets.ids_of_side`.
        tokenless: layers that see no token, as those of pictures.
    """

    def __init__(
        self,
        targets: Sequence[str] = ("previous", "next", "same", "duplicate", "delimiter"),
        delimiters: Sequence[int] = (),
        *,
        of_two: bool = False,
        tokenless: Collection[int] = (),
    ) -> None:
        unknown = [name for name in targets if name not in TARGETS]
        if unknown:
            raise UnknownNameError(f"no target is known for the role {unknown[0]!r}; known: {', '.join(TARGETS)}")
        self.targets = tuple(targets)
        self.roles = (*self.targets, "sink", "broad")
        self._of_two, self._tokenless = of_two, frozenset(tokenless)
        self._delimiters = torch.tensor(sorted(delimiters), dtype=torch.long)
        self._batch: Batch = {}
        self._held: dict[int, RoleSums] = {}

    @property
    def needs(self) -> frozenset[str]:
        """The maps."""
        return frozenset({"pattern"})

    def begin_batch(self, batch: Batch) -> None:
        """Tokens and masks come from what the model is given."""
        self._batch = batch

    def end_batch(self) -> None:
        """Let go of it."""
        self._batch = {}

    def update(
        self,
        site: Site,
        tensors: Mapping[str, Tensor],
        kept: Bool[Tensor, "batch position"],
        block: Int[Tensor, " batch"],
    ) -> None:
        """Take in one site's map, some queries at a time; queries that are not kept do not count."""
        maps = tensors["pattern"].detach()
        maps = maps.cpu() if maps.device.type == "mps" else maps  # MPS has no float64
        n_rows, n_heads, n_queries, n_keys = maps.shape
        keys_kind = "self" if site.kind == "cross" else site.kind  # the keys of a cross site are the encoder's
        unpadded = kept_positions(self._batch, keys_kind, n_keys)
        in_windows = len(unpadded) != n_rows  # of a picture: what hides their keys hides them from the map too
        unpadded = torch.ones(n_rows, n_keys, dtype=torch.bool) if in_windows else unpadded
        query_ids, key_ids = (
            torch.full((n_rows, n), NO_TOKEN)
            if in_windows or site.layer in self._tokenless
            else ids_of_side(self._batch, kind, n, of_two=self._of_two)
            for kind, n in ((site.kind, n_queries), (keys_kind, n_keys))
        )
        sums = torch.zeros(N_BLOCKS, n_heads, len(self.roles), 3, dtype=torch.float64, device=maps.device)
        best = BestQueries.none(len(self.roles), n_heads)
        step = max(1, _AT_ONCE // (n_rows * n_heads * n_keys))
        for start in range(0, n_queries, step):
            part = slice(start, start + step)
            view = self._view(site.kind != "cross" and n_queries == n_keys, query_ids, key_ids, part)
            masses = _measure(maps[:, :, part], kept[:, part], unpadded, [TARGETS[name](view) for name in self.targets])
            sums.index_add_(0, block.to(maps.device), masses.amounts.sum(2, dtype=torch.float64))
            found = BestQueries.find(masses.excess(), masses.weights, start, query_ids, key_ids)
            best = best.or_better(found)
        counts = torch.zeros(N_BLOCKS, dtype=torch.long).index_add_(0, block, kept.sum(1))
        self._add(site.layer, RoleSums(sums.transpose(1, 2), counts, best))

    def _view(
        self, aligned: bool, query_ids: Int[Tensor, "row query"], key_ids: Int[Tensor, "row key"], part: slice
    ) -> View:
        queries = torch.arange(query_ids.shape[1])[None, part, None]
        keys = torch.arange(key_ids.shape[1])[None, None]
        return View(aligned, queries, keys, query_ids[:, part, None], key_ids[:, None], self._delimiters)

    def _add(self, layer: int, more: RoleSums) -> None:
        held = self._held.get(layer)
        self._held[layer] = more if held is None else held + more

    def merge(self, other: Self) -> None:
        """Add the other's sums, and keep the better example of each role."""
        for layer, more in other._held.items():
            self._add(layer, more)

    def compute(self) -> dict[int, RoleSums]:
        """By layer, on the CPU; roles in the order of `roles`."""
        return {layer: replace(held, sums=held.sums.cpu()) for layer, held in sorted(self._held.items())}

    def state(self) -> dict[str, Tensor]:
        """LAYER.sums, LAYER.n_queries, and LAYER.best.NAME for each tensor of the examples."""
        state: dict[str, Tensor] = {}
        for layer, held in self.compute().items():
            state |= {f"{layer}.sums": held.sums, f"{layer}.n_queries": held.n_queries}
            state |= {f"{layer}.best.{name}": tensor for name, tensor in held.best.state().items()}
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self._held = {}
        for layer in sorted({int(name.split(".")[0]) for name in state}):
            start = f"{layer}.best."
            best = {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}
            sums, n_queries = state[f"{layer}.sums"], state[f"{layer}.n_queries"]
            self._held[layer] = RoleSums(sums, n_queries, BestQueries.from_state(best))


@dataclass(frozen=True, eq=False)
class _Masses:
    """Some queries of one map, measured.

    Attributes:
        amounts: (row, head, query, role, 3) mass, out of, by chance; targets, then sink, then broad.
        free: (row, head, query, key) the map without its sink.
        on_first: (row, head, query) the weight of the first position.
        first: (row,) where that is.
    """

    amounts: Float[Tensor, "row head query role 3"]
    free: Float[Tensor, "row head query key"]
    on_first: Float[Tensor, "row head query"]
    first: Int[Tensor, " row"]

    def excess(self) -> Float[Tensor, "row head query role"]:
        """How well a query shows a role: its mass beyond chance, or what makes it broad; -inf where it cannot."""
        mass, most, chance = self.amounts.unbind(-1)
        beyond = mass - chance
        beyond[..., -1] = mass[..., -1]  # chance is the most that a broad head can have
        return beyond.masked_fill(most <= 0, -torch.inf)

    def weights(
        self, row: Int[Tensor, "role head"], head: Int[Tensor, "role head"], query: Int[Tensor, "role head"]
    ) -> Float[Tensor, "role head key"]:
        """The weights of one query for each role and head; the first position has its own for "sink", else 0."""
        weights = self.free[row, head, query]
        first = self.first[row[-2]][:, None]
        weights[-2] = weights[-2].scatter(-1, first, self.on_first[row[-2], head[-2], query[-2]][:, None])
        return weights


def _measure(
    maps: Float[Tensor, "row head query key"],
    kept: Bool[Tensor, "row query"],
    unpadded: Bool[Tensor, "row key"],
    targets: Sequence[Bool[Tensor, "#row #query key"]],
) -> _Masses:
    """Mass on each role's target, off the sink; see `RoleMasses`."""
    kept, unpadded = kept.to(maps.device), unpadded.to(maps.device)
    first = unpadded.int().argmax(-1)
    is_first = torch.zeros_like(unpadded).scatter(1, first[:, None], True)[:, None]
    visible = (maps.amax(1) > 0) & unpadded[:, None] & kept[..., None]
    free = visible & ~is_first
    mass = maps.to(torch.promote_types(maps.dtype, torch.float32)).masked_fill(~free[:, None], 0)
    off, n = mass.sum(-1), free.sum(-1).to(mass.dtype)
    goal = torch.stack([target.to(maps.device) & free for target in targets], 2).to(mass.dtype)
    n_goal = goal.sum(-1)[:, None]
    on_target = (
        torch.einsum("rhqk,rqtk->rhqt", mass, goal),
        off[..., None] * (n_goal > 0),
        off[..., None] * n_goal / n.clamp_min(1)[:, None, :, None],
    )
    choice = (n > 0).to(mass.dtype)[:, None].expand_as(off)
    even = (visible & is_first).any(-1) / (n + 1)
    on_sink = ((1 - off).clamp_min(0) * choice, choice, choice * even[:, None])
    widest = off * n.clamp_min(1).log()[:, None]
    # faster than torch.special.entr, which does one number at a time
    logs = mass.clamp_min(torch.finfo(mass.dtype).tiny).log_().mul_(mass)
    broad = ((torch.xlogy(off, off) - logs.sum(-1)).clamp_min(0), widest, widest)
    others = torch.stack([torch.stack(parts, -1) for parts in (on_sink, broad)], -2)
    amounts = torch.cat([torch.stack(on_target, -1), others], -2)
    on_first = maps.gather(-1, first[:, None, None, None].expand(*maps.shape[:3], 1))[..., 0].to(mass.dtype)
    return _Masses(amounts, mass, on_first, first)
