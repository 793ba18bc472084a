"""The best query of each role and head, with the tokens around it."""

import torch

from headscope.statistics.role_examples import AROUND, NEAR, BestQueries


def find(excess, mass, ids):
    """excess: (row, query) and mass: (row, query, key) of one role of one head."""
    excess = torch.tensor(excess, dtype=torch.float64)[:, None, :, None]
    mass = torch.tensor(mass, dtype=torch.float64)[:, None]
    ids = torch.tensor(ids)
    return BestQueries.find(excess, lambda row, head, query: mass[row, head, query], 0, ids, ids)


def test_the_highest_of_all_rows_is_found_with_what_stands_around_it():
    none = float("-inf")
    ids = [[10, 11, 12], [20, 21, 22]]
    mass = [[[0.0, 0.0, 0.0]] * 3, [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.3, 0.6, 0.0]]]
    best = find([[0.1, none, 0.2], [none, 0.05, 0.5]], mass, ids)
    assert (best.position.item(), best.excess.item()) == (2, 0.5)
    around = best.around[0, 0]
    assert around[AROUND - 2 : AROUND + 2].tolist() == [20, 21, 22, -1]
    assert (around[: AROUND - 2] == -1).all()
    assert best.keys[0, 0].tolist() == [1, 0, -1], "a key without weight is none"
    assert best.weights[0, 0].tolist() == [0.6, 0.3, 0.0]
    assert best.near[0, 0, 0, NEAR - 2 : NEAR + 3].tolist() == [-1, 20, 21, 22, -1]
    assert (best.near[0, 0, 2] == -1).all()
    assert best.near.shape[-1] == 2 * NEAR + 1


def test_no_query_is_no_example():
    none = float("-inf")
    best = find([[none, none]], [[[0.5, 0.5]] * 2], [[10, 11]])
    for name, tensor in best.state().items():
        empty = 0 if name in ("excess", "weights") else -1
        assert (tensor == empty).all(), name


def test_the_better_of_two_is_kept_and_the_first_of_equals():
    ids = [[10, 11, 12]]
    mass = [[[0.5, 0.5, 0.0]] * 3]
    low, high, also = (find([values], mass, ids) for values in ([0.1, 0.0, 0.0], [0.0, 0.4, 0.0], [0.0, 0.0, 0.4]))
    nothing = BestQueries.none(1, 1)
    assert low.or_better(high).position == high.or_better(low).position == 1
    assert high.or_better(also).position == 1
    assert also.or_better(high).position == 2
    assert nothing.or_better(low).position == low.or_better(nothing).position == 0
    worse = find([[-0.3, -0.2, -0.4]], mass, ids)
    assert nothing.or_better(worse).position == 1, "a query below chance is still better than none"


def test_rows_with_fewer_keys_than_are_kept():
    best = find([[0.1]], [[[1.0]]], [[10]])
    assert best.keys[0, 0].tolist() == [0, -1, -1]
    assert best.weights[0, 0].tolist() == [1.0, 0.0, 0.0]
