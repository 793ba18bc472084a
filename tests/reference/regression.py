"""How much of a head's contribution other heads predict, by least squares on the rows themselves."""

import numpy as np


def replaceability(fit, judge, weights, ridge):
    """(head,) 1 - what `unexplained` gives."""
    return 1 - unexplained(fit, judge, weights, ridge)


def unexplained(fit, judge, weights, ridge):
    """(head,) ‖(z - ẑ)W‖² / ‖zW‖² on `judge`, ẑ ridge-regressed on `fit`.

    fit, judge: (token, head, dim); weights: (width, dim) a head. The penalty is ridge × the mean of Σ z² over all
    dimensions of `fit`; the constant is free.
    """
    penalty = ridge * (fit**2).sum(0).mean()
    shares = []
    for head, weight in enumerate(weights):
        others = [other for other in range(len(weights)) if other != head]
        predicted = _predict(fit[:, others], fit[:, head], judge[:, others], penalty)
        gap = (judge[:, head] - predicted) @ weight.T
        energy = ((judge[:, head] @ weight.T) ** 2).sum()
        shares.append((gap**2).sum() / energy if energy else 0.0)
    return np.array(shares)


def _predict(x, y, new, penalty):
    """Least squares with the penalty as extra rows, which keeps twice the digits of the normal equations."""
    x, new = x.reshape(len(x), -1), new.reshape(len(new), -1)
    centre = x.mean(0)
    design = np.hstack([x - centre, np.ones((len(x), 1))])
    extra = np.hstack([np.sqrt(penalty) * np.eye(x.shape[1]), np.zeros((x.shape[1], 1))])
    target = np.vstack([y, np.zeros((x.shape[1], y.shape[1]))])
    solution = np.linalg.lstsq(np.vstack([design, extra]), target, rcond=None)[0]
    return np.hstack([new - centre, np.ones((len(new), 1))]) @ solution
