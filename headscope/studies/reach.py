"""Reach: which pairs of tokens a layer's mask leaves to its heads, and which windows a model declares."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedConfig

from headscope._support.running import evaluating, last_logits, run_model
from headscope.sites import Anatomy, Site
from headscope.studies.layers import kind_of
from headscope.text.batches import Batch, kept_positions
from headscope.watching.hooks import SiteTensors, watch

__all__ = ["Reach", "declared_window", "open_pairs", "reaches"]

_HIDDEN = -1e4  # what masks add is no larger: -inf, the least number of the type, or this
_WINDOWS = (
    "sliding_window", "sliding_window_size", "attention_window_size", "attention_chunk_size", "window_size",
)  # fmt: skip
_BOTH_SIDES = ("attention_window", "local_attention")  # of which a query sees half to either side, and itself
_ONE_SIDE = ("local_radius",)  # to either side, beside itself
_FAR = ("full_attention", "linear_attention")  # types of layers, where a configuration names them, without a window


@dataclass(frozen=True)
class Reach:
    """Which pairs of tokens a layer's mask was seen to leave.

    Attributes:
        kind: "encoder", "causal", "cross"; or "windowed" where more is hidden than the future.
        tokens: of the longest row that it was seen on.
        allowed: share of all pairs of query and key, padding left out.
        met: share of pairs of two tokens of which at least one may look at the other.
        farthest: tokens from a query to the farthest key that any may look at, both counted.
    """

    kind: str
    tokens: int
    allowed: float
    met: float
    farthest: int


def reaches(model: nn.Module, anatomy: Anatomy, batch: Batch) -> dict[int, Reach]:
    """What each layer's mask leaves, by layer.

    Args:
        model: run once, in evaluation mode; left as it was.
        anatomy: its anatomy.
        batch: what it reads.
    """
    found: dict[int, Reach] = {}

    def receive(site: Site, tensors: SiteTensors) -> None:  # maps of long rows are large, and none is kept
        found[site.layer] = _reach(site, tensors["bias"], tensors["pattern"], batch)

    with evaluating(model), torch.no_grad(), watch(model, anatomy.sites, ("bias", "pattern"), receive):
        run_model(model, batch, **last_logits(model, batch))
    return found


def open_pairs(
    site: Site, bias: Float[Tensor, "..."], pattern: Float[Tensor, "row head query key"], batch: Batch
) -> tuple[Bool[Tensor, "row query key"], Bool[Tensor, "row query key"]]:
    """Pairs of query and key that any head of a layer may look at, and all that there are, padding left out.

    Args:
        site: the layer.
        bias: what is added to its scores.
        pattern: its maps, by which pairs are told where nothing tells the bias.
        batch: what the model read.
    """
    bias, pattern = bias.detach().cpu(), pattern.detach().cpu()
    queries = kept_positions(batch, site.kind, pattern.shape[2])
    keys = kept_positions(batch, "self" if site.kind == "cross" else site.kind, pattern.shape[3])
    real = queries[:, :, None] & keys[:, None, :]
    open_ = pattern > 0 if bias.isnan().any() else (bias > _HIDDEN).expand(pattern.shape)
    return open_.any(1) & real, real


def declared_window(model: nn.Module) -> int:
    """Tokens to one side, the query's own among them, that the longest declared window leaves; 0 without one.

    A window that the configuration states, but that no layer has by its own list of their types, is none.
    """
    return max(_windows(getattr(model, "config", None)), default=0)


def _windows(config: object) -> Iterator[int]:
    """Of a configuration and of those inside it, as of a text model's that also sees."""
    own = vars(config) if isinstance(config, PreTrainedConfig) else {}
    types = own.get("layer_types")
    windowed = not isinstance(types, list | tuple) or any(one not in _FAR for one in types)
    for name, value in own.items():
        if isinstance(value, PreTrainedConfig):
            yield from _windows(value)
        elif windowed and name in (*_WINDOWS, *_BOTH_SIDES, *_ONE_SIDE):
            sizes = [one for one in (value if isinstance(value, list | tuple) else [value]) if _is_size(one)]
            yield from (one // 2 + 1 if name in _BOTH_SIDES else one + (name in _ONE_SIDE) for one in sizes)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _reach(site: Site, bias: Tensor, pattern: Tensor, batch: Batch) -> Reach:
    allowed, real = open_pairs(site, bias, pattern, batch)
    met = allowed if site.kind == "cross" else allowed | allowed.mT
    seen = allowed.any(0).nonzero()
    farthest = int((seen[:, 0] - seen[:, 1]).abs().max()) + 1 if len(seen) else 0
    return Reach(
        kind=_kind(site, allowed, real),
        tokens=int(real.any(2).sum(1).max()),
        allowed=_share(allowed, real),
        met=_share(met, real),
        farthest=farthest,
    )


def _kind(site: Site, allowed: Bool[Tensor, "row query key"], real: Bool[Tensor, "row query key"]) -> str:
    """Of the layer; "windowed" where more is hidden than the future."""
    if site.kind == "cross":
        return "cross"
    seen = real.tril() if site.kind == "causal" else real
    return kind_of(site) if bool((allowed | ~seen).all()) else "windowed"


def _share(some: Bool[Tensor, "row query key"], real: Bool[Tensor, "row query key"]) -> float:
    return float(some.sum() / real.sum())
