"""Masks of a batch: what each is known to keep, from how the trials found it to mark padding."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from headscope._support.running import handed, unwrapped
from headscope.errors import InputError
from headscope.sites import Anatomy
from headscope.text.batches import Batch, Remade

__all__ = [
    "LOW", "as_read", "form_of", "frames_of", "is_known", "is_named_so", "joined", "kept_by", "leaves_of", "masks_of",
    "names_no_mask", "with_kept",
]  # fmt: skip

LOW = -1e3  # an additive mask says "not this one" by less than that
_KNOWN = ("attention_mask", "decoder_attention_mask")  # the names that everybody knows
# what names tell to be something else
_NO_MASKS = ("position", "token_type", "labels", "kept", "head_mask", "global_attention")
_FRAMES = "_get_feat_extract_output_lengths"
_SOUNDS = re.compile(r"mask|pad|valid|lens?$|lengths?$|segment")


def leaves_of(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """A batch laid flat: what lies in dicts and lists of it, under dotted names."""
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if type(value) in (list, tuple) else None
    if inner is None:
        yield name, value
        return
    for key, one in inner:
        yield from leaves_of(one, f"{name}.{key}" if name else str(key))


def _last_part(name: str) -> str:
    """The last part of a dotted name."""
    return name.rpartition(".")[2]


def is_known(name: str, mask: Tensor) -> bool:
    """Whether a mask is one of rows and positions by a name that everybody knows, at the top or one dict deep."""
    return _last_part(name) in _KNOWN and name.count(".") < 2 and mask.ndim == 2


def is_named_so(name: str) -> bool:
    """Whether an argument is a mask by its name, or sounds like one."""
    own = _last_part(name)
    return own in _KNOWN or (bool(_SOUNDS.search(own)) and not names_no_mask(name))


def masks_of(model: nn.Module, anatomy: Anatomy, batch: Batch) -> dict[str, Bool[Tensor, "batch position"]]:
    """By the name of each mask of a batch, which positions it keeps.

    Args:
        model: the model.
        anatomy: its anatomy.
        batch: as the user gave it.

    Raises:
        InputError: it holds a mask that the batch on which heads were found did not, or in another form.
    """
    leaves = dict(leaves_of(batch))
    told = {padding.mask: padding.marks for padding in anatomy.padding}
    found = {}
    for name, mask in leaves.items():
        if not isinstance(mask, Tensor):
            continue
        if name in told and (not anatomy.masks or form_of(name, mask) in anatomy.masks):
            found[name] = kept_by(mask, told[name], model, batch)
        elif is_known(name, mask) and name not in told:
            found[name] = kept_by(mask, "zeros", model, batch)
        elif is_named_so(name) and form_of(name, mask) not in anatomy.masks:
            raise InputError(
                f"a batch holds {name}, {mask.ndim}-dimensional, and the one on which heads were found did not, so "
                "which positions it marks as padding is not known; call discover with a batch that holds it, and one "
                'with other masks by itself; or say it: "kept" in the batches, (row, position)'
            )
    return found


def form_of(name: str, mask: Tensor) -> str:
    """What tells a mask from another use of its name: its dimensions, and whether it holds fractions."""
    return f"{name} {mask.ndim} {'float' if mask.is_floating_point() else 'int'}"


def with_kept(model: nn.Module, anatomy: Anatomy, batch: Batch) -> Batch:
    """A batch with "kept", (row, position), where its padding is marked in a way that is not known by name.

    Where several masks speak of the positions of what the model puts out, those that all of them keep.

    Args:
        model: the model.
        anatomy: its anatomy.
        batch: as the user gave it; one that says itself which positions are kept is left as it is.

    Raises:
        InputError: as `masks_of` does.
    """
    if "kept" in batch:
        return batch
    masks = masks_of(model, anatomy, batch)
    if not any(padding.mask in masks for padding in anatomy.padding):
        return batch
    told = (site.query_masks for site in reversed(anatomy.sites) if any(name in masks for name in site.query_masks))
    kept = joined(masks, next(told, tuple(masks)))
    return batch if kept is None else {**batch, "kept": kept}


def as_read(model: nn.Module, anatomy: Anatomy, batches: Sequence[Batch]) -> Sequence[Batch]:
    """Batches as layers see them: without what is not for the model's forward, and with "kept" as `with_kept` has it.

    Args:
        model, anatomy: as in `with_kept`.
        batches: as the user gave them.
    """
    return Remade(batches, lambda batch: with_kept(model, anatomy, handed(model, batch)))


def joined(masks: Mapping[str, Tensor], names: Iterable[str]) -> Tensor | None:
    """What all of some masks keep; those that are not there, or are of another shape than the first, aside.

    Args:
        masks: what each keeps, by its name.
        names: of some.
    """
    parts = [masks[name] for name in names if name in masks]
    return torch.stack([part for part in parts if part.shape == parts[0].shape]).all(0) if parts else None


def kept_by(mask: Tensor, marks: str, model: nn.Module, batch: Batch) -> Bool[Tensor, "batch position"]:
    """Which positions a mask keeps.

    Args:
        mask: (batch, …, position); or (batch,), how many positions count or which is the last; samples where it marks
            frames.
        marks: how; see `headscope.sites.Padding`.
        model: tells how many frames a stretch of sound gives.
        batch: tells how many positions there are where the mask does not.
    """
    if marks == "frames":
        reduce = frames_of(model)
        assert reduce is not None
        frames = torch.as_tensor(reduce(mask.sum(-1))).cpu()
        return torch.arange(int(reduce(torch.tensor(mask.shape[-1])))) < frames[:, None]
    if marks.startswith("id "):
        return mask.cpu() != int(marks.removeprefix("id "))
    if marks in ("lengths", "last"):
        # as many as the text has, whatever is the longest that counts
        texts = (one for _, one in leaves_of(batch) if isinstance(one, Tensor) and one.ndim > 1)
        length = next(int(one.shape[1]) for one in texts)
        return torch.arange(length) < (mask.cpu() + (marks == "last"))[:, None]
    keeps = {"zeros": mask != 0, "ones": mask == 0, "floor": mask > LOW}[marks]
    return keeps.flatten(1, -2).any(1).cpu() if keeps.ndim > 2 else keeps.cpu()


def names_no_mask(name: str) -> bool:
    """Whether an argument is something else by its name."""
    return _last_part(name).startswith(_NO_MASKS)


def frames_of(model: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The model's own way from how many samples of sound there are to how many frames they give; None without one.

    Where it tells of several lengths, of those that its attention sees, which come before what it makes of them.
    """
    owner = next((one for one in unwrapped(model).modules() if hasattr(one, _FRAMES)), None)
    own = getattr(owner, _FRAMES, None)
    if own is None:
        return None

    def reduce(samples: Tensor) -> Tensor:
        told = own(samples)
        return torch.as_tensor(told[0] if isinstance(told, tuple) else told)

    return reduce
