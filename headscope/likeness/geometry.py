"""Geometry: heads as points with a true distance between them, grouped into clusters and laid out in two dimensions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from jaxtyping import Float, Int
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from sklearn.manifold import smacof

from headscope._support.shown import Shown, reasons
from headscope._support.tabular import read_table, write_table
from headscope.errors import InputError
from headscope.heads import HeadId
from headscope.tables import PairTable, block_columns, token_counts

__all__ = ["ANGLE", "METRICS", "Clusters", "HeadMap", "cluster", "map_heads"]

Floats = npt.NDArray[np.float64]

_ROUNDING = 1e-12  # radians: what an arc cosine may miss of an angle that is asked for exactly
METRICS = ("cka_biased", "procrustes")  # measures that are cosines of angles, and so have a metric in their arc cosine
ANGLE = np.pi / 3  # 60 degrees: the similarity at which clusters part is 0.5

_STARTS = 4  # random layouts tried beside the classical one
_STEPS = 1000  # at most, for a layout to settle


@dataclass(frozen=True, eq=False, repr=False)
class Clusters(Shown):
    """Heads grouped by the angles between them.

    Attributes:
        measure: whose arc cosine the angles are.
        heads: those that were grouped, in the order of the table.
        distances: (head, head) angles in radians, in [0, π/2]: 0 = equal up to the measure's invariance.
        linkage: (head - 1, 4) the tree, as `scipy.cluster.hierarchy.linkage` writes it; its third column holds the mean
            angle at which two groups join, in radians.
        order: (head,) the leaves of the tree from left to right, as positions in `heads`.
        labels: (head,) number of each head's cluster, counted from 1 along `order`.
        angle: where the tree was cut, in radians; None where a number of clusters was asked for.
        left_out: heads without an angle to any other: those that are constant.
        facts: of the table.
    """

    measure: str
    heads: tuple[HeadId, ...]
    distances: Floats
    linkage: Floats
    order: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    angle: float | None
    left_out: tuple[HeadId, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_clusters(self) -> int:
        """How many clusters there are."""
        return int(self.labels.max())

    def to_frame(self) -> pd.DataFrame:
        """Columns layer, (block,) head, cluster, place (along the tree, from 0), n_documents, n_tokens.

        A row per head that was grouped.
        """
        return pd.DataFrame(
            {
                "layer": [head.layer for head in self.heads],
                **block_columns(self.facts, block=self.heads),
                "head": [head.head for head in self.heads],
                "cluster": self.labels,
                "place": np.argsort(self.order),
                "n_documents": self.facts.get("documents"),
                "n_tokens": token_counts(self.facts, [head.layer for head in self.heads]),
            }
        )

    def save(self, folder: str | Path) -> None:
        """Write clusters.csv, clusters.parquet (the rows) and clusters.json into an existing folder."""
        about = {
            "measure": self.measure, "angle": self.angle, "linkage": self.linkage.tolist(),
            "distances": squareform(self.distances).tolist(), "left_out": [str(head) for head in self.left_out],
            "facts": dict(self.facts),
        }  # fmt: skip
        write_table(Path(folder), "clusters", self.to_frame(), about)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read back what `save` wrote; floats return bit-equal."""
        frame, about = read_table(Path(folder), "clusters", {"layer", "head", "cluster", "place"}, {"cluster", "place"})
        return cls(
            about["measure"], _heads_of(frame), squareform(about["distances"]), np.array(about["linkage"]),
            np.argsort(frame["place"].to_numpy()), frame["cluster"].to_numpy(), about["angle"],
            tuple(map(HeadId.parse, about["left_out"])), about["facts"],
        )  # fmt: skip

    def _tables(self) -> dict[str, pd.DataFrame]:
        parted = f"cut at {np.degrees(self.angle):.0f}°" if self.angle is not None else "as many as asked for"
        title = f"{self.n_clusters} clusters of {len(self.heads)} heads by {self.measure} ({parted})"
        return {f"{title}{_without(self.left_out)}": self.to_frame()}

    def _missing(self) -> list[str]:
        return reasons(self.facts)


@dataclass(frozen=True, eq=False, repr=False)
class HeadMap(Shown):
    """Heads in the plane, as far apart as their angles allow.

    Attributes:
        measure: whose arc cosine the angles are.
        heads: those that are on the map, in the order of the table.
        points: (head, 2) in radians. The axes are the principal ones; only distances mean anything.
        stress: Kruskal's stress-1, no unit, at least 0: 0 = every distance on the map is the angle; below 0.1 is good,
            above 0.2 neighbours may not be neighbours.
        left_out: heads without an angle to any other: those that are constant.
        facts: of the table, and the seed.
    """

    measure: str
    heads: tuple[HeadId, ...]
    points: Floats
    stress: float
    left_out: tuple[HeadId, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """Columns layer, (block,) head, x, y (radians), n_documents, n_tokens; a row per head on the map."""
        return pd.DataFrame(
            {
                "layer": [head.layer for head in self.heads],
                **block_columns(self.facts, block=self.heads),
                "head": [head.head for head in self.heads],
                "x": self.points[:, 0],
                "y": self.points[:, 1],
                "n_documents": self.facts.get("documents"),
                "n_tokens": token_counts(self.facts, [head.layer for head in self.heads]),
            }
        )

    def save(self, folder: str | Path) -> None:
        """Write map.csv, map.parquet (the rows) and map.json into an existing folder."""
        left_out = [str(head) for head in self.left_out]
        about = {"measure": self.measure, "stress": self.stress, "left_out": left_out, "facts": dict(self.facts)}
        write_table(Path(folder), "map", self.to_frame(), about)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read back what `save` wrote; floats return bit-equal."""
        frame, about = read_table(Path(folder), "map", {"layer", "head", "x", "y"})
        left_out = tuple(map(HeadId.parse, about["left_out"]))
        points = frame[["x", "y"]].to_numpy(np.float64)
        return cls(about["measure"], _heads_of(frame), points, about["stress"], left_out, about["facts"])

    def _tables(self) -> dict[str, pd.DataFrame]:
        title = f"{len(self.heads)} heads by {self.measure}, stress {self.stress:.3f}{_without(self.left_out)}"
        return {title: self.to_frame()}

    def _missing(self) -> list[str]:
        return reasons(self.facts)


def _heads_of(frame: pd.DataFrame) -> tuple[HeadId, ...]:
    return tuple(HeadId(layer, head) for layer, head in frame[["layer", "head"]].itertuples(index=False))


def cluster(pairs: PairTable, *, angle: float | None = None, n_clusters: int | None = None) -> Clusters:
    """Group heads by the angles between them: average linkage, leaves turned so that neighbours are alike.

    1 - similarity is no metric; the arc cosine of biased CKA is one, and that of the Procrustes similarity too.

    Args:
        pairs: of measure "cka_biased" or "procrustes", every head with every other.
        angle: heads are one cluster while their groups join at a mean angle of at most this, in radians; 60° (a
            similarity of 0.5) if nothing is asked for.
        n_clusters: how many clusters, in place of an angle; fewer only where angles are tied.

    Returns:
        Clusters; a constant head has no angle, is left out and named.

    Raises:
        InputError: a measure that is no metric, pairs that were not compared, or fewer than two heads.

    Source: Williams et al. 2021, arXiv:2110.14739, section 2 (both metrics); Bar-Joseph et al. 2001, Bioinformatics 17
        (the order of leaves).
    """
    heads, distances, left_out = _angles(pairs)
    if angle is not None and n_clusters is not None:
        raise InputError("clusters are parted by an angle or by their number: give angle or n_clusters, not both")
    if n_clusters is not None and not (isinstance(n_clusters, int) and 1 <= n_clusters <= len(heads)):
        raise InputError(f"{len(heads)} heads make 1 to {len(heads)} clusters; n_clusters was {n_clusters!r}")
    if angle is not None and not 0 <= angle <= np.pi / 2 + _ROUNDING:
        raise InputError(f"angle is in radians, from 0 to π/2 = {np.pi / 2:.4f}; it was {angle}")
    angle = ANGLE if angle is None and n_clusters is None else angle
    tree = _turn(hierarchy.linkage(squareform(distances), method="average"), distances)
    order = hierarchy.leaves_list(tree).astype(np.int64)
    if angle is not None:
        found = hierarchy.fcluster(tree, angle + _ROUNDING, criterion="distance")
    else:
        found = hierarchy.fcluster(tree, n_clusters, criterion="maxclust")
    in_order = list(dict.fromkeys(found[order].tolist()))
    labels = np.array([1 + in_order.index(label) for label in found], np.int64)
    return Clusters(pairs.name, heads, distances, tree, order, labels, angle, left_out, pairs.facts)


def map_heads(pairs: PairTable, seed: int = 0) -> HeadMap:
    """Lay heads out in the plane so that distances come close to angles: metric multidimensional scaling.

    The best of several starts is kept: the classical solution and random ones. Centre, rotation and reflection, which
    distances leave open, are fixed: principal axes, and the farther end of each on the positive side.

    Args:
        pairs: of measure "cka_biased" or "procrustes", every head with every other.
        seed: of the random starts; the same seed gives the same map.

    Returns:
        A HeadMap with its stress; a constant head has no angle, is left out and named.

    Raises:
        InputError: a measure that is no metric, pairs that were not compared, or fewer than two heads.

    Source: Kruskal 1964, Psychometrika 29, pp. 1-27 (stress); de Leeuw 1977 (SMACOF); both metrics: Williams et al.
        2021, arXiv:2110.14739, section 2.
    """
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed is a whole number from 0; it was {seed!r}")
    heads, distances, left_out = _angles(pairs)
    rng = np.random.default_rng(seed)
    starts = [_classical(distances), *rng.uniform(-1, 1, (_STARTS, len(heads), 2))]
    layouts = [_turned(_settled(distances, start)) for start in starts]
    stresses = [stress_1(distances, layout) for layout in layouts]
    best = int(np.argmin(stresses))
    return HeadMap(pairs.name, heads, layouts[best], stresses[best], left_out, {**pairs.facts, "seed": seed})


def stress_1(distances: Float[np.ndarray, "head head"], points: Float[np.ndarray, "head 2"]) -> float:
    """Kruskal's stress-1: sqrt(Σ (d - δ)² / Σ d²) over pairs, δ the distances wanted and d those on the map.

    Args:
        distances: wanted.
        points: the map.

    Returns:
        No unit, at least 0; 0 where all points fall together and are meant to.

    Source: Kruskal 1964, Psychometrika 29, p. 8.

    >>> line = np.abs(np.subtract.outer([0.0, 1.0, 3.0], [0.0, 1.0, 3.0]))
    >>> stress_1(line, np.array([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]]))
    0.0
    >>> round(stress_1(line, np.array([[0.0, 0.0], [2.0, 0.0], [3.0, 0.0]])), 4)   # sqrt((1 + 1) / (4 + 1 + 9))
    0.378
    """
    upper = np.triu_indices(len(points), 1)
    mapped = np.linalg.norm(points[:, None] - points, axis=-1)[upper]
    gap = float(((mapped - distances[upper]) ** 2).sum())
    return float(np.sqrt(gap / (mapped**2).sum())) if gap else 0.0


def _angles(pairs: PairTable) -> tuple[tuple[HeadId, ...], Float[np.ndarray, "head head"], tuple[HeadId, ...]]:
    """Heads that have angles, the angles, and the heads that have none."""
    if pairs.name not in METRICS:
        raise InputError(
            f"{pairs.name!r} is not a cosine of angles, so that no distance follows from it (1 - similarity is no "
            f"metric); compare heads with measure={METRICS[0]!r} or {METRICS[1]!r}"
        )
    if pairs.other is not None:
        raise InputError("this table compares two models; clusters and maps take the heads of one model")
    has_own = ~np.isnan(pairs.matrix.diagonal())
    kept, gone = np.flatnonzero(has_own), np.flatnonzero(~has_own)
    left_out = tuple(pairs.heads[i] for i in gone)
    if len(kept) < 2:
        raise InputError(f"{len(kept)} of {len(pairs.heads)} heads vary; clusters and maps need at least two heads")
    cosines = pairs.matrix[np.ix_(kept, kept)]
    missing = np.argwhere(np.isnan(cosines))
    if len(missing):
        a, b = (pairs.heads[kept[i]] for i in missing[0])
        raise InputError(
            f"{a} and {b} were not compared (or see different positions); clusters and maps need every pair: "
            'scope="model" compares every head with every other'
        )
    angles = np.arccos(np.clip((cosines + cosines.T) / 2, 0.0, 1.0))
    np.fill_diagonal(angles, 0.0)
    return tuple(pairs.heads[i] for i in kept), angles, left_out


def _turn(tree: Floats, distances: Float[np.ndarray, "head head"]) -> Floats:
    """The same tree, its branches turned so that leaves side by side are as near to each other, in sum, as they can be.

    By dynamic programming over the tree, N³: for each branch, the shortest way through its leaves from each to each.
    SciPy's optimal_leaf_ordering misses the shortest way now and then, with four leaves already.
    """
    size = len(distances)
    leaves: dict[int, list[int]] = {leaf: [leaf] for leaf in range(size)}
    ways: dict[int, Floats] = {leaf: np.zeros((1, 1)) for leaf in range(size)}
    for node, (a, b) in enumerate(tree[:, :2].astype(int).tolist(), size):
        between = distances[np.ix_(leaves[a], leaves[b])]
        over = np.stack([(way[:, None] + between).min(0) for way in ways[a]])
        across = np.stack([(way[:, None] + ways[b]).min(0) for way in over])
        leaves[node] = leaves[a] + leaves[b]
        ways[node] = np.full((len(leaves[node]), len(leaves[node])), np.inf)
        ways[node][: len(leaves[a]), len(leaves[a]) :] = across
        ways[node][len(leaves[a]) :, : len(leaves[a])] = across.T
    place = np.argsort(_walk(tree, distances, leaves, ways))
    turned = tree.copy()
    for row in turned:
        a, b = int(row[0]), int(row[1])
        if place[leaves[a]].min() > place[leaves[b]].min():
            row[:2] = b, a
    return turned


def _walk(
    tree: Floats, distances: Float[np.ndarray, "head head"], leaves: dict[int, list[int]], ways: dict[int, Floats]
) -> list[int]:
    """The leaves along the shortest way through the whole tree."""
    size, root = len(distances), 2 * len(distances) - 2
    ends = np.unravel_index(int(ways[root].argmin()), ways[root].shape)
    waiting, order = [(root, leaves[root][ends[0]], leaves[root][ends[1]])], []
    while waiting:
        node, first, last = waiting.pop()
        if node < size:
            order.append(node)
            continue
        a, b = (int(child) for child in tree[node - size, :2])
        if first in leaves[b]:
            a, b = b, a
        before, after = ways[a][leaves[a].index(first)], ways[b][:, leaves[b].index(last)]
        length = before[:, None] + distances[np.ix_(leaves[a], leaves[b])] + after
        m, k = np.unravel_index(int(length.argmin()), length.shape)
        waiting += [(b, leaves[b][k], last), (a, first, leaves[a][m])]
    return order


def _settled(distances: Float[np.ndarray, "head head"], start: Float[np.ndarray, "head 2"]) -> Floats:
    """Where a start comes to rest as its stress falls."""
    if not distances.any():
        return np.zeros_like(start)  # all in one place; scikit-learn would divide by the sum of their distances
    return np.asarray(smacof(distances, init=start, n_init=1, max_iter=_STEPS, eps=1e-9, normalized_stress=False)[0])


def _classical(distances: Float[np.ndarray, "head head"]) -> Float[np.ndarray, "head 2"]:
    """Classical scaling: the two leading principal coordinates."""
    squares = distances**2
    inner = -0.5 * (squares - squares.mean(0) - squares.mean(1)[:, None] + squares.mean())
    values, vectors = np.linalg.eigh(inner)
    return np.asarray(vectors[:, :-3:-1] * np.sqrt(np.maximum(values[:-3:-1], 0)))


def _turned(points: Float[np.ndarray, "head 2"]) -> Float[np.ndarray, "head 2"]:
    """The same map, centred, on its principal axes, the farther end of each positive."""
    centred = points - points.mean(0)
    turned = centred @ np.linalg.svd(centred)[2].T
    farthest: Int[np.ndarray, " axis"] = np.abs(turned).argmax(0)
    return np.asarray(turned * np.where(turned[farthest, [0, 1]] < 0, -1, 1))


def _without(left_out: tuple[HeadId, ...]) -> str:
    return f"; constant, and left out: {', '.join(map(str, left_out))}" if left_out else ""
