"""How much of a head's contribution other heads predict, by least squares on the rows themselves."""

import numpy as np


def replaceability(fit, judge, weights, ridge):
    """(head,) of what varies in each head about the mean of `fit`, the share given back on `judge`."""
    _, varying, missed = energies(fit, judge, weights, ridge)
    return 1 - missed / varying


def energies(fit, judge, weights, ridge):
    """(3, head) on `judge`: ‖zW‖², ‖(z - z̄)W‖² and ‖(z - ẑ)W‖², z̄ the mean of `fit`, ẑ ridge-regressed on `fit`.

    fit, judge: (token, head, dim); weights: (width, dim) a head. The penalty is ridge × the mean over all dimensions
    of Σ (z - z̄)² of `fit`; the constant is free.
    """
    mean = fit.mean(0)
    penalty = ridge * ((fit - mean) ** 2).sum(0).mean()
    table = []
    for head, weight in enumerate(weights):
        others = [other for other in range(len(weights)) if other != head]
        predicted = _predict(fit[:, others], fit[:, head], judge[:, others], penalty)
        own = judge[:, head]
        table.append([((gap @ weight.T) ** 2).sum() for gap in (own, own - mean[head], own - predicted)])
    return np.array(table).T


def _predict(x, y, new, penalty):
    """Least squares with the penalty as extra rows, which keeps twice the digits of the normal equations."""
    x, new = x.reshape(len(x), -1), new.reshape(len(new), -1)
    centre = x.mean(0)
    design = np.hstack([x - centre, np.ones((len(x), 1))])
    extra = np.hstack([np.sqrt(penalty) * np.eye(x.shape[1]), np.zeros((x.shape[1], 1))])
    target = np.vstack([y, np.zeros((x.shape[1], y.shape[1]))])
    solution = np.linalg.lstsq(np.vstack([design, extra]), target, rcond=None)[0]
    return np.hstack([new - centre, np.ones((len(new), 1))]) @ solution
