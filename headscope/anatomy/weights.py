"""Weights as heads have them: W_O of each, and the products W_Qᵀ W_K and W_O W_V as low-rank factors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from headscope._support.running import unwrapped
from headscope.anatomy.finite import check_finite
from headscope.anatomy.linear import is_plain, layer_matrix
from headscope.sites import Anatomy, Site, Slices, heads_read

__all__ = [
    "Factors",
    "head_weights",
    "input_weights",
    "is_stored",
    "output_weights",
    "ov_factors",
    "qk_factors",
    "stored_weight",
    "weight_of",
]


@dataclass(frozen=True, eq=False)
class Factors:
    """M = leftᵀ right, (width, width), of one head.

    Attributes:
        left, right: (dim, width) float64.
    """

    left: Float64[Tensor, "dim width"]
    right: Float64[Tensor, "dim width"]


def weight_of(model: nn.Module, part: Slices) -> Float[Tensor, "out in"]:
    """The map of a linear layer: what it does, adapters and quantisation included.

    Args:
        model: whose weights are read.
        part: the layer.

    Raises:
        AnatomyError: the layer cannot be read.
    """
    module = unwrapped(model).get_submodule(part.module)
    return layer_matrix(module, part.parameter, part.layout, part.module)


def is_stored(model: nn.Module, site: Site) -> bool:
    """Whether a site's output projection is a weight that can be read at any time, and needs no run."""
    assert site.output is not None
    return not site.output.is_module or is_plain(unwrapped(model).get_submodule(site.output.module))


def stored_weight(model: nn.Module, part: Slices) -> Tensor:
    """The numbers behind a layer as they are stored, where it is its weight; else `weight_of`."""
    module = unwrapped(model).get_submodule(part.module)
    weight: Tensor = module.get_parameter("weight") if part.is_module and is_plain(module) else weight_of(model, part)
    return weight


def head_weights(model: nn.Module, site: Site) -> list[Float[Tensor, "width dim"]]:
    """W_O of each head of a site.

    Args:
        model: whose weights are read.
        site: where its heads are.
    """
    assert site.output is not None
    weight = weight_of(model, site.output)
    return [weight[:, list(own)] for own in site.output.heads]


def output_weights(model: nn.Module, anatomy: Anatomy) -> dict[int, list[Tensor]]:
    """For every layer and head, W_O of that head: (width, value_dim), float64, on the CPU.

    Raises:
        NumericalError: a weight is NaN or infinite.
    """
    found = {}
    for site in anatomy.sites:
        if site.output is not None:
            weights = head_weights(model, site)
            for weight in weights:
                check_finite(site.output.module, weight)
            found[site.layer] = [weight.detach().cpu().double() for weight in weights]
    return found


def input_weights(model: nn.Module, site: Site) -> dict[str, list[Float64[Tensor, "dim width"]]]:
    """W_Q, W_K and W_V of a site as "q", "k" and "v", a matrix a head (key and value heads, where they are fewer).

    Those that are not one linear map, or whose heads cannot be told apart, are left out.

    Args:
        model: whose weights are read.
        site: of its anatomy.
    """
    parts = {"q": site.query, "k": site.key, "v": site.value}
    rows = {name: _rows(model, part) for name, part in parts.items()}
    return {name: own for name, own in rows.items() if own}


def qk_factors(model: nn.Module, anatomy: Anatomy) -> dict[int, list[Factors]]:
    """W_Q and W_K of every query head, by layer; without layers where they are not linear maps of one residual stream.

    Args:
        model: whose weights are read.
        anatomy: where its heads are.
    """
    found = {}
    for site in anatomy.sites:
        q, k = (_rows(model, part) for part in (site.query, site.key))
        told = "weights_qk" not in site.refused and site.kind != "cross"
        if told and q and k and q[0].shape == k[0].shape and _reads_stream(model, site, q[0]):
            found[site.layer] = [Factors(q[head], k[site.kv_of_query[head]]) for head in range(site.n_heads)]
    return found


def ov_factors(model: nn.Module, anatomy: Anatomy) -> dict[int, list[Factors]]:
    """W_Oᵀ and W_V of every query head, by layer; layers where v is not one linear map of the width are left out.

    Args:
        model: whose weights are read.
        anatomy: where its heads are.
    """
    out = output_weights(model, anatomy.apart)
    found = {}
    for site in anatomy.apart.sites:
        v, o = _rows(model, site.value), out[site.layer]
        told = "weights_ov" not in site.refused
        if told and v and v[0].shape[1] == o[0].shape[0] and v[0].shape[0] == o[0].shape[1]:
            values = heads_read(site.n_value_heads, site.kv_of_query)
            found[site.layer] = [Factors(o[head].T, v[values[head]]) for head in range(site.n_heads)]
    return found


def _rows(model: nn.Module, parts: Sequence[Slices]) -> list[Float64[Tensor, "dim width"]]:
    """Each head's rows of the one linear layer that makes it; none where it is made by several layers, or none."""
    if not parts or any(sum(bool(part.heads[head]) for part in parts) != 1 for head in range(len(parts[0].heads))):
        return []
    found: dict[int, Tensor] = {}
    for part in parts:
        weight = weight_of(model, part).detach().cpu()
        check_finite(part.module, weight)
        found |= {head: weight[list(own)].to(torch.float64) for head, own in enumerate(part.heads) if own}
    return [found[head] for head in range(len(parts[0].heads))]


def _reads_stream(model: nn.Module, site: Site, rows: Tensor) -> bool:
    """Whether rows are as wide as what the site writes: latents that q and k have of their own are narrower."""
    return site.output is None or rows.shape[1] == weight_of(model, site.output).shape[0]
