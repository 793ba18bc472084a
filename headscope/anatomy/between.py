"""Between z and the projection that reads it: nothing, a gate, or something that no head of the site makes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from headscope.anatomy.check import tolerance
from headscope.anatomy.features import features_last

__all__ = ["adds", "filled", "is_z"]


def is_z(entering: Tensor, z: Tensor, rows: str, columns: Sequence[tuple[int, ...]], axes: tuple[int, ...]) -> bool:
    """Whether the projection's input is z and nothing else, each head's columns in the order of its dimensions.

    Args:
        entering: what the projection reads.
        z: (batch, head, position, dim).
        rows: how rows and positions enter; see `headscope.sites.Site`.
        columns: of each head.
        axes: of what enters, those that hold features.
    """
    batch, _, positions, dim = z.shape
    flat = features_last(entering.detach(), axes)
    if any(len(own) != dim for own in columns):
        return False
    if not rows:  # rows in an order of their own, some thrown away: each must be there as it is
        every, own = flat.flatten(0, -2), [z[:, head].flatten(0, -2) for head in range(len(columns))]
        fewer = [
            (every[:, list(c)], o) if len(every) <= len(o) else (o, every[:, list(c)])
            for c, o in zip(columns, own, strict=True)
        ]
        return all(bool(torch.isin(few, many).all()) for few, many in fewer)
    by_row = flat.reshape(batch, positions, -1) if rows == "b t" else flat.reshape(positions, batch, -1).transpose(0, 1)
    return all(torch.equal(by_row[..., list(own)], z[:, head]) for head, own in enumerate(columns))


def adds(
    entering: Tensor, back: Tensor, weight: Tensor, z: Tensor, made: Sequence[GradientEdge], random: Tensor
) -> bool:
    """Whether something that is not z is added to it, as a residual stream is; what differs by no row is a bias.

    Rows in which there is nothing of z are another call's.

    Args:
        entering: what the projection reads: a·z + b, where a gates, or some other function of z.
        back: the derivative of entering · weight by z, (batch, head, position, dim).
        weight: as large as entering.
        z: as back.
        made: the edges of z in the graph.
        random: numbers, as many as back has.
    """
    turned = torch.autograd.grad((back * random).sum(), list(made), retain_graph=True, allow_unused=True)
    if any(one is not None and bool(one.any()) for one in turned):
        return False  # a norm, say: its slope depends on z
    (slope,) = torch.autograd.grad((back * z).sum(), weight, retain_graph=True)
    rest = (entering - slope).detach().flatten(0, -2)
    rows = rest[slope.flatten(0, -2).any(-1)]
    return len(rows) > 0 and float((rows - rows[:1]).abs().max()) > tolerance(rest.dtype) * max(
        float(entering.detach().abs().max()), 1e-12
    )


def filled(columns: Sequence[tuple[int, ...]], width: int, dim: int) -> list[tuple[int, ...]] | None:
    """Each head's columns where some are dead on the example, as behind a ReLU: heads side by side, or in turns.

    Args:
        columns: of each head, those that a gradient reaches.
        width: of what the projection reads.
        dim: of one head's output.

    Returns:
        None where these columns do not tell which of the two it is.
    """
    many = len(columns)
    reached = set().union(*columns)
    if all(len(own) >= dim for own in columns) or len(reached) == width == sum(map(len, columns)):
        return list(columns)  # fewer each, and yet all: heads that were filled up with zeros to attend
    if width != many * dim:
        return None
    ways = [
        [tuple(range(head * dim, (head + 1) * dim)) for head in range(many)],
        [tuple(range(head, width, many)) for head in range(many)],
    ]
    fits = [way for way in ways if all(set(own) <= set(whole) for own, whole in zip(columns, way, strict=True))]
    return fits[0] if len(fits) == 1 or (fits and many == 1) else None
