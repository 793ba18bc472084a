"""Heads as rows of made-up numbers, and the moments that a pass over them would have summed."""

import numpy as np
import torch

from headscope.statistics.block_sums import lift
from headscope.statistics.moments import Moments

__all__ = ["in_blocks", "measured", "sample", "textbook_weights", "uneven_sample"]


def measured(rows, pivot=None):
    rows = torch.from_numpy(rows)
    pivot = rows.mean(0) if pivot is None else torch.from_numpy(pivot)
    lifted = lift([rows], pivot.flatten())
    return Moments.of_square((rows.shape[2],) * rows.shape[1], pivot.flatten(), lifted.T @ lifted)


def in_blocks(rows, n_blocks=6):
    """Moments of a block each, about a common pivot."""
    return [measured(part, rows.mean(0)) for part in np.array_split(rows, n_blocks)]


def sample(seed=0, n_tokens=400, n_heads=4, dim=5):
    """Heads that predict each other in part."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((n_tokens, 1, dim))
    return common + 0.5 * rng.standard_normal((n_tokens, n_heads, dim)) + rng.standard_normal((1, n_heads, dim))


def textbook_weights(weights):
    return [weight.numpy() for weight in weights]


def uneven_sample(seed=0, n_tokens=300, n_heads=4, dim=3, offset=1.0):
    """Heads that predict each other in part, of different sizes, about means of their own."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((n_tokens, 1, dim))
    size = 1 + np.arange(n_heads)[:, None] / 3
    own = rng.standard_normal((n_tokens, n_heads, dim)) * size
    return common + 0.7 * own + offset * rng.standard_normal((1, n_heads, dim))
