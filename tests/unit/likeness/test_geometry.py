"""Clusters and maps of heads: on a true metric only, planted groups found, the plane drawn as it is."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster import hierarchy

import headscope as hs
from headscope.errors import InputError
from headscope.heads import HeadId
from headscope.likeness.geometry import cluster, map_heads, stress_1
from headscope.likeness.measures import MEASURES
from headscope.tables import PairTable
from tests.models import build, make_batches
from tests.reference import geometry as reference


def table(matrix, name="cka_biased", n_layers=1, **changes):
    matrix = np.asarray(matrix, np.float64)
    per_layer = len(matrix) // n_layers
    heads = tuple(HeadId(i // per_layer, i % per_layer) for i in range(len(matrix)))
    none = np.full_like(matrix, np.nan)
    return PairTable(name, "z", heads, matrix, none, none, {"documents": 3}, **changes)


def cosines(seed, size, dim=6):
    """Cosines between random directions that all lie in one orthant."""
    rows = np.abs(np.random.default_rng(seed).standard_normal((size, dim)))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def groups_of(size, *members, within=0.9, between=0.1):
    matrix = np.full((size, size), between)
    for group in members:
        matrix[np.ix_(group, group)] = within
    np.fill_diagonal(matrix, 1.0)
    return matrix


def flat(seed, size):
    """Points in the plane no farther apart than a right angle, and the table whose angles are their distances."""
    points = np.random.default_rng(seed).uniform(0, 1, (size, 2)) * [1.2, 0.7]
    apart = np.linalg.norm(points[:, None] - points, axis=-1)
    return points, apart, table(np.cos(apart))


def test_planted_groups_are_found_and_stand_together():
    found = cluster(table(groups_of(7, [0, 3, 5], [1, 2, 6])))
    assert found.n_clusters == 3
    partition = {frozenset(np.flatnonzero(found.labels == label).tolist()) for label in (1, 2, 3)}
    assert partition == {frozenset({0, 3, 5}), frozenset({1, 2, 6}), frozenset({4})}
    in_order = found.labels[found.order]
    assert in_order.tolist() == sorted(in_order.tolist()), "clusters are numbered along the tree"
    assert found.angle == pytest.approx(np.pi / 3)
    np.testing.assert_allclose(found.distances[0, 3], np.arccos(0.9), rtol=1e-12)
    assert (found.distances.diagonal() == 0).all()


@given(st.integers(0, 10_000), st.integers(2, 9))
@settings(deadline=None, max_examples=25)
def test_the_tree_is_average_linkage_on_angles(seed, size):
    matrix = cosines(seed, size)
    found = cluster(table(matrix))
    angles = np.arccos(np.clip(matrix, 0, 1))
    np.fill_diagonal(angles, 0)
    want = reference.average_linkage(angles)
    np.testing.assert_allclose(found.linkage[:, 2], [mean for mean, _ in want], rtol=1e-9)
    members = {i: {i} for i in range(size)}
    for number, (a, b, *_) in enumerate(found.linkage):
        members[size + number] = members[int(a)] | members[int(b)]
        assert members[size + number] == want[number][1]


@given(st.integers(0, 10_000), st.integers(2, 8))
@settings(deadline=None, max_examples=25)
def test_the_order_of_leaves_is_the_shortest_that_the_tree_allows(seed, size):
    found = cluster(table(cosines(seed, size)))
    assert sorted(found.order.tolist()) == [*range(size)]
    place = np.argsort(found.order)
    members = {i: {i} for i in range(size)}
    for number, (a, b, *_) in enumerate(found.linkage):
        group = members[size + number] = members[int(a)] | members[int(b)]
        assert np.ptp([place[head] for head in group]) == len(group) - 1, "a group of the tree stands together"

    def orders(node):
        if node < size:
            return [[node]]
        a, b = (orders(int(child)) for child in found.linkage[node - size, :2])
        return [x + y for x in a for y in b] + [y + x for x in a for y in b]

    lengths = [found.distances[order[:-1], order[1:]].sum() for order in orders(2 * size - 2)]
    assert found.distances[found.order[:-1], found.order[1:]].sum() == pytest.approx(min(lengths), rel=1e-12)


def test_leaves_are_turned_round():
    """The end of one group that is like the start of the next stands beside it."""
    line = np.abs(np.subtract.outer([0.0, 0.5, 0.1, 0.6, 0.9], [0.0, 0.5, 0.1, 0.6, 0.9]))
    order = cluster(table(np.cos(line))).order.tolist()
    assert order in ([0, 2, 1, 3, 4], [4, 3, 1, 2, 0])


def test_where_the_tree_is_cut_is_the_callers_choice():
    pairs = table(groups_of(6, [0, 1], [2, 3, 4], within=0.5))
    assert cluster(pairs, angle=np.arccos(0.5) - 1e-6).n_clusters == 6
    assert cluster(pairs, angle=np.arccos(0.5) + 1e-6).n_clusters == 3
    assert cluster(pairs, angle=0.0).n_clusters == 6
    two = cluster(table(cosines(1, 6)), n_clusters=2)
    assert two.n_clusters == 2
    assert two.angle is None
    cut = np.sort(two.linkage[:, 2])[-1] - 1e-9
    np.testing.assert_array_equal(two.labels, cluster(table(cosines(1, 6)), angle=cut).labels)
    for settings_, words in [({"angle": 1.0, "n_clusters": 2}, "not both"), ({"n_clusters": 7}, "1 to 6"),
                             ({"n_clusters": 0}, "1 to 6"), ({"angle": -0.1}, "radians"),
                             ({"n_clusters": 2.5}, "1 to 6"), ({"angle": 60}, "radians"),
                             ({"angle": float("nan")}, "radians")]:  # fmt: skip
        with pytest.raises(InputError, match=words):
            cluster(pairs, **settings_)


@pytest.mark.parametrize("make", [cluster, map_heads])
def test_only_cosines_of_angles_make_a_metric(make):
    for name in set(MEASURES) - {"cka_biased", "procrustes"}:
        with pytest.raises(InputError, match=r"cka_biased.*procrustes"):
            make(table(cosines(0, 4), name))
    make(table(cosines(0, 4), "procrustes"))


@pytest.mark.parametrize("make", [cluster, map_heads])
def test_tables_without_every_pair_are_refused(make):
    matrix = cosines(0, 4)
    matrix[:2, 2:] = matrix[2:, :2] = np.nan
    with pytest.raises(InputError, match=r'L0H0 and L1H0 .*scope="model"'):
        make(table(matrix, n_layers=2))
    with pytest.raises(InputError, match="two models"):
        make(table(cosines(0, 4), other=tuple(HeadId(0, i) for i in range(4))))
    lonely = np.full((3, 3), np.nan)
    lonely[1, 1] = 1
    with pytest.raises(InputError, match="1 of 3 heads vary"):
        make(table(lonely))


@pytest.mark.parametrize("make", [cluster, map_heads])
def test_constant_heads_are_left_out_and_named(make):
    matrix = np.full((5, 5), np.nan)
    kept = [0, 1, 3, 4]
    matrix[np.ix_(kept, kept)] = cosines(3, 4)
    found = make(table(matrix))
    assert [str(head) for head in found.heads] == ["L0H0", "L0H1", "L0H3", "L0H4"]
    assert found.left_out == (HeadId(0, 2),)
    assert len(found.to_frame()) == 4
    assert "L0H2" in found._repr_html_()
    assert "left out" not in make(table(cosines(3, 4)))._repr_html_()


def test_frames_say_where_each_head_is():
    found = cluster(table(groups_of(4, [0, 2], [1, 3]), n_layers=2))
    frame = found.to_frame()
    assert frame.columns.tolist() == ["layer", "head", "cluster", "place", "n_documents", "n_tokens"]
    assert frame["layer"].tolist() == [0, 0, 1, 1]
    assert frame["cluster"][0] == frame["cluster"][2] != frame["cluster"][1]
    for place, head in enumerate(found.order):
        assert frame["place"][head] == place
    assert set(frame["n_documents"]) == {3}
    laid = map_heads(table(cosines(0, 4)))
    np.testing.assert_array_equal(laid.to_frame()[["x", "y"]], laid.points)
    assert laid.facts == {"documents": 3, "seed": 0}
    assert "stress" in laid._repr_html_()


@given(st.integers(0, 10_000), st.integers(3, 12))
@settings(deadline=None, max_examples=15)
def test_a_plane_is_drawn_as_it_is(seed, size):
    _, apart, pairs = flat(seed, size)
    found = map_heads(pairs)
    assert found.stress < 1e-6
    mapped = np.linalg.norm(found.points[:, None] - found.points, axis=-1)
    np.testing.assert_allclose(mapped, apart, atol=1e-5)


def test_more_than_a_plane_has_stress_and_the_best_start_is_kept():
    pairs = table(cosines(2, 15))
    found = map_heads(pairs)
    angles = np.arccos(np.clip(pairs.matrix, 0, 1))
    assert found.stress == pytest.approx(reference.stress_1(angles, found.points), rel=1e-6)
    assert 0.01 < found.stress < 0.4
    # no small move makes it better: it is a minimum of Σ (d - δ)²
    rng = np.random.default_rng(0)

    def loss(points):
        mapped = np.linalg.norm(points[:, None] - points, axis=-1)
        return ((mapped - cluster(pairs).distances) ** 2).sum()

    least = loss(found.points)
    assert all(loss(found.points + 1e-2 * rng.standard_normal(found.points.shape)) > least for _ in range(20))


def test_the_same_seed_gives_the_same_map_turned_the_same_way():
    pairs = table(cosines(4, 10))
    one, two = map_heads(pairs, seed=3), map_heads(pairs, seed=3)
    np.testing.assert_array_equal(one.points, two.points)
    _, _, pairs = flat(5, 9)
    found = map_heads(pairs).points
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-12)
    spread = found.T @ found
    assert abs(spread[0, 1]) < 1e-6 * spread[0, 0]
    assert spread[0, 0] > spread[1, 1]
    assert (found[np.abs(found).argmax(0), [0, 1]] > 0).all()
    again = map_heads(pairs, seed=8).points
    np.testing.assert_allclose(again, found, atol=1e-4)


def test_twins_fall_together_and_two_heads_are_enough():
    found = map_heads(table(np.ones((3, 3))))
    assert found.stress == 0
    np.testing.assert_allclose(found.points, 0, atol=1e-6)
    pair = table([[1, 0.5], [0.5, 1 + 1e-15]])
    points = map_heads(pair).points
    assert np.linalg.norm(points[0] - points[1]) == pytest.approx(np.pi / 3, rel=1e-6)
    assert cluster(pair).n_clusters == 1
    assert cluster(replace(pair, matrix=np.array([[1, 0.2], [0.2, 1]]))).n_clusters == 2


def test_stress_by_the_definition():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((6, 2))
    wanted = cluster(table(cosines(0, 6))).distances
    assert stress_1(wanted, points) == pytest.approx(reference.stress_1(wanted, points), rel=1e-12)


@pytest.mark.parametrize("measure", ["cka_biased", "procrustes"])
def test_on_the_heads_of_a_model(measure):
    model, batches = build("gpt2"), make_batches("gpt2")
    pairs = hs.similarity(model, batches, measure=measure, scope="model")
    found = hs.cluster(pairs, n_clusters=3)
    assert len(found.heads) == 8
    assert found.facts["documents"] == 6
    # angles keep the triangle inequality, which 1 - similarity need not
    d = found.distances
    assert (d[:, :, None] <= d[:, None, :] + d[None].transpose(0, 2, 1) + 1e-9).all()
    assert hierarchy.is_valid_linkage(found.linkage)
    assert hs.map_heads(pairs).points.shape == (8, 2)


def test_what_is_saved_is_read_back(tmp_path):
    pairs = table(cosines(0, 9), n_layers=3)
    pairs.matrix[4], pairs.matrix[:, 4] = np.nan, np.nan
    for made in (cluster(pairs), cluster(pairs, n_clusters=2), map_heads(pairs)):
        made.save(tmp_path)
        read = type(made).load(tmp_path)
        for field in fields(made):
            mine, theirs = getattr(made, field.name), getattr(read, field.name)
            (np.testing.assert_array_equal if isinstance(mine, np.ndarray) else _equal)(theirs, mine)
        assert read._repr_html_() == made._repr_html_()


def _equal(one, other):
    assert one == other
