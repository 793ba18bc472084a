"""The delete-m jackknife for unequal m, term by term as in Busing, Meijer and van der Leeden 1999."""

import math

import numpy as np
from scipy.stats import t as student


def interval(estimate, groups, level=0.95):
    """(low, high) of a number. estimate: from an array of rows; groups: arrays of rows that stay together."""
    groups = [group for group in groups if len(group)]
    n, everything = sum(len(group) for group in groups), estimate(np.concatenate(groups))
    # as many degrees of freedom as equal blocks of the same effective number (Kish 1965) would have
    freedom = max(n**2 / sum(len(group) ** 2 for group in groups) - 1, 1)
    half = student(freedom).ppf((1 + level) / 2) * error(estimate, groups)
    return everything - half, everything + half


def error(estimate, groups):
    """The standard error of the estimate; groups all hold rows."""
    n, g = sum(len(group) for group in groups), len(groups)
    everything = estimate(np.concatenate(groups))
    left_out = [estimate(np.concatenate([*groups[:j], *groups[j + 1 :]])) for j in range(g)]
    jackknifed = g * everything - sum((1 - len(groups[j]) / n) * left_out[j] for j in range(g))
    variance = 0.0
    for j in range(g):
        h = n / len(groups[j])
        pseudo = h * everything - (h - 1) * left_out[j]
        variance += (pseudo - jackknifed) ** 2 / (h - 1) / g
    return math.sqrt(variance)
