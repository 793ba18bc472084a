"""Passes: which layers are summed together in which pass over the text, so that the sums fit into memory."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from headscope.errors import InputError
from headscope.heads import Anatomy
from headscope.statistics import N_BLOCKS
from headscope.statistics.moments import PANEL

__all__ = ["parse_memory", "plan_passes"]

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


def plan_passes(
    anatomies: Anatomies, scope: str, room: float, *, least: int = 1, intervals: bool = False
) -> tuple[int, list[list[int]]]:
    """How many blocks of documents are told apart, and the layers of each pass.

    Within layers, layers come one after another and all blocks are told apart. Across the model, every two layers meet
    in some pass: in one pass with all blocks, else with `least` of them, else in passes over pairs of groups of layers.

    Args:
        anatomies: of the model, and of another one that it is compared with.
        scope: "layer" or "model".
        room: bytes that moments may take.
        least: blocks that a measure cannot do without.
        intervals: across the model, tell all blocks apart in as many passes as that takes.

    Raises:
        InputError: not even the smallest pass fits.
    """
    layers = [site.layer for site in anatomies[0].sites]
    if scope == "layer":
        return N_BLOCKS, _one_after_another(anatomies, layers, room)
    if _bytes(anatomies, layers, scope, N_BLOCKS) <= room:
        return N_BLOCKS, [layers]
    blocks = N_BLOCKS if intervals else least
    if _bytes(anatomies, layers, scope, blocks) <= room:
        return blocks, [layers]
    for n_groups in range(3, len(layers) + 1) if anatomies[1] is None else ():
        groups = [list(part) for part in np.array_split(layers, n_groups)]
        parts = [[*map(int, a), *map(int, b)] for a, b in combinations(groups, 2)]
        if all(_bytes(anatomies, part, scope, blocks) <= room for part in parts):
            return blocks, parts
    smallest, what = (layers[:2], "two layers alone take") if anatomies[1] is None else (layers, "two models take")
    raise InputError(
        f"{what} {_size(_bytes(anatomies, smallest, scope, blocks))}, more than the {_size(room)} that "
        'memory leaves to each sum; allow more, or compare within layers (scope="layer")'
    )


def _one_after_another(anatomies: Anatomies, layers: Sequence[int], room: float) -> list[list[int]]:
    """As many layers in each pass as fit."""
    parts: list[list[int]] = []
    taken = 0.0
    for layer in layers:
        own = _bytes(anatomies, [layer], "layer", N_BLOCKS)
        if own > room:
            raise InputError(
                f"layer {layer} alone takes {_size(own)}, more than the {_size(room)} that memory leaves "
                "to each sum; allow more"
            )
        if not parts or taken + own > room:
            parts.append([])
            taken = 0.0
        parts[-1].append(layer)
        taken += own
    return parts


def _size(n_bytes: float) -> str:
    unit = next((unit for unit in ("gb", "mb") if n_bytes >= _UNITS[unit]), "kb")
    return f"{n_bytes / _UNITS[unit]:.2g} {unit.upper()}"


def _bytes(anatomies: Anatomies, layers: Sequence[int], scope: str, blocks: int) -> float:
    """Of the upper triangle over all dimensions in panels, for each block of documents and three sums on the way."""
    first, second = anatomies
    sites = [site for site in first.sites if site.layer in layers]
    if second is not None:
        sites += [site for site in second.sites if scope == "model" or site.layer in layers]
    rows = sum(site.n_heads * (max(site.head_dim, site.value_dim) + 1) for site in sites)
    return (blocks + (3 if blocks > 1 else 1)) * 4.0 * rows * (rows + min(rows, PANEL))
