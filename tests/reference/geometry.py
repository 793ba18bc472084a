"""Average linkage and stress, by the definition."""

import numpy as np


def average_linkage(distances):
    """[(mean distance at which two groups join, the heads of the joined group)], merge after merge."""
    groups, merges = [(i,) for i in range(len(distances))], []
    while len(groups) > 1:
        pairs = [(a, b) for i, a in enumerate(groups) for b in groups[i + 1 :]]
        a, b = min(pairs, key=lambda pair: np.mean([distances[i, j] for i in pair[0] for j in pair[1]]))
        merges.append((np.mean([distances[i, j] for i in a for j in b]), frozenset(a + b)))
        groups = [group for group in groups if group not in (a, b)] + [a + b]
    return merges


def stress_1(distances, points):
    """Kruskal 1964: sqrt(Σ (d - δ)² / Σ d²) over pairs."""
    pairs = [(i, j) for i in range(len(points)) for j in range(i)]
    d = np.array([np.sqrt(((points[i] - points[j]) ** 2).sum()) for i, j in pairs])
    wanted = np.array([distances[i, j] for i, j in pairs])
    return np.sqrt(((d - wanted) ** 2).sum() / (d**2).sum())
