"""HSIC of every two heads from minibatches of positions: cheaper than exact sums where heads have many dimensions."""

from collections.abc import Sequence

import torch
from jaxtyping import Float64, Num
from torch import Tensor

from headscope.statistics import STATISTICS
from headscope.statistics.block_sums import source
from headscope.statistics.grouped import GroupedStatistic
from headscope.statistics.pair_sums import PairBlocks

__all__ = ["MinibatchHsic"]

_CONSTANT = 1e-12  # as for moments: below this share of its squares, a head's spread is rounding
_NOTHING = 1e-12  # of ‖X Xᵀ‖²: below this share, HSIC(x, x) is what rounding leaves of zero
_STRIP = 2**21  # numbers of Gram matrices that are made at once: few enough for the cache that cores share


@STATISTICS.register("minibatch_hsic")
class MinibatchHsic(GroupedStatistic):
    """Σ over minibatches of n × the unbiased HSIC with linear kernels over their n positions.

    A minibatch is what one batch holds of one block of documents, cut into equal parts of at most `size` positions;
    parts of fewer than four are left out. With X centred over the minibatch, what the unbiased HSIC takes of two Gram
    matrices is their inner product, and sums of their diagonals (see
    `headscope.likeness.measures.cka.unbiased_hsic`): one product of the stacked matrices gives every two heads.

    Args:
        of: what is compared; see `headscope.statistics.summed_moments.SummedMoments`.
        scope: see `headscope.statistics.grouped.GroupedStatistic`.
        size: most positions in a minibatch.
    """

    def __init__(self, of: str = "gated_z", scope: str = "layer", size: int = 256) -> None:
        super().__init__(source(of), scope)
        self.size = size

    def start(self) -> PairBlocks:
        """Sums of nothing."""
        return PairBlocks(self.relate)

    def relate(self, parts: Sequence[Num[Tensor, "token _ _"]]) -> tuple[Float64[Tensor, "head head"], int]:
        """One product of stacked Gram matrices a minibatch."""
        n_tokens, n_heads = len(parts[0]), sum(part.shape[1] for part in parts)
        summed = parts[0].new_zeros(n_heads, n_heads, dtype=torch.float64)
        counted = 0
        for rows in zip(*(torch.tensor_split(part, -(-n_tokens // self.size)) for part in parts), strict=True):
            if len(rows[0]) >= 4:
                summed += _hsic(rows)
                counted += len(rows[0])
        return summed, counted


def _centred(
    rows: Num[Tensor, "token head dim"],
) -> tuple[Float64[Tensor, "head token dim"], Float64[Tensor, "head token"]]:
    """Rows less their mean, and their squared lengths; zero for a head that is constant."""
    x = rows.transpose(0, 1).to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    mean = x.mean(1)
    x -= mean[:, None]
    squares = torch.linalg.vector_norm(x, dim=2).square_()  # unlike other spellings it makes nothing of x's size
    spread = squares.sum(1)
    constant = spread <= _CONSTANT * (spread + len(rows) * torch.linalg.vecdot(mean, mean))
    x[constant], squares[constant] = 0, 0
    return x, squares


def _hsic(parts: Sequence[Num[Tensor, "token _ _"]]) -> Float64[Tensor, "head head"]:
    """n × the unbiased HSIC of every two heads over n positions; zero for a head that has none of its own."""
    centred, lengths = zip(*map(_centred, parts), strict=True)
    products, squares = _gram_products(centred), torch.cat(lengths)
    n, alone = squares.shape[1], squares.sum(1)
    hsic = products - n / (n - 2) * squares @ squares.T + torch.outer(alone, alone) / ((n - 1) * (n - 2))
    nothing = hsic.diagonal() <= _NOTHING * products.diagonal()
    hsic[nothing] = 0
    hsic[:, nothing] = 0
    return hsic / (n - 3)


def _gram_products(parts: Sequence[Float64[Tensor, "_ token _"]]) -> Float64[Tensor, "head head"]:
    """⟨K, L⟩ of every two heads' Gram matrices, a strip of rows of all of them at a time.

    They are symmetric: what stands right of a strip's square on the diagonal is made once and counted twice.
    """
    n, n_heads = parts[0].shape[1], sum(map(len, parts))
    products = parts[0].new_zeros(n_heads, n_heads)
    height = max(1, _STRIP // (n * n_heads))
    for start in range(0, n, height):
        stop = min(start + height, n)
        for columns, times in ((slice(start, stop), 1), (slice(stop, n), 2)):
            strips = products.new_empty(n_heads, stop - start, columns.stop - columns.start)
            for own, x in zip(strips.split([len(x) for x in parts]), parts, strict=True):
                torch.bmm(x[:, start:stop], x[:, columns].mT, out=own)
            flat = strips.flatten(1)
            products.addmm_(flat, flat.T, alpha=times)
    return products
