"""HSIC of every two heads from minibatches of positions: cheaper than exact sums where heads have many dimensions."""

from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Float64, Num
from torch import Tensor

from headscope.heads import Site
from headscope.statistics import STATISTICS
from headscope.statistics.arrivals import key_side
from headscope.statistics.block_sums import source
from headscope.statistics.pair_sums import PairStatistic

__all__ = ["MinibatchHsic"]

_CONSTANT = 1e-12  # as for moments: below this share of its squares, a head's spread is rounding
_NOTHING = 1e-24  # of the Gram matrix's squares: what rounding leaves where centring takes all of it away


@STATISTICS.register("minibatch_hsic")
class MinibatchHsic(PairStatistic):
    """Σ over minibatches of n × the unbiased HSIC with linear kernels over their n positions.

    A minibatch is what one batch holds of one block of documents, cut into equal parts of at most `size` positions;
    parts of fewer than four are left out. The unbiased HSIC is an inner product of U-centred Gram matrices (Székely and
    Rizzo 2014, arXiv:1310.2926, section 2), so one product of the stacked matrices gives every two heads.

    Args:
        of: what is compared; see `headscope.statistics.layer_moments.LayerMoments`.
        scope: see `headscope.statistics.pair_sums.PairStatistic`.
        size: most positions in a minibatch.
    """

    def __init__(self, of: str = "gated_z", scope: str = "layer", size: int = 256) -> None:
        super().__init__(source(of), scope)
        self.size = size

    def side(self, site: Site, tensor: Tensor) -> Hashable:
        """Encoder and decoder see different positions."""
        return key_side(site, self.of)

    def relate(self, parts: Sequence[Num[Tensor, "token _ _"]]) -> tuple[Float64[Tensor, "head head"], int]:
        """One product of stacked Gram matrices a minibatch."""
        n_tokens, n_heads = len(parts[0]), sum(part.shape[1] for part in parts)
        summed = parts[0].new_zeros(n_heads, n_heads, dtype=torch.float64)
        if n_tokens < 4:
            return summed, 0
        pieces = -(-n_tokens // self.size)
        counted = 0
        for rows in zip(*(torch.tensor_split(part, pieces) for part in parts), strict=True):
            n = len(rows[0])
            if n >= 4:
                stacked = torch.cat([_centred_grams(part) for part in rows])
                summed.addmm_(stacked, stacked.T, alpha=1 / (n - 3))
                counted += n
        return summed, counted


def _centred_grams(rows: Num[Tensor, "token head dim"]) -> Float64[Tensor, "head entry"]:
    """The U-centred Gram matrix of each head, flattened; zero where only rounding is left of it."""
    x = rows.transpose(0, 1).double()
    centred = x - x.mean(1, keepdim=True)
    constant = centred.square().sum((1, 2)) <= _CONSTANT * x.square().sum((1, 2))
    centred[constant] = 0
    n = x.shape[1]
    gram = centred @ centred.mT
    size = gram.square().sum((1, 2))
    gram.diagonal(dim1=1, dim2=2).zero_()
    sums = gram.sum(2)
    level = sums.sum(1) / (2 * (n - 1))
    shift = (sums - level[:, None]) / (n - 2)
    gram -= shift[:, :, None]
    gram -= shift[:, None, :]
    gram.diagonal(dim1=1, dim2=2).zero_()
    gram[gram.square().sum((1, 2)) <= _NOTHING * size] = 0
    return gram.flatten(1)
