"""Delivering: a batch's tensors to the statistics, with the positions that count and the blocks that rows belong to."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headscope._support.objects import OWN_BATCHES
from headscope.anatomy.masks import joined
from headscope.anatomy.standing import ELSEWHERE, NONE
from headscope.errors import InputError, NumericalError
from headscope.sites import Site
from headscope.statistics import Statistic
from headscope.text.batches import Batch, fits_no_mask, kept_positions, row_length, row_lengths
from headscope.uncertainty.blocks import Blocks
from headscope.watching.hooks import SiteTensors

__all__ = ["Delivery"]

Masks = Mapping[str, Bool[Tensor, "batch position"]]
_Key = tuple[str, str, tuple[str, ...], int, int]  # what positions depend on: kind, order, masks, rows, positions
_OTHER_ORDER = (
    "layer {} ({}) has rows or positions of the batch in another order, so which are padding cannot be told there"
)
_UNPADDED = {
    "python": "give batches without padding, or leave it out: pass anatomy= with the other sites",
    "shell": f"give batches without padding: {OWN_BATCHES}",
}


class Delivery:
    """Hands each site's tensors to the statistics, with the positions that count and the rows' blocks."""

    def __init__(self, statistics: Sequence[Statistic], skip_first: int) -> None:
        self.blocks = Blocks()
        self.n_tokens = 0
        self.tokens: Counter[tuple[int, str]] = Counter()
        self.documents: set[int] = set()
        self.unmatched: dict[int, int] = {}
        self._odd: set[_Key] = set()
        self._statistics = statistics
        self._skip = skip_first
        self._spare: tuple[int, set[int]] | None = None

    def start(self, batch: Batch, documents: Int[Tensor, " batch"], number: int, masks: Masks | None) -> None:
        """Begin a batch; `masks`: what each of its masks keeps, None where the user says which positions are kept."""
        self._said, self._masks = masks is None, masks or {}
        self._batch, self._documents, self._number = batch, documents, number
        # dealt by the batch, not by a site, so that a pass over some layers deals as one over all does
        self._block = self.blocks.place(documents, row_lengths(batch))
        self._counted = False
        self._spare = None
        self._kept: dict[_Key, Bool[Tensor, "batch position"]] = {}
        texts = (one for one in batch.values() if isinstance(one, torch.Tensor) and one.ndim > 1)
        length = row_length(batch)
        self._most = length if length > 1 else next((int(one.shape[1]) for one in texts), 1)

    def take(self, site: Site, tensors: SiteTensors) -> None:
        kept = {name: self._positions(site, name, *tensor.shape[:3:2]) for name, tensor in tensors.items()}
        parts = self._parts(site, next(iter(tensors.values())).shape[0])
        self._count(site, next(iter(kept.values())).sum(1), parts)
        for name, tensor in tensors.items():
            self._check(site, name, tensor, kept[name])
            self.tokens[site.layer, name] += int(kept[name].sum())
        for statistic in self._statistics:
            own = {name: tensor for name, tensor in tensors.items() if name in statistic.needs}
            statistic.update(site, own, kept[next(iter(own))], self._block[parts])

    def finish(self) -> None:
        """End a batch.

        Raises:
            InputError: no layer ran on it, or the user says what is kept, and no layer has as many rows and positions.
        """
        if not self._kept:
            raise InputError(
                f"none of the attention layers ran on batch {self._number}, though they ran on the example: the model "
                "goes another way there; leave such batches out, or call discover with one of them"
            )
        given = self._batch.get("kept")
        shape = tuple(getattr(given, "shape", ()))
        if self._said and shape not in {(rows, n) for *_, rows, n in self._kept}:
            seen = ", ".join(f"{rows} × {n}" for *_, rows, n in self._kept)
            raise InputError(
                f"kept is {shape or type(given).__name__} in batch {self._number}, and no layer has as many rows and "
                f"positions (they have {seen}); it is (row, position), True where a position counts"
            )
        if not self._counted and self._spare is not None:
            self.n_tokens += self._spare[0]
            self.documents |= self._spare[1]

    def _count(self, site: Site, counts: Int[Tensor, " part"], parts: Int[Tensor, " part"]) -> None:
        """The first site of a forward pass says how many positions the rows have, whatever kind of input it is.

        The first whose rows are those of the batch, if there is one.
        """
        if self._counted:
            return
        found = int(counts.sum()), {int(document) for document in self._documents[parts][counts > 0]}
        if site.batch and self._is_told(site, len(parts)):
            self.n_tokens += found[0]
            self.documents |= found[1]
            self._counted = True
        elif self._spare is None:
            self._spare = found

    def _is_told(self, site: Site, rows: int) -> bool:
        """Whether it is known which row of the batch each row of a site belongs to."""
        given = len(self._documents)
        return (rows == given and bool(site.batch)) or (rows % given == 0 and site.batch in ("b w", "w b"))

    def _parts(self, site: Site, rows: int) -> Int[Tensor, " part"]:
        """For each row of a site, the row of the batch that it is, or is a part of; where that is not known, the first.

        So all of a batch is one document there: nothing that may belong together is taken for independent.
        """
        given = len(self._documents)
        if not self._is_told(site, rows):
            return torch.zeros(rows, dtype=torch.long)
        if rows == given:
            return torch.arange(given)
        each = rows // given
        return torch.arange(given).repeat_interleave(each) if site.batch == "b w" else torch.arange(given).repeat(each)

    def _positions(self, site: Site, name: str, rows: int, length: int) -> Bool[Tensor, "batch position"]:
        # the keys and values of a cross site stand at the positions of the encoder
        of_keys = site.kind == "cross" and name in ("k", "v")
        kind, masks = ("self", site.key_masks) if of_keys else (site.kind, site.query_masks)
        key = (kind, site.batch, masks, rows, length)
        if key not in self._kept:
            kept = self._masked(site, key)
            # the first that count, wherever padding stands
            self._kept[key] = kept & (kept.cumsum(1) > self._skip)
        if key in self._odd:
            self.unmatched[site.layer] = length
        return self._kept[key]

    def _masked(self, site: Site, key: _Key) -> Bool[Tensor, "batch position"]:
        """Which positions padding leaves: by the masks that were proven to speak of them, else by one that fits."""
        kind, _, masks, rows, length = key
        every, given = torch.ones(rows, length, dtype=torch.bool), len(self._documents)
        told = self._is_told(site, rows)
        kept = kept_positions(self._batch, kind, length) if rows == given else every
        if not self._said and rows == given and not bool(kept.all()) and (ELSEWHERE in masks or not told):
            raise InputError(_OTHER_ORDER.format(site.layer, site.module_name), **_UNPADDED)
        if not told or (NONE in masks and not self._said):
            return every
        if rows != given or (not site.rows and 1 < self._most < length):
            return self._in_parts(site, kind, rows // given, length)
        proven = joined(self._masks, masks)
        if proven is not None and proven.shape == kept.shape:
            return proven
        if not self._said and (not bool(kept.all()) or fits_no_mask(self._batch, kind, length)):
            self._odd.add(key)
        return kept

    def _in_parts(self, site: Site, kind: str, each: int, length: int) -> Bool[Tensor, "part position"]:
        """Which positions of the parts of rows count: all, unless rows are cut along their positions."""
        whole, most = row_lengths(self._batch), self._most
        kept = kept_positions(self._batch, kind, most)
        filled_up = (site.batch == "b w" or each == 1) and 0 <= each * length - most < length  # the last part is
        if not filled_up and (bool(kept.all()) or int(whole.min()) == most):
            return torch.ones(len(kept) * each, length, dtype=torch.bool)
        proven = kept if self._said or bool(kept.all()) else joined(self._masks, site.query_masks)
        if filled_up and proven is not None and proven.shape == kept.shape:
            filled = torch.nn.functional.pad(proven, (0, each * length - most))
            return filled.reshape(-1, length)
        raise InputError(
            f"layer {site.layer} ({site.module_name}) sees parts of rows, and which of their positions are padding "
            "cannot be told",
            **_UNPADDED,
        )

    def _check(self, site: Site, name: str, tensor: Tensor, kept: Bool[Tensor, "batch position"]) -> None:
        if bool(torch.isfinite(tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32)))):
            return  # one pass and no copy; only a suspicious tensor is looked at closely, since padding may hold NaN
        finite = torch.isfinite(tensor).all(-1).all(1)
        if not bool(finite[kept.to(finite.device)].all()):
            raise NumericalError(
                f"layer {site.layer} ({site.module_name}): {name} holds NaN or infinity in batch {self._number}; "
                "look at that layer's weights, and try dtype float32"
            )
