"""Sites of one batch that wait for each other, so that heads of different layers, or of two models, can be related."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Int, Num
from torch import Tensor

from headscope.errors import InputError, UnknownNameError
from headscope.sites import Site

__all__ = ["OTHER", "SCOPES", "Arrivals", "Together", "own_layer", "side_of"]

SCOPES = ("layer", "model")

OTHER = 1_000_000  # layers from here on are another model's: its layer 3 is OTHER + 3

Layers = tuple[int, ...]
T = TypeVar("T", int, npt.NDArray[np.int64])


def own_layer(layer: T) -> T:
    """A layer's number in its own model; or the numbers of many."""
    return layer % OTHER


def side_of(site: Site, of: str) -> Hashable:
    """What tells apart sites that must not be related, though their positions may look the same.

    An encoder's positions are not its decoder's; a cross site's keys and values stand at the encoder's. Maps can be
    compared where queries and keys are both the same.
    """
    if of == "pattern":
        return site.kind == "self", site.kind == "cross"
    return site.kind == "self" or (site.kind == "cross" and of in ("k", "v"))


@dataclass(frozen=True, eq=False)
class Together:
    """What sites of one group showed in one batch.

    Attributes:
        layers: their numbers.
        parts: (token, head, dim) a site, all of the same positions.
        block: (token,) the block of each position's document.
    """

    layers: Layers
    parts: Sequence[Num[Tensor, "token _ _"]]
    block: Int[Tensor, " token"]

    def by_block(self, n_blocks: int) -> list[tuple[int, list[Tensor]]]:
        """The positions of each block that is present, blocks counted modulo their number."""
        block = self.block % n_blocks
        present = block.unique().tolist()
        if len(present) == 1:
            return [(present[0], list(self.parts))]
        chosen = [(number, (block == number).to(self.parts[0].device)) for number in present]
        return [(number, [part[own] for part in self.parts]) for number, own in chosen]


class _Arrived(NamedTuple):
    side: Hashable
    kept: Bool[Tensor, "batch position"]
    block: Int[Tensor, " batch"]
    rows: Num[Tensor, "token head dim"]

    def fits(self, other: "_Arrived") -> bool:
        return self.side == other.side and torch.equal(self.kept, other.kept)


class Arrivals:
    """Collects the sites of a batch, and hands them out in groups that saw the same positions.

    Args:
        scope: "layer": only sites of one layer (of two models) come together; "model": all that can.
        groups: layers that came together before.

    Raises:
        UnknownNameError: no such scope.
    """

    def __init__(self, scope: str, groups: Sequence[Layers] = ()) -> None:
        if scope not in SCOPES:
            raise UnknownNameError(f"there is no scope {scope!r}; there are: {', '.join(SCOPES)}")
        self._scope = scope
        self._batch: dict[int, _Arrived] = {}
        self.groups: list[Layers] = list(groups)

    def take(
        self,
        site: Site,
        side: Hashable,
        rows: Num[Tensor, "token head dim"],
        kept: Bool[Tensor, "batch position"],
        block: Int[Tensor, " batch"],
    ) -> None:
        """One site's positions that count; `side` tells apart what must not be related."""
        if len(rows):
            apart = own_layer(site.layer) if self._scope == "layer" else None
            self._batch[site.layer] = _Arrived((side, apart), kept, block, rows)

    def release(self) -> list[Together]:
        """The groups of the batch, which ends here; the same groups in every batch that has positions for them.

        Raises:
            InputError: layers that saw the same positions in an earlier batch did not in this one.
        """
        arrived, self._batch = self._batch, {}
        known = {layer for layers in self.groups for layer in layers}
        self.groups += _grouped({layer: own for layer, own in arrived.items() if layer not in known})
        return [self._together(layers, arrived) for layers in self.groups if not arrived.keys().isdisjoint(layers)]

    def join(self, other: Self) -> None:
        """Take over the groups of another part of the text.

        Raises:
            InputError: the other grouped its layers in another way.
        """
        new = [layers for layers in other.groups if layers not in self.groups]
        known = {layer for layers in self.groups for layer in layers}
        if any(layer in known for layers in new for layer in layers):
            raise InputError("the two parts of the text were seen by different layers; were they of one model?")
        self.groups = [*self.groups, *new]

    @staticmethod
    def _together(layers: Layers, arrived: Mapping[int, _Arrived]) -> Together:
        first = arrived.get(layers[0])
        if first is None or not all(layer in arrived and arrived[layer].fits(first) for layer in layers):
            raise InputError(
                f"layers {', '.join(map(str, layers))} saw the same positions in an earlier batch, but not in a later "
                "one, so their heads cannot be compared",
                python='compare within layers (scope="layer")',
                shell="compare within layers, with --scope layer",
            )
        rows = [arrived[layer].rows for layer in layers]
        return Together(layers, rows, first.block.repeat_interleave(first.kept.sum(1)))


def _grouped(arrived: Mapping[int, _Arrived]) -> list[Layers]:
    """Layers that saw the same positions, in order."""
    groups: list[list[int]] = []
    for layer in sorted(arrived):
        company = next((group for group in groups if arrived[group[0]].fits(arrived[layer])), None)
        if company is None:
            groups.append([layer])
        else:
            company.append(layer)
    return [tuple(group) for group in groups]
