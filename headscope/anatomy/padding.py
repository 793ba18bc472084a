"""Padding: which positions of a batch do not count, whatever the mask that says so is called, and however it lies.

A mask is taken at its word only once it has been put to proof: with some positions marked by it, other numbers at these
positions must move nothing at all others, and without the mark they must.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from headscope._support.running import unwrapped
from headscope.anatomy.check import tolerance
from headscope.errors import AnatomyError, ModelError
from headscope.sites import Anatomy, Padding
from headscope.text.batches import Batch

__all__ = ["find_padding", "with_kept"]

_LOW = -1e3  # an additive mask says "not this one" by less than that
_MARKED = 2  # positions that are marked in the proof
_PLAIN = {"attention_mask": "self", "decoder_attention_mask": "causal"}  # the names that everybody knows
# what names tell to be something else
_NO_MASKS = ("position", "token_type", "labels", "kept", "head_mask", "global_attention")
_FRAMES = "_get_feat_extract_output_lengths"
_SOUNDS = re.compile(r"mask|pad|valid|lens?$|lengths?$|segment")
_UNKNOWN = (
    "it takes {}, and which positions that marks as padding, if any, was not told by trying: every position counts; "
    '"kept" in the batches, (row, position), says which do'
)

Look = Callable[[Batch], list[Tensor]]
"""Runs the model and gives z of its sites, (row, head, position, dim); or their maps, (row, head, query, key)."""

Leaves = Mapping[str, Any]
"""A batch laid flat: what lies in dicts and lists of it under dotted names."""


def find_padding(example: Batch, look: Look, look_at_maps: Look, model: nn.Module) -> tuple[list[Padding], list[str]]:
    """How the masks of an example mark padding, and in words where one does not do what its name says.

    Args:
        example: arguments of the model's forward.
        look: runs the model on others, and gives z.
        look_at_maps: the same for the maps.
        model: the model.
    """
    found, remarks, proven = [], [], set()
    leaves = dict(_leaves(example))

    def see(changed: Batch) -> list[Tensor]:
        return look(_put(example, changed))

    for name, mask, length in (*_masks(leaves), *_counts(leaves)):
        tokens = _tokens(leaves, name, mask.shape[0], length)
        if not tokens:
            continue
        marked = slice(0, _MARKED) if _FRAMES not in _methods(model) else slice(length // 2, length)
        marked = slice(length - _MARKED, length) if mask.ndim == 1 else marked
        marks = next((m for m in _senses(mask) if _holds(leaves, name, tokens, m, marked, see, model)), None)
        proven |= {name} if marks is not None else set()
        known = _own(name) in _PLAIN and name.count(".") < 2 and mask.ndim == 2
        if marks == "zeros" and mask.ndim == 2 and _methods(model):
            marks = "frames"
        if marks is not None and not (known and marks == "zeros"):
            found.append(Padding(name, marks))
        elif marks is None and known:
            remarks.append(f"its {name} does not keep padding out: other tokens there move what is made elsewhere")
    if not proven:
        found += _marked_by_id(leaves, lambda changed: look_at_maps(_put(example, changed)), model)
    if not proven and not found:
        told = [name for name, value in leaves.items() if isinstance(value, Tensor) and _sounds_so(name)]
        remarks += [_UNKNOWN.format(", ".join(told))] if told and not remarks else []
    return found, remarks


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if type(value) in (list, tuple) else None
    if inner is None:
        yield name, value
        return
    for key, one in inner:
        yield from _leaves(one, f"{name}.{key}" if name else str(key))


def _put(value: Any, leaves: Leaves, name: str = "") -> Any:
    """A batch with these leaves in place of its own."""
    if isinstance(value, Mapping):
        return {key: _put(one, leaves, f"{name}.{key}" if name else str(key)) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_put(one, leaves, f"{name}.{key}" if name else str(key)) for key, one in enumerate(value))
    return leaves[name]


def _own(name: str) -> str:
    """The last part of a dotted name."""
    return name.rpartition(".")[2]


def _marked_by_id(leaves: Leaves, look: Look, model: nn.Module) -> list[Padding]:
    """Tokens that the model itself keeps out, by their id: no map sees where they stand, and would see others there."""
    config = getattr(unwrapped(model), "config", None)
    for name, tokens in leaves.items():
        if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.dtype not in (torch.int32, torch.int64):
            continue
        known = {int(one) for one in tokens.unique()}
        length = int(tokens.shape[1])
        for pad in dict.fromkeys((getattr(config, "pad_token_id", None), 0)):
            others = [one for one in known if one != pad]
            if pad is None or len(known) < 3 or not others or length < 2 * _MARKED or _own(name).startswith(_NO_MASKS):
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


def with_kept(model: nn.Module, anatomy: Anatomy, batch: Batch) -> Batch:
    """A batch with "kept", (row, position), where its padding is marked in a way that is not known by name.

    Args:
        model: the model.
        anatomy: its anatomy.
        batch: as the user gave it; one that says itself which positions are kept is left as it is.
    """
    if "kept" in batch:
        return batch
    for padding in anatomy.padding:
        mask = dict(_leaves(batch)).get(padding.mask)
        if isinstance(mask, Tensor):
            return {**batch, "kept": _kept(mask, padding.marks, model, batch)}
    return batch


def _kept(mask: Tensor, marks: str, model: nn.Module, batch: Batch) -> Bool[Tensor, "batch position"]:
    if marks == "frames":
        reduce: Any = getattr(_methods(model)[_FRAMES], _FRAMES)
        frames = torch.as_tensor(reduce(mask.sum(-1))).cpu()
        return torch.arange(int(reduce(torch.tensor(mask.shape[-1])))) < frames[:, None]
    if marks.startswith("id "):
        return mask.cpu() != int(marks.removeprefix("id "))
    if marks in ("lengths", "last"):
        # as many as the text has, whatever is the longest that counts
        texts = (one for _, one in _leaves(batch) if isinstance(one, Tensor) and one.ndim > 1)
        length = next(int(one.shape[1]) for one in texts)
        return torch.arange(length) < (mask.cpu() + (marks == "last"))[:, None]
    keeps = {"zeros": mask != 0, "ones": mask == 0, "floor": mask > _LOW}[marks]
    return keeps.flatten(1, -2).any(1).cpu() if keeps.ndim > 2 else keeps.cpu()


def _sounds_so(name: str) -> bool:
    return bool(_SOUNDS.search(_own(name))) and not _own(name).startswith(_NO_MASKS) and _own(name) not in _PLAIN


def _methods(model: nn.Module) -> dict[str, nn.Module]:
    """The module that tells how many frames a stretch of sound gives, where there is one."""
    owner = next((one for one in unwrapped(model).modules() if hasattr(one, _FRAMES)), None)
    return {} if owner is None else {_FRAMES: owner}


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
            additive = value.is_floating_point() and high == 0 and bool(((value == 0) | (value < _LOW)).all())
            if (binary or additive) and not _own(name).startswith(_NO_MASKS):
                yield name, value, int(value.shape[-1])


def _counts(example: Batch) -> Iterator[tuple[str, Tensor, int]]:
    """What may say how many positions of each row count, or which is the last; of how many."""
    texts = [one for one in example.values() if isinstance(one, Tensor) and one.ndim > 1]
    for name, value in example.items():
        if isinstance(value, Tensor) and value.ndim == 1 and value.dtype in (torch.int32, torch.int64):
            lengths = {int(one.shape[1]) for one in texts if one.shape[0] == value.shape[0]}
            fits = len(lengths) == 1 and int(value.min()) >= 0 and int(value.max()) <= min(lengths)
            if fits and min(lengths) > _MARKED and not _own(name).startswith(_NO_MASKS):
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
        and name not in {mask for mask, _, _ in _masks(example)} and not _own(name).startswith(_NO_MASKS)
    ]  # fmt: skip


def _holds(
    example: Batch, name: str, tokens: list[str], marks: str, marked: slice, look: Look, model: nn.Module
) -> bool:
    """Whether marked positions of the first row move nothing elsewhere, and unmarked ones do."""
    length = example[name].shape[-1] if example[name].ndim > 1 else int(example[tokens[0]].shape[1])
    gaps = []
    # what everybody calls a mask is believed to be one, if it does what a mask does
    for is_marked in (True,) if name in _PLAIN and marks == "zeros" else (True, False):
        mask = _with_marks(example[name], marks, marked if is_marked else slice(length, length), length)
        own = {**example, name: mask}
        other = {**own, **{one: _otherwise(example[one], marked) for one in tokens}}
        try:
            gaps.append(_moved(look(own), look(other), marked, length, mask, marks, model))
        except ModelError:
            return False
    return gaps[0] == 0 and (len(gaps) == 1 or gaps[1] > 0)


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
    if value.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        part = value[0, marked]
        noise = torch.randn(part.shape, generator=generator).to(value.device, value.dtype)
        value[0, marked] = part + noise * (value.float().std().to(value.dtype) + 1e-3)
    else:
        known = value.unique()
        place = torch.searchsorted(known, value[0, marked].contiguous())
        value[0, marked] = known[(place + 1) % len(known)]
    return value


def _moved(
    before: list[Tensor], after: list[Tensor], marked: slice, length: int, mask: Tensor, marks: str, model: nn.Module
) -> float:
    """By how much z of the first row moves where it is not marked, beyond rounding; 0 where it does not."""
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        if a.shape != b.shape or a.shape[0] != mask.shape[0]:
            continue
        if a.shape[2] == length:
            stays = torch.ones(length, dtype=torch.bool)
            stays[marked] = False
        elif _FRAMES in _methods(model) and mask.ndim == 2 and marks == "zeros":
            frames = _kept(mask, "frames", model, {})
            if frames.shape[1] != a.shape[2]:
                continue
            stays = frames[0]
        else:
            continue
        gap = (a[0][:, stays.to(a.device)] - b[0][:, stays.to(a.device)]).float().abs().nan_to_num(0)
        size = max(float(a[0].float().abs().nan_to_num(0, 0, 0).max()), 1e-12)
        most = float(gap.max()) / size if gap.numel() else 0.0
        worst = max(worst, most if most > tolerance(a.dtype) else 0.0)
    return worst
