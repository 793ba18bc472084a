"""Making: whether q, k and v are what linear layers put out, so that weights alone tell of them, or more than that."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from headscope.anatomy.check import tolerance
from headscope.anatomy.features import features_last
from headscope.anatomy.graph import HeadRows
from headscope.anatomy.sightings import Layer, Leaf

__all__ = ["is_linear", "is_put_out"]

Random = Callable[[Tensor], Tensor]

_DRAWS = 3  # of numbers that weigh what is looked at
_STILL = 0.05  # of its size


def is_linear(tensor: Tensor, leaves: Sequence[Leaf], random: Random) -> bool:
    """Whether it is linear in what layers put out, up to what is the same at all positions, or is a norm of that.

    Args:
        tensor: (batch, head, position, dim).
        leaves: what the layers behind it put out.
        random: draws random numbers, as many as a tensor has.
    """
    off, turned = [], []
    for _ in range(_DRAWS):
        weights = random(tensor)
        part = tensor.double() * (weights - weights.mean((0, 2), keepdim=True))
        told = _told(part.sum(), leaves)[0]
        size = max(float(part.detach().square().sum()) ** 0.5, 1e-12)
        off.append(abs(told - float(part.detach().sum())) / size)
        turned.append(abs(told) / size)
    # behind a norm nothing grows with what is put out, but for the little number that keeps it from dividing by zero
    return max(off) <= 10 * _coarsest(tensor, leaves) or max(turned) <= _STILL


def is_put_out(
    v: Tensor, leaves: Sequence[Leaf], rows: Mapping[Layer, HeadRows], groups: Sequence[int], random: Random
) -> bool:
    """Whether values are what layers put out, number by number, each dimension of a head from its own row.

    Args:
        v: (batch, head, position, dim).
        leaves: what the layers behind it put out.
        rows: of each layer, those of each value head.
        groups: the value head that each head is.
        random: as there.
    """
    allowed = _coarsest(v, leaves)
    for head, group in enumerate(groups):
        each, along = random(v[0, head, 0]), random(v[:, head, :, :1])
        # what is the same at all positions is a bias, which weights leave out
        part = v[:, head].double() * each * (along - along.mean())
        told, slopes = _told(part.sum(), leaves)
        size = max(float(part.detach().abs().sum()), 1e-12)
        if abs(told - float(part.detach().sum())) > allowed * size:
            return False
        for slope, leaf in slopes:
            own = rows[leaf.layer][group] if leaf.layer in rows else ()
            if len(own) == len(each):
                flat = features_last(slope, leaf.features).flatten(0, -2)[:, [row - leaf.first for row in own]]
                off = flat - (flat @ each)[:, None] * each / each.square().sum()
                if off.numel() and float(off.abs().max()) > allowed * max(float(flat.abs().max()), 1e-12):
                    return False
    return True


def _coarsest(tensor: Tensor, leaves: Sequence[Leaf]) -> float:
    """What rounding may do: under autocast some numbers are coarser than others."""
    return max(tolerance(one.dtype) for one in (tensor, *(leaf.tensor for leaf in leaves)))


def _told(number: Tensor, leaves: Sequence[Leaf]) -> tuple[float, list[tuple[Tensor, Leaf]]]:
    """What a number would be if it were linear in what layers put out, and its slopes by these."""
    if not leaves:
        return float(number.detach()), []
    slopes = torch.autograd.grad(number, [leaf.tensor for leaf in leaves], retain_graph=True, allow_unused=True)
    found = [(slope, leaf) for slope, leaf in zip(slopes, leaves, strict=True) if slope is not None]
    return sum(float((slope.double() * leaf.tensor.detach()).sum()) for slope, leaf in found), found
