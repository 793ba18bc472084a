"""Effective number of heads, and what a layer's best heads give back, from the rows themselves: (token, head, dim)."""

import numpy as np


def linear_cka(x, y):
    """Kornblith et al. 2019, table 1, from two (token, dim) arrays."""
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(y.T @ x) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)


def vendi(rows):
    """Friedman and Dieng 2023: exp of the Shannon entropy of the eigenvalues of K / N."""
    heads = range(rows.shape[1])
    kernel = np.array([[linear_cka(rows[:, a], rows[:, b]) for b in heads] for a in heads])
    values = np.linalg.eigvals(kernel / rows.shape[1]).real
    return np.exp(-sum(value * np.log(value) for value in values if value > 0))


def curve(fit, judge, weights, ridge):
    """(order, squares on `judge`): ‖y‖² and ‖y - ŷ‖² of k = 0 … N, refitted at every step, chosen on `fit`."""
    penalty = ridge * fit.var(0).mean() * len(fit)
    wrote_fit, wrote = (np.einsum("nhd,hwd->nw", rows, weights) for rows in (fit, judge))
    order, squares = [], [(wrote**2).sum(), ((wrote - wrote_fit.mean(0)) ** 2).sum()]
    while len(order) < fit.shape[1]:
        left = [head for head in range(fit.shape[1]) if head not in order]
        costs = [_ridge(fit[:, [*order, head]], wrote_fit, penalty)[1] for head in left]
        order.append(left[int(np.argmin(costs))])
        predict, _ = _ridge(fit[:, order], wrote_fit, penalty)
        squares.append(((wrote - predict(judge[:, order])) ** 2).sum())
    return order, np.array(squares)


def missed(fit, judge, weights, kept, ridge):
    """‖y - ȳ‖² and ‖y - ŷ‖² on `judge`, ŷ from the kept heads; pairs of (token, head, dim): the kept heads' document,
    and the others'."""
    (fit, wrote_fit), (judge, wrote) = (_apart(*pair, weights, kept) for pair in (fit, judge))
    penalty = ridge * fit.var(0).mean() * len(fit)
    predict, _ = _ridge(fit[:, kept], wrote_fit, penalty)
    return np.array([((wrote - own) ** 2).sum() for own in (wrote_fit.mean(0), predict(judge[:, kept]))])


def _apart(here, there, weights, kept):
    rows = there.copy()
    rows[:, kept] = here[:, kept]
    return here, np.einsum("nhd,hwd->nw", rows, weights)


def _ridge(x, y, penalty):
    """A prediction with a free constant, and squared error + penalty of it; the penalty as extra rows of the design."""
    x = x.reshape(len(x), -1)
    centre, offset = x.mean(0), y.mean(0)
    design = np.vstack([x - centre, np.sqrt(penalty) * np.eye(x.shape[1])])
    target = np.vstack([y - offset, np.zeros((x.shape[1], y.shape[1]))])
    solution = np.linalg.lstsq(design, target, rcond=None)[0]
    cost = ((target - design @ solution) ** 2).sum()
    return lambda new: (new.reshape(len(new), -1) - centre) @ solution + offset, cost
