"""Savings: the parameters, operations and cached bytes that go with some heads, counted from the anatomy alone."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from headscope.anatomy.uncuttable import uncuttable
from headscope.heads import HeadId
from headscope.sites import Anatomy, Site, Slices

__all__ = ["Savings", "count_savings"]

_Row = tuple[str, bool, int]  # layer, whether a column, index


@dataclass(frozen=True)
class Savings:
    """What attention takes with all heads, and with fewer.

    Attributes:
        parameters, parameters_left: weights that make or read heads; None where a layer does not tell its width.
        flops, flops_left: floating-point operations of attention for one token more, two for each weight and for each
            product of a query with a key, of a weight with a value; None where parameters are.
        kv_bytes, kv_bytes_left: bytes of keys and values of causal attention for each token, as a cache keeps them
            where the model has one; those of cross-attention are not counted.
        length: tokens that a query looks back on, as the operations are counted.
        refused: why heads that were to go cannot be cut, see `headscope.anatomy.uncuttable`; those of layers that
            cannot be cut are counted as they stay.
    """

    parameters: int | None
    parameters_left: int | None
    flops: int | None
    flops_left: int | None
    kv_bytes: int
    kv_bytes_left: int
    length: int
    refused: str = ""


def count_savings(anatomy: Anatomy, removed: Iterable[HeadId], length: int, n_bytes: int) -> Savings:
    """What a cut without repair leaves of attention. A cut itself counts for certain: here sizes are added up.

    Key and value heads go with the last query head that reads them. Layers that share weights are counted once in the
    parameters, and every time that they run in the operations. A query is taken to look at all of `length` keys, also
    where a window lets it see fewer.

    Args:
        anatomy: of the whole model.
        removed: heads that go.
        length: tokens that a query looks back on.
        n_bytes: of one number that is cached.
    """
    heads = list(removed)
    found = {layer: set(positions) for layer, positions in anatomy.find(heads).items()}
    gone = {layer: positions for layer, positions in found.items() if anatomy.site(layer).prunable}
    every = {site.layer: list(range(site.n_heads)) for site in anatomy.sites}
    kept = {layer: [head for head in own if head not in gone.get(layer, ())] for layer, own in every.items()}
    parameters, parameters_left = (_parameters(anatomy, own) for own in (every, kept))
    known = parameters is not None
    flops, flops_left = (sum(_flops(site, own[site.layer], length) for site in anatomy.sites) for own in (every, kept))
    cached, cached_left = (
        n_bytes * sum(_cached(site, own[site.layer]) for site in anatomy.sites) for own in (every, kept)
    )
    return Savings(
        parameters, parameters_left, flops if known else None, flops_left if known else None, cached, cached_left,
        length, uncuttable(anatomy, heads),
    )  # fmt: skip


def _parts(site: Site, heads: list[int]) -> Iterator[tuple[Slices, bool, set[int]]]:
    """Each linear layer of a site, whether its columns are meant, and the heads of it that these query heads need."""
    keys, values = _needed_keys(site, heads), _needed_values(site, heads)
    for parts, own in ((site.query, set(heads)), (site.key, keys), (site.value, values)):
        yield from ((part, False, own) for part in parts)
    if site.output is not None:
        yield site.output, True, set(heads)


def _needed_keys(site: Site, heads: list[int]) -> set[int]:
    return {site.kv_of_query[head] for head in heads}


def _needed_values(site: Site, heads: list[int]) -> set[int]:
    if site.n_value_heads == site.n_kv_heads:
        return _needed_keys(site, heads)
    return set(heads) if site.n_value_heads == site.n_heads else set(range(site.n_value_heads))


def _parameters(anatomy: Anatomy, heads: dict[int, list[int]]) -> int | None:
    rows: dict[_Row, int] = {}
    for site in anatomy.sites:
        for part, column, own in _parts(site, heads[site.layer]):
            if part.name not in site.row_sizes:
                return None
            size = site.row_sizes[part.name]
            rows |= {(part.name, column, index): size for head in own for index in part.heads[head]}
    return sum(rows.values())


def _flops(site: Site, heads: list[int], length: int) -> int:
    rows: dict[_Row, int] = {}
    for part, column, own in _parts(site, heads):
        size = site.row_sizes.get(part.name, 0)
        rows |= {(part.name, column, index): size for head in own for index in part.heads[head]}
    return 2 * (sum(rows.values()) + len(heads) * length * (site.head_dim + site.value_dim))


def _cached(site: Site, heads: list[int]) -> int:
    """Numbers that one token leaves in the cache."""
    if site.kind != "causal":
        return 0
    return len(_needed_keys(site, heads)) * site.head_dim + len(_needed_values(site, heads)) * site.value_dim
