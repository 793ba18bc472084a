"""Is what headscope captures what the model computed? Held against plain hooks, without headscope's own proofs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from headscope.errors import HeadscopeError
from headscope.sites import Anatomy, Site
from headscope.studies.families.outputs import features_last, outputs_of, same
from headscope.studies.families.telling import first_sentence
from headscope.watching.observation import Captured, capture

__all__ = ["Capturing", "check_captured", "nearest_rows"]

_TOLERANCE = 1e-5  # of max(1, size)
_Heard = tuple[Tensor, Tensor]  # what a projection was given, and gave
_NAMES = ("q", "k", "v", "pattern", "z", "contribution")


@dataclass(frozen=True)
class Capturing:
    """Whether captures are exact: "exact", "in part" (some tensors are refused), "refused" (all are), "wrong"."""

    status: str
    why: str = ""


def check_captured(model: nn.Module, anatomy: Anatomy, inputs: Mapping[str, Any]) -> Capturing:
    """Capture all that is not refused of every site, and hold it against the model.

    Args:
        model: the model.
        anatomy: its sites.
        inputs: arguments of its forward.

    Returns:
        What came of it, the worst of all sites.
    """
    plain, wrong, refused, read = outputs_of(model, inputs), [], [], 0
    by_names: dict[tuple[str, ...], list[Site]] = {}
    for site in anatomy.sites:
        names = tuple(name for name in _NAMES if name not in site.refused and (name != "contribution" or site.apart))
        by_names.setdefault(names, []).append(site)
        missing = [name for name in _NAMES if name not in names]
        if missing:
            why = next((site.refused[name] for name in missing if name in site.refused), site.uncuttable)
            refused.append(f"no {', '.join(missing)}: {why}")
        read += len(names)
    for names, sites in by_names.items():
        try:
            wrong += _wrong_of(model, replace(anatomy, sites=tuple(sites)), inputs, names, plain) if names else []
        except HeadscopeError as error:
            refused.append(first_sentence(str(error)))
        except Exception as error:
            wrong.append(f"capturing failed with {type(error).__name__}: {first_sentence(str(error))}")
    if wrong:
        return Capturing("wrong", "; ".join(dict.fromkeys(wrong)))
    if refused:
        return Capturing("in part" if read else "refused", "; ".join(dict.fromkeys(refused)))
    return Capturing("exact")


def _wrong_of(
    model: nn.Module, anatomy: Anatomy, inputs: Mapping[str, Any], names: tuple[str, ...], plain: Sequence[Tensor]
) -> list[str]:
    """What of some sites' captures is not what the model computed, in words."""
    # apart from each other: capture runs a projection of a class of its own, to know its weights
    with _outputs_heard(model, anatomy) as heard:
        outputs_of(model, inputs)
    with capture(model, names, anatomy=anatomy) as seen:
        watched = outputs_of(model, inputs)
    told = [] if same(plain, watched) else ["outputs are others while it is watched"]
    for site in anatomy.sites:
        if site.layer not in seen:
            told.append(f"{site.module_name} was not heard")
            continue
        if {"v", "pattern", "z"} <= {*names}:
            told += _unlike("z", "pattern·v", seen[site.layer].z, _mixed(site, seen[site.layer]))
        if "contribution" in names:
            told += _unlike_output(model, site, seen[site.layer].contribution, heard)
    return told


def _mixed(site: Site, seen: Captured) -> Tensor:
    """pattern·v, values repeated for the queries that share them."""
    many = seen.v.shape[1]
    shared = many == site.n_kv_heads != site.n_heads
    v = seen.v[:, list(site.kv_of_query) if shared else [head * many // site.n_heads for head in range(site.n_heads)]]
    return torch.einsum("bhqk,bhkd->bhqd", seen.pattern.double(), v.double())


def _unlike(name: str, other: str, first: Tensor, second: Tensor) -> list[str]:
    if first.shape != second.shape:
        return [f"{name} is {tuple(first.shape)}, and {other} is {tuple(second.shape)}"]
    gap, size = float((first.double() - second.double()).abs().max()), float(first.abs().max())
    return [] if gap <= _TOLERANCE * max(1.0, size) else [f"{name} is {gap:.1e} away from {other}, of size {size:.1e}"]


@contextmanager
def _outputs_heard(model: nn.Module, anatomy: Anatomy) -> Iterator[dict[str, list[_Heard]]]:
    """What each output projection that is a module was given and gave, call by call."""
    heard: dict[str, list[_Heard]] = {}
    handles = []

    def listen(name: str) -> None:
        own = heard.setdefault(name, [])
        module = model.get_submodule(name)
        handles.append(
            module.register_forward_hook(lambda _, given, out: own.append((given[0].detach().clone(), out.clone())))
        )

    for name in {site.output.module for site in anatomy.sites if site.output is not None and site.output.is_module}:
        listen(name)
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _unlike_output(
    model: nn.Module, site: Site, contributions: Tensor, heard: Mapping[str, Sequence[_Heard]]
) -> list[str]:
    """How the sum of contributions and the bias are unlike what the output projection gave."""
    if site.output is None or site.output_call >= len(heard.get(site.output.module, ())):
        return []
    projection = model.get_submodule(site.output.module)
    given, gave = (features_last(projection, one) for one in heard[site.output.module][site.output_call])
    whole, gave = contributions.double().sum(1), gave.double() - _of_others(projection, site, given)
    if site.rows == "t b":
        gave = gave.transpose(0, 1)
    if site.rows and gave.numel() == whole.numel():
        return _unlike("the sum of contributions", "the projection's output", whole, gave.reshape(whole.shape))
    # in another order; and blocks may be filled up on either side of the projection
    few, many = sorted((whole.flatten(0, -2), gave.flatten(0, -2)), key=len)
    return _unlike("the sum of contributions", "the projection's output", few, nearest_rows(few, many))


def _of_others(projection: nn.Module, site: Site, given: Tensor) -> Tensor:
    """What the projection gives beside the heads' parts: its bias, and what columns give that are no head's."""
    assert site.output is not None  # it was heard
    weight, bias = projection.weight, projection.bias if hasattr(projection, "bias") else None
    assert isinstance(weight, Tensor)
    columns = {column for head in site.output.heads for column in head}
    beside = [column for column in range(given.shape[-1]) if column not in columns]
    # that of transformers is (in, out); convolutions of width 1 have axes of their own for it
    by_column = weight if type(projection).__name__ == "Conv1D" else weight.flatten(1).T
    others = given[..., beside].double() @ by_column[beside].detach().double()
    return others + bias.detach().double() if isinstance(bias, Tensor) else others


def nearest_rows(rows: Tensor, among: Tensor) -> Tensor:
    """For each row the nearest among others: positions in another order are compared as a set.

    Args:
        rows: (row, width).
        among: (other, width).

    >>> nearest_rows(torch.tensor([[1.0, 2.0]]), torch.tensor([[9.0, 9.0], [1.0, 2.5]]))
    tensor([[1.0000, 2.5000]])
    """
    return among[torch.cdist(rows[None], among[None], compute_mode="donot_use_mm_for_euclid_dist")[0].argmin(1)]
