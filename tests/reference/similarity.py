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


def biased_cka(x, y):
    """Kornblith et al. 2019, table 1, from the token × token Gram matrices."""
    k, other = _gram(x), _gram(y)
    return np.trace(k @ other) / np.sqrt(np.trace(k @ k) * np.trace(other @ other))


def procrustes(x, y):
    """The most that ⟨x, y Q⟩ can be over rotations Q, over the norms: found by the rotation itself."""
    x, y = x - x.mean(0), y - y.mean(0)
    width = max(x.shape[1], y.shape[1])
    x, y = (np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in (x, y))
    left, _, right = np.linalg.svd(y.T @ x)
    return (x * (y @ left @ right)).sum() / np.linalg.norm(x) / np.linalg.norm(y)


def held_out_r2(fit_x, fit_y, judge_x, judge_y, ridge):
    """R² of y from x by ridge regression with an unpenalised constant, fitted on some rows, judged on others."""
    x, y = fit_x - fit_x.mean(0), fit_y - fit_y.mean(0)
    penalty = np.sqrt(ridge * (x**2).sum() / x.shape[1]) * np.eye(x.shape[1])
    slope = np.linalg.lstsq(np.vstack([x, penalty]), np.vstack([y, np.zeros((x.shape[1], y.shape[1]))]), rcond=None)[0]
    guess = fit_y.mean(0) + (judge_x - fit_x.mean(0)) @ slope
    return 1 - ((judge_y - guess) ** 2).sum() / ((judge_y - judge_y.mean(0)) ** 2).sum()


def minibatch_cka(batches_x, batches_y):
    """Nguyen et al. 2021, equation 3, batches weighed by their positions."""

    def summed(a, b):
        return sum(len(x) * unbiased_hsic(x, y) for x, y in zip(a, b, strict=True))

    return summed(batches_x, batches_y) / np.sqrt(summed(batches_x, batches_x) * summed(batches_y, batches_y))


def divergence(p, q):
    """Jensen–Shannon divergence of two distributions in bits, as the mean Kullback–Leibler divergence to their mean."""

    def kl(a, b):
        return sum(x * np.log2(x / y) for x, y in zip(a, b, strict=True) if x > 0)

    middle = (p + q) / 2
    return (kl(p, middle) + kl(q, middle)) / 2


def all_pairs(measure, outputs):
    """(head, head) from a function of two; outputs: (token, dim) a head."""
    return np.array([[measure(a, b) for b in outputs] for a in outputs])


def _gram(x):
    # HSIC does not change with an offset; taking it out first keeps the digits of a head that sits at 1e4
    x = x - x.mean(0)
    return x @ x.T
