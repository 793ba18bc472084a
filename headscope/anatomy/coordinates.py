"""Coordinates: for each number of a tensor, its row of the batch, head, position and dimension."""

import torch
from torch import Tensor

from headscope.anatomy.layout import Coordinates, IrregularError

__all__ = ["Letters", "Own", "of_factor", "of_tensor", "ranked", "scattered", "split_axis"]

Own = tuple[str | None, ...]
Letters = dict[str, dict[str, Tensor]]
"""For each axis of a contraction, by its letter, the place of each of its values by kind."""

_FAR = torch.iinfo(torch.long).max


def of_tensor(letters: Letters, own: Own, shape: torch.Size) -> dict[str, Tensor]:
    """The coordinates of a tensor's numbers from those of its axes.

    Args:
        letters: what is known of each axis.
        own: the tensor's axes.
        shape: the tensor's.
    """
    found: dict[str, Tensor] = {}
    for axis, letter in enumerate(own):
        if letter is not None:
            for kind, places in letters[letter].items():
                found[kind] = found.get(kind, torch.zeros(shape, dtype=torch.long)) + _along(places, axis, len(shape))
    return found


def scattered(coordinates: Coordinates, labels: Tensor, shape: torch.Size) -> dict[str, Tensor]:
    """Coordinates of the tensor that another one's numbers stem from; -1 where nothing stems from.

    Args:
        coordinates: of the other one.
        labels: which number of the tensor each of the other one's stems from.
        shape: the tensor's.
    """
    used = labels >= 0
    found = {}
    for kind, places in coordinates.items():
        own = torch.full((shape.numel(),), -1)
        own[labels[used]] = places.expand(labels.shape)[used]
        found[kind] = own.view(shape)
    return found


def of_factor(product: Coordinates, of_product: Own, own: Own, shape: torch.Size, kinds: str) -> dict[str, Tensor]:
    """Coordinates of one factor's numbers from those of a product's; what is summed over is its "d".

    Args:
        product: of the product's numbers.
        of_product, own: axes of the product and of the factor.
        shape: the factor's.
        kinds: those that the factor has, "d" among them.
    """
    found = {}
    shared = [axis for axis, letter in enumerate(of_product) if letter is not None and letter in own]
    order = [of_product[axis] for axis in shared]
    for kind in kinds.replace("d", ""):
        if kind in product:
            places = torch.where(product[kind] >= 0, product[kind], _FAR)
            for axis in set(range(places.ndim)) - set(shared):
                places = places.amin(axis, keepdim=True)
            places = places.permute(*shared, *(axis for axis in range(places.ndim) if axis not in shared))
            places = places.flatten(len(shared))[..., 0] if places.ndim > len(shared) else places
            places = places.permute([order.index(letter) for letter in own if letter in order])
            view = [size if letter in order else 1 for letter, size in zip(own, shape, strict=True)]
            found[kind] = torch.where(places == _FAR, -1, places).reshape(view).expand(shape)
    found["d"], step = torch.zeros(shape, dtype=torch.long), 1
    for axis in reversed(range(len(own))):
        if own[axis] is not None and own[axis] not in of_product:
            found["d"] = found["d"] + _along(torch.arange(shape[axis]) * step, axis, len(shape))
            step *= shape[axis]
    return found


def ranked(coordinates: dict[str, Tensor]) -> dict[str, Tensor]:
    """With heads counted among themselves: key heads that are fewer than query heads are 0, 1, 2 … all the same."""
    heads = coordinates.get("h")
    if heads is None:
        return coordinates
    counted = torch.full_like(heads, -1)
    counted[heads >= 0] = heads[heads >= 0].unique(return_inverse=True)[1]
    return coordinates | {"h": counted}


def split_axis(heads: Tensor, kind: str, count: dict[str, int]) -> dict[str, Tensor]:
    """An axis as heads and as places of another kind, from which head each of its values belongs to.

    Args:
        heads: of each value along the axis; -1 where it is not used.
        kind: the other one.
        count: how many places of each kind the axes after this one hold; it is brought up to date.

    Raises:
        IrregularError: heads and places do not take turns evenly.
    """
    place, size = torch.arange(len(heads)), len(heads)
    known = heads[heads >= 0]
    many, start = len(known.unique()), int(torch.nonzero(heads >= 0)[0])
    if many == 1:
        step = count[kind]
        count[kind] *= size
        return {kind: place * step}
    changes = torch.nonzero((heads != heads[start]) & (heads >= 0)).flatten()
    inner = int(changes[0]) - start
    outer = size // (inner * many)
    if (inner > 1 and outer > 1) or inner * many * outer != size:
        raise IrregularError("its heads lie between its rows in a way that is not read")
    own = {"h": heads[(place // inner % many) * inner] - known.min()}
    if size > many:
        own[kind] = (place % inner if inner > 1 else place // many) * count[kind]
        count[kind] *= inner * outer
    return own


def _along(places: Tensor, axis: int, many: int) -> Tensor:
    view = [1] * many
    view[axis] = len(places)
    return places.view(view)
