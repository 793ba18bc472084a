"""Passes: which layers are summed together in which pass over the text, so that the sums fit into memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, product

import numpy as np

from headscope.errors import InputError
from headscope.sites import Anatomy
from headscope.statistics.arrivals import OTHER
from headscope.statistics.moments import PANEL
from headscope.uncertainty.blocks import N_BLOCKS

__all__ = ["MOST_DIMENSIONS", "looks_across", "parse_memory", "plan_passes"]

MOST_DIMENSIONS = 4096  # of all heads together: up to here every head is compared with every other unasked

_UNITS = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "b": 1.0}

Anatomies = tuple[Anatomy, Anatomy | None]


def parse_memory(memory: float | str) -> float:
    """Bytes, from a number or from text such as "2GB" or "500 MB".

    Raises:
        InputError: it is neither, or not above zero.

    >>> parse_memory("1.5GB"), parse_memory(1000)
    (1500000000.0, 1000.0)
    """
    text = str(memory).strip().lower()
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    try:
        size = float(text.removesuffix(unit)) * _UNITS.get(unit, 1.0)
    except ValueError:
        size = 0.0
    if not 0 < size < float("inf"):
        raise InputError(f"memory is a number of bytes, or text such as '2GB'; got {memory!r}")
    return size


def looks_across(anatomy: Anatomy) -> bool:
    """Whether heads are compared across layers where nobody said so: with few enough dimensions in all.

    Args:
        anatomy: the heads that would be compared.
    """
    return sum(site.n_heads * site.value_dim for site in anatomy.sites) <= MOST_DIMENSIONS


def plan_passes(
    anatomies: Anatomies, scope: str, room: float, *, least: int = 1, intervals: bool = False
) -> tuple[int, list[list[int]]]:
    """How many blocks of documents are told apart, and the layers of each pass; another model's count from OTHER on.

    Within layers, layers come one after another and all blocks are told apart. Across the model, every two layers (of
    two models: every layer with every one of the other's) meet in some pass: in one pass with all blocks, else with
    `least` of them, else in passes over pairs of groups of layers.

    Args:
        anatomies: of the model, and of another one that it is compared with.
        scope: "layer" or "model".
        room: bytes that moments may take.
        least: blocks that a measure cannot do without.
        intervals: across the model, tell all blocks apart in as many passes as that takes.

    Raises:
        InputError: not even the smallest pass fits.
    """
    rows = _rows(anatomies)
    ours, theirs = ([layer for layer in rows if (layer < OTHER) == first] for first in (True, False))
    if scope == "layer":
        return N_BLOCKS, _one_after_another(rows, ours, room)
    if _bytes(rows, list(rows), N_BLOCKS) <= room:
        return N_BLOCKS, [list(rows)]
    blocks = N_BLOCKS if intervals else least
    for parts in _partitions(ours, theirs):
        if all(_bytes(rows, part, blocks) <= room for part in parts):
            return blocks, parts
    pairs: Iterable[Sequence[int]] = product(ours, theirs) if theirs else combinations(ours, 2)
    largest = max((_bytes(rows, pair, blocks) for pair in pairs), default=_bytes(rows, ours, blocks))
    what = "two layers alone take" if len(rows) > 1 else "one layer takes"
    raise InputError(
        f"{what} {_size(largest)}, more than the {_size(room)} that memory leaves to each sum",
        python='allow more, or compare within layers (scope="layer")',
        shell="allow more with --memory, or compare within layers, with --scope layer",
    )


def _partitions(ours: Sequence[int], theirs: Sequence[int]) -> Iterator[list[list[int]]]:
    """All layers in one pass; then in ever more passes over groups of layers, every two of which meet."""
    yield [[*ours, *theirs]]
    for n_groups in range(2 if theirs else 3, max(len(ours), len(theirs)) + 1):
        groups, others = (
            [list(map(int, part)) for part in np.array_split(layers, min(n_groups, len(layers)))]
            for layers in (ours, theirs or ours)
        )
        pairs = product(groups, others) if theirs else combinations(groups, 2)
        yield [[*one, *other] for one, other in pairs]


def _one_after_another(rows: Mapping[int, int], layers: Sequence[int], room: float) -> list[list[int]]:
    """As many layers in each pass as fit, each with the other model's own."""
    parts: list[list[int]] = []
    taken = 0.0
    for layer in layers:
        own = [number for number in (layer, OTHER + layer) if number in rows]
        size = _bytes(rows, own, N_BLOCKS)
        if size > room:
            raise InputError(
                f"layer {layer} alone takes {_size(size)}, more than the {_size(room)} that memory leaves "
                "to each sum; allow more"
            )
        if not parts or taken + size > room:
            parts.append([])
            taken = 0.0
        parts[-1] += own
        taken += size
    return parts


def _size(n_bytes: float) -> str:
    unit = next((unit for unit in ("gb", "mb") if n_bytes >= _UNITS[unit]), "kb")
    return f"{n_bytes / _UNITS[unit]:.2g} {unit.upper()}"


def _rows(anatomies: Anatomies) -> dict[int, int]:
    """How many rows the sums of each layer have; another model's layers from OTHER on."""
    return {
        start + site.layer: site.n_heads * (max(site.head_dim, site.value_dim) + 1)
        for start, anatomy in zip((0, OTHER), anatomies, strict=True) if anatomy is not None
        for site in anatomy.sites
    }  # fmt: skip


def _bytes(rows: Mapping[int, int], layers: Iterable[int], blocks: int) -> float:
    """Of the upper triangle over all dimensions in panels, for each block of documents and three sums on the way."""
    n_rows = sum(rows[layer] for layer in layers)
    return (blocks + (3 if blocks > 1 else 1)) * 4.0 * n_rows * (n_rows + min(n_rows, PANEL))
