"""Masks of a batch: what each is known to keep, from how the trials found it to mark padding."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from headscope._support.running import unwrapped
from headscope.errors import InputError
from headscope.sites import Anatomy
from headscope.text.batches import Batch

__all__ = [
    "FRAMES", "LOW", "PLAIN", "form_of", "joined", "kept_by", "last_part", "leaves_of", "masks_of", "methods_of",
    "names_no_mask", "sounds_so", "with_kept",
]  # fmt: skip

LOW = -1e3  # an additive mask says "not this one" by less than that
PLAIN = {"attention_mask": "self", "decoder_attention_mask": "causal"}  # the names that everybody knows
# what names tell to be something else
_NO_MASKS = ("position", "token_type", "labels", "kept", "head_mask", "global_attention")
FRAMES = "_get_feat_extract_output_lengths"
_SOUNDS = re.compile(r"mask|pad|valid|lens?$|lengths?$|segment")


def leaves_of(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """A batch laid flat: what lies in dicts and lists of it, under dotted names."""
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if type(value) in (list, tuple) else None
    if inner is None:
        yield name, value
        return
    for key, one in inner:
        yield from leaves_of(one, f"{name}.{key}" if name else str(key))


def last_part(name: str) -> str:
    """The last part of a dotted name."""
    return name.rpartition(".")[2]


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
        plain = last_part(name) in PLAIN and name.count(".") < 2 and mask.ndim == 2
        if name in told and (not anatomy.masks or form_of(name, mask) in anatomy.masks):
            found[name] = kept_by(mask, told[name], model, batch)
        elif plain and name not in told:
            found[name] = kept_by(mask, "zeros", model, batch)
        elif (sounds_so(name) or last_part(name) in PLAIN) and form_of(name, mask) not in anatomy.masks:
            raise InputError(
                f"a batch holds {name}, {mask.ndim}-dimensional, and the one on which heads were found did not, so "
                "which positions it marks as padding is not known; call discover with a batch that holds it, and one "
                'with other masks by itself; or say it: "kept" in the batches, (row, position)'
            )
    return found


def form_of(name: str, mask: Tensor) -> str:
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


def joined(masks: Mapping[str, Tensor], names: Iterable[str]) -> Tensor | None:
    """What all of some masks keep; those that are not there, or are of another shape than the first, aside.

    Args:
        masks: what each keeps, by its name.
        names: of some.
    """
    parts = [masks[name] for name in names if name in masks]
    return torch.stack([part for part in parts if part.shape == parts[0].shape]).all(0) if parts else None


def kept_by(mask: Tensor, marks: str, model: nn.Module, batch: Batch) -> Bool[Tensor, "batch position"]:
    if marks == "frames":
        reduce: Any = getattr(methods_of(model)[FRAMES], FRAMES)
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
    return last_part(name).startswith(_NO_MASKS)


def sounds_so(name: str) -> bool:
    """Whether an argument that is none of the plain ones sounds like a mask."""
    return bool(_SOUNDS.search(last_part(name))) and not names_no_mask(name) and last_part(name) not in PLAIN


def methods_of(model: nn.Module) -> dict[str, nn.Module]:
    """The module that tells how many frames a stretch of sound gives, where there is one."""
    owner = next((one for one in unwrapped(model).modules() if hasattr(one, FRAMES)), None)
    return {} if owner is None else {FRAMES: owner}
