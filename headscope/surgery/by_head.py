"""What stands in the way of a cut: tables, gates and numbers by head beside q, k, v and o, named for the message."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from headscope.sites import Site
from headscope.surgery.verification import Seen

__all__ = ["BESIDE", "beside_projections"]

BESIDE = "There is more for each head than its rows of q, k, v and its columns of o"
"""What is said before it."""

_MOST = 3


def beside_projections(unit: nn.Module, name: str, sites: Sequence[Site], call: Seen) -> str:
    """What a unit holds, or is given, for each head, in words; "" where nothing is seen.

    Args:
        unit: the smallest module around the attention and its layers.
        name: its dotted name.
        sites: of the attention in it.
        call: what it was given.
    """
    counts = {count for site in sites for count in (site.n_heads, site.n_kv_heads) if count > 1}
    own = {part.module for site in sites for part in _parts(site)}
    found = [
        *_gates(unit, name, sites),
        *_tables(unit, name, counts, own),
        *_given({site.n_heads for site in sites}, call),
    ]
    if not found:
        found = list(_configured(unit, counts))
    more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return ", ".join(found[:_MOST]) + more


def _parts(site: Site) -> Iterator[Any]:
    yield from (*site.query, *site.key, *site.value)
    if site.output is not None:
        yield site.output


def _tables(unit: nn.Module, name: str, counts: set[int], own: set[str]) -> Iterator[str]:
    for path, tensor in (*unit.named_parameters(), *unit.named_buffers()):
        whole = f"{name}.{path}" if name else path
        if counts & set(tensor.shape) and whole.rpartition(".")[0] not in own:
            yield f"{whole} {tuple(tensor.shape)}"


def _given(heads: set[int], call: Seen) -> Iterator[str]:
    """Arguments with an axis of heads, by itself or merged with that of rows; not the hidden states, with none."""
    values = {f"argument {place}": value for place, value in enumerate(call.args)} | call.kwargs
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor) and value.ndim > 2}
    if not tensors:
        return
    hidden = next(iter(tensors.values()))
    merged = {hidden.shape[0] * count for count in heads}
    for name, value in tensors.items():
        if value.shape != hidden.shape and ((heads - {1}) & set(value.shape[:-2]) or value.shape[0] in merged):
            yield f"{name} {tuple(value.shape)}, which it is given"


def _gates(unit: nn.Module, name: str, sites: Sequence[Site]) -> Iterator[str]:
    """Rows of the projections that make no head's q, k or v: those of a gate, say."""
    used: dict[str, set[int]] = {}
    for site in sites:
        for part in (*site.query, *site.key, *site.value):
            used.setdefault(part.module, set()).update(row for rows in part.heads for row in rows)
    for module, rows in used.items():
        inside = module[len(name) + 1 :] if name else module
        layer = dict(unit.named_modules()).get(inside)
        width = getattr(layer, "out_features", None)
        if isinstance(width, int) and width > len(rows):
            yield f"{width - len(rows)} rows of {module} that make no q, k or v (a gate?)"


def _configured(unit: nn.Module, counts: set[int]) -> Iterator[str]:
    for path, module in unit.named_modules():
        known = getattr(getattr(module, "config", None), "__dict__", {})
        names = [name for name, value in known.items() if type(value) is int and value in counts and "head" in name]
        if names:
            yield f"{names[0]} of the config, which {path or type(unit).__name__} may read as it runs"
