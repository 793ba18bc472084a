"""Where heads look, one query after another, from the raw maps."""

import math

import numpy as np

ROLES = ("previous", "next", "same", "duplicate", "delimiter", "induction", "sink", "broad")


def role_sums(maps, ids, unpadded, counts, delimiters=(), aligned=True):
    """{role: (head, 3)}: mass on the target, mass that could be there, mass there by chance, over all queries.

    maps: (row, head, query, key); ids: (row, key); unpadded: (row, key), which keys are there; counts: (row, query),
    which queries count; aligned: whether queries and keys are the same positions.
    """
    n_rows, n_heads, n_queries, n_keys = maps.shape
    sums = {role: np.zeros((n_heads, 3)) for role in ROLES}
    for row in range(n_rows):
        sink = next(key for key in range(n_keys) if unpadded[row, key])
        for query in range(n_queries):
            if not counts[row, query]:
                continue
            seen = [key for key in range(n_keys) if unpadded[row, key] and (maps[row, :, query, key] > 0).any()]
            free = [key for key in seen if key != sink]
            if not free:
                continue
            for head in range(n_heads):
                weights = {key: maps[row, head, query, key] for key in free}
                off = sum(weights.values())
                for role in ROLES[:-2]:
                    goal = set(free) & set(_targets(role, query, list(ids[row]), free, delimiters, aligned))
                    if goal:
                        sums[role][head] += sum(weights[k] for k in goal), off, off * len(goal) / len(free)
                sums["sink"][head] += 1 - off, 1, (sink in seen) / len(seen)
                entropy = -sum(w / off * math.log(w / off) for w in weights.values() if w > 0) if off else 0.0
                widest = off * math.log(len(free))
                sums["broad"][head] += off * entropy, widest, widest
    return sums


def _targets(role, query, ids, free, delimiters, aligned):
    if role == "delimiter":
        return [key for key in free if ids[key] in delimiters]
    if not aligned:
        return []
    if role in ("previous", "next", "same"):
        return [query + {"previous": -1, "next": 1, "same": 0}[role]]
    if role == "duplicate":
        return [key for key in free if key != query and ids[key] == ids[query]]
    earlier = [key for key in range(query) if ids[key] == ids[query]]
    return [earlier[-1] + 1] if earlier else []
