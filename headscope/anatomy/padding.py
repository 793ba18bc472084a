"""Padding: which positions of a batch do not count, whatever the mask that says so is called, and however it lies.

A mask is taken at its word only once it has been put to proof: with some positions marked by it, other numbers at these
positions must move nothing at all others, and without the mark they must.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from headscope._support.running import unwrapped
from headscope.anatomy.masks import LOW, form_of, frames_of, is_known, is_named_so, kept_by, leaves_of, names_no_mask
from headscope.anatomy.standing import Heard, Standing, merged, moves_beside, stand
from headscope.errors import AnatomyError, ModelError
from headscope.sites import Padding
from headscope.text.batches import Batch

__all__ = ["Masks", "find_padding"]

_MARKED = 2  # positions that are marked in the proof
_LEAKS = (
    "its {} does not keep padding out, or positions stand in another order inside: other tokens there move what is "
    "made elsewhere"
)
_UNKNOWN = (
    "it takes {}, and which positions that marks as padding, if any, was not told by trying: those that it alone marks "
    'count; "kept" in the batches, (row, position), says which do'
)

Look = Callable[[Any], list[Heard]]
"""Runs the model and tells what its sites made, in the order of their calls."""

LookAtMaps = Callable[[Batch], list[Tensor]]
"""Runs the model and gives the maps of its sites, (row, head, query, key)."""

Leaves = Mapping[str, Any]
"""A batch laid flat: what lies in dicts and lists of it under dotted names."""

Lengths = Mapping[int, Bool[Tensor, " position"]]


@dataclass
class Masks:
    """What the masks of an example do.

    Attributes:
        padding: how those that are not known by name mark padding.
        remarks: where one does not do what its name says, in words.
        standing: by site, which of them speaks of its positions.
        forms: what may be a mask in the example, and its form.
        marked: the example with a part of its first row marked as padding, where a mask of rows and positions does so.
    """

    padding: list[Padding] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    standing: dict[Hashable, Standing] = field(default_factory=dict)
    forms: list[str] = field(default_factory=list)
    marked: Batch | None = None


def find_padding(example: Batch, look: Look, look_at_maps: LookAtMaps, model: nn.Module) -> Masks:
    """How the masks of an example mark padding.

    Args:
        example: arguments of the model's forward.
        look: runs the model on others.
        look_at_maps: the same for the maps.
        model: the model.
    """
    found, proven = Masks(), set()
    leaves = dict(leaves_of(example))

    def see(changed: Leaves) -> list[Heard]:
        return look(_put(example, changed))

    candidates = [*_masks(leaves), *_counts(leaves)]
    named = {name for name in leaves if is_named_so(name)} | {one[0] for one in candidates}
    found.forms = [form_of(name, one) for name, one in leaves.items() if name in named and isinstance(one, Tensor)]
    for name, mask, length in candidates:
        tokens = _tokens(leaves, name, mask.shape[0], length)
        if not tokens:
            continue
        marked = slice(0, _MARKED) if frames_of(model) is None else slice(length // 2, length)
        marked = slice(length - _MARKED, length) if mask.ndim == 1 else marked
        # of several arguments that may stand there, a mask may speak of one alone
        choices = [tokens, *([one] for one in tokens if len(tokens) > 1)]
        tried = product(choices, _senses(mask))
        trials = (_Trial(leaves, name, own, marks, marked, see, model) for own, marks in tried)
        trial = next((one for one in trials if one.holds()), None)
        marks = None if trial is None else trial.marks
        if trial is not None:
            proven.add(name)
            for place, own in trial.standing().items():
                found.standing[place] = merged(found.standing[place], own) if place in found.standing else own
            found.marked = _put(example, trial.own) if mask.ndim == 2 and found.marked is None else found.marked
        known = is_known(name, mask)
        if marks == "zeros" and mask.ndim == 2 and frames_of(model) is not None:
            marks = "frames"
        if marks is not None and not (known and marks == "zeros"):
            found.padding.append(Padding(name, marks))
        elif marks is None and known:
            found.remarks.append(_LEAKS.format(name))
    if not proven:
        found.padding += _marked_by_id(leaves, lambda changed: look_at_maps(_put(example, changed)), model)
    unproven = [] if found.padding and not proven else _open(leaves, proven)
    found.remarks += [_UNKNOWN.format(", ".join(unproven))] if unproven and not found.remarks else []
    return found


def _open(leaves: Leaves, proven: set[str]) -> list[str]:
    """Arguments that sound like masks, or are known ones in another form, and were not told by trying."""
    return [
        name
        for name, one in leaves.items()
        if isinstance(one, Tensor) and name not in proven and is_named_so(name) and not is_known(name, one)
    ]


def _put(value: Any, leaves: Leaves, name: str = "") -> Any:
    """A batch with these leaves in place of its own."""
    if isinstance(value, Mapping):
        return {key: _put(one, leaves, f"{name}.{key}" if name else str(key)) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_put(one, leaves, f"{name}.{key}" if name else str(key)) for key, one in enumerate(value))
    return leaves[name]


def _marked_by_id(leaves: Leaves, look: LookAtMaps, model: nn.Module) -> list[Padding]:
    """Tokens that the model itself keeps out, by their id: no map sees where they stand, and would see others there."""
    config = getattr(unwrapped(model), "config", None)
    for name, tokens in leaves.items():
        if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.dtype not in (torch.int32, torch.int64):
            continue
        known = {int(one) for one in tokens.unique()}
        length = int(tokens.shape[1])
        for pad in dict.fromkeys((getattr(config, "pad_token_id", None), 0)):
            others = [one for one in known if one != pad]
            if pad is None or len(known) < 3 or not others or length < 2 * _MARKED or names_no_mask(name):
                continue
            seen: list[list[Tensor]] = []
            for token in (pad, others[0]):
                changed = tokens.clone()
                changed[0] = torch.where(changed[0] == pad, others[-1], changed[0])
                changed[0, length - _MARKED :] = token
                try:
                    seen.append([one[0] for one in look({**leaves, name: changed}) if one.shape[-1] == length])
                except (ModelError, AnatomyError):
                    break
            if len(seen) == 2 and seen[0] and _is_blind(seen[0], seen[1], slice(length - _MARKED, length)):
                return [Padding(name, f"id {pad}")]
    return []


def _is_blind(padded: list[Tensor], other: list[Tensor], marked: slice) -> bool:
    unseen = all(float(one[..., marked].abs().max()) == 0 for one in padded)
    return unseen and all(float(one[..., marked].max()) > 0 for one in other)


def _masks(example: Batch) -> Iterator[tuple[str, Tensor, int]]:
    """What may be a mask: of rows, and of nothing but 0 and 1, or 0 and a large negative number; over how many."""
    for name, value in example.items():
        if isinstance(value, Tensor) and value.ndim in (2, 3, 4) and value.numel():
            low, high = float(value.min()), float(value.max())
            binary = value.dtype == torch.bool or (
                low in (0, 1) and high in (0, 1) and bool(((value == 0) | (value == 1)).all())
            )
            # segments of packed text, counted from 1
            binary |= "segment" in name and not value.is_floating_point() and low >= 0
            additive = value.is_floating_point() and high == 0 and bool(((value == 0) | (value < LOW)).all())
            if (binary or additive) and not names_no_mask(name):
                yield name, value, int(value.shape[-1])


def _counts(example: Batch) -> Iterator[tuple[str, Tensor, int]]:
    """What may say how many positions of each row count, or which is the last; of how many."""
    texts = [one for one in example.values() if isinstance(one, Tensor) and one.ndim > 1]
    for name, value in example.items():
        if isinstance(value, Tensor) and value.ndim == 1 and value.dtype in (torch.int32, torch.int64):
            lengths = {int(one.shape[1]) for one in texts if one.shape[0] == value.shape[0]}
            fits = len(lengths) == 1 and int(value.min()) >= 0 and int(value.max()) <= min(lengths)
            if fits and min(lengths) > _MARKED and not names_no_mask(name):
                yield name, value, min(lengths)


def _senses(mask: Tensor) -> tuple[str, ...]:
    if mask.ndim == 1:
        return ("lengths", "last")
    if mask.is_floating_point() and float(mask.max()) == 0:
        return ("floor", "ones") if float(mask.min()) < 0 else ("ones", "floor")
    mostly = mask.float().mean() >= 0.5
    return ("zeros", "ones") if mostly else ("ones", "zeros")


def _tokens(example: Batch, mask: str, rows: int, length: int) -> list[str]:
    """What stands at the positions that a mask speaks of."""
    return [
        name
        for name, value in example.items()
        if isinstance(value, Tensor) and name != mask and value.ndim > 1 and value.shape[:2] == (rows, length)
        and name not in {mask for mask, _, _ in _masks(example)} and not names_no_mask(name)
    ]  # fmt: skip


class _Trial:
    """Whether positions that a mask marks move nothing elsewhere, and do where they are not marked.

    Args:
        example: a batch laid flat.
        name: of the mask.
        tokens: what stands at the positions that it speaks of.
        marks: how it may mark them.
        marked: positions of the first row.
        see: runs the model.
        model: the model.
    """

    def __init__(
        self, example: Leaves, name: str, tokens: list[str], marks: str, marked: slice, see: Look, model: nn.Module
    ) -> None:
        self._example, self._name, self._tokens, self._see, self._model = example, name, tokens, see, model
        self.marks, self._marked = marks, marked
        mask = example[name]
        self._rows = int(mask.shape[0])
        self._length = mask.shape[-1] if mask.ndim > 1 else int(example[tokens[0]].shape[1])
        self.own = self._with(marked)
        self._unmarked: tuple[list[Heard], list[Heard]] | None = None

    def holds(self) -> bool:
        """Whether the mask does what is said of it."""
        try:
            self._seen = self._look(self.own)
            if moves_beside(*self._seen, self._lengths, self._rows, spread=True):
                return False
            # what everybody calls a mask is believed to be one, if it does what a mask does
            if is_known(self._name, self._example[self._name]) and self.marks == "zeros":
                return True
            return moves_beside(*self._free(), self._lengths, self._rows, spread=False)
        except ModelError:
            return False

    def standing(self) -> dict[Hashable, Standing]:
        """Which sites' positions the mask speaks of."""
        known = stand(self._name, *self._seen, self._lengths, self._rows, self._unmarked)
        if self._unmarked is None and not all(one.queries and one.keys for one in known.values()):
            with suppress(ModelError):
                known = stand(self._name, *self._seen, self._lengths, self._rows, self._free())
        return known

    def _with(self, marked: slice) -> dict[str, Any]:
        return {**self._example, self._name: _with_marks(self._example[self._name], self.marks, marked, self._length)}

    def _free(self) -> tuple[list[Heard], list[Heard]]:
        if self._unmarked is None:
            self._unmarked = self._look(self._with(slice(self._length, self._length)))
        return self._unmarked

    def _look(self, own: dict[str, Any]) -> tuple[list[Heard], list[Heard]]:
        other = {**own, **{one: _otherwise(self._example[one], self._marked) for one in self._tokens}}
        return self._see(own), self._see(other)

    @property
    def _lengths(self) -> Lengths:
        """The marked positions, for sites of as many positions as the text, or as many frames."""
        of_text = torch.zeros(self._length, dtype=torch.bool)
        of_text[self._marked] = True
        lengths = {self._length: of_text}
        mask = self.own[self._name]
        if frames_of(self._model) is not None and mask.ndim == 2 and self.marks == "zeros":
            frames = ~kept_by(mask, "frames", self._model, {})[0]
            lengths = {len(frames): frames, **lengths}
        return lengths


def _with_marks(mask: Tensor, marks: str, marked: slice, length: int) -> Tensor:
    """A mask that keeps all positions of the first row but the marked ones."""
    mask = mask.clone()
    if marks in ("lengths", "last"):
        mask[0] = marked.start - (marks == "last")
        return mask
    keep, drop = {"zeros": (1, 0), "ones": (0, 1), "floor": (0, torch.finfo(torch.float32).min)}[marks]
    if mask.ndim == 2:
        mask[0] = keep
    mask[0, ..., marked] = drop
    return mask


def _otherwise(value: Tensor, marked: slice) -> Tensor:
    """Other numbers at the marked positions of the first row, such as a model takes."""
    value = value.clone()
    if not value.numel():  # features of which there are none
        return value
    if value.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        part = value[0, marked]
        noise = torch.randn(part.shape, generator=generator).to(value.device, value.dtype)
        value[0, marked] = part + noise * (value.float().std(correction=0).to(value.dtype) + 1e-3)
    else:
        known = value.unique()
        place = torch.searchsorted(known, value[0, marked].contiguous())
        value[0, marked] = known[(place + 1) % len(known)]
    return value
