"""Sums over positions, one position after another."""

import numpy as np


def second_moment(rows, pivot):
    """Σ u uᵀ with u = [x ; ‖x_1‖² … ‖x_N‖² ; 1], x = z - pivot. rows (token, head, dim), pivot (head, dim)."""
    total = 0.0
    for z in rows:
        x = z - pivot
        u = np.concatenate([x.ravel(), [float(head @ head) for head in x], [1.0]])
        total = total + np.outer(u, u)
    return total


def contributions(rows, weights):
    """(token, head, width): what each head adds to the output projection's output. weights: (width, dim) a head."""
    return np.stack([rows[:, head] @ weight.T for head, weight in enumerate(weights)], axis=1)


def root_mean_square(rows, weights):
    """(head,) root mean square over positions of ‖contribution‖."""
    return np.sqrt((contributions(rows, weights) ** 2).sum(-1).mean(0))
