"""Similarity of two heads from their outputs at every position: (token, dim) arrays."""

from itertools import permutations

import numpy as np


def unbiased_hsic(x, y):
    """Song et al. 2012, equation 5, with the token × token Gram matrices written out."""
    n = len(x)
    k, other = _gram(x), _gram(y)
    np.fill_diagonal(k, 0)
    np.fill_diagonal(other, 0)
    one = np.ones(n)
    first = np.trace(k @ other)
    second = (one @ k @ one) * (one @ other @ one) / ((n - 1) * (n - 2))
    third = 2 / (n - 2) * (one @ k @ other @ one)
    return (first + second - third) / (n * (n - 3))


def hsic_by_quadruples(x, y):
    """The same as a U-statistic: the mean of K_ij (L_ij + L_qr - 2 L_iq) over all four different positions."""
    k, other = _gram(x), _gram(y)
    terms = [k[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q]) for i, j, q, r in permutations(range(len(x)), 4)]
    return np.mean(terms)


def unbiased_cka(x, y):
    """Linear CKA with the unbiased HSIC."""
    return unbiased_hsic(x, y) / np.sqrt(unbiased_hsic(x, x) * unbiased_hsic(y, y))


def cosine(a, b):
    """Cosine of two arrays of one shape, taken as vectors."""
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def all_pairs(measure, outputs):
    """(head, head) from a function of two; outputs: (token, dim) a head."""
    return np.array([[measure(a, b) for b in outputs] for a in outputs])


def _gram(x):
    # HSIC does not change with an offset; taking it out first keeps the digits of a head that sits at 1e4
    x = x - x.mean(0)
    return x @ x.T
