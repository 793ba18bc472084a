"""Nulls: how alike maps are on random tokens, for layers whose maps tokens can change."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from headscope._support.formatting import brief_list
from headscope._support.running import evaluating, last_logits, run_model
from headscope.anatomy.examples import placeholders
from headscope.anatomy.masks import as_read
from headscope.sites import Anatomy, Site
from headscope.tables import PairTable
from headscope.text.batches import Batch, digest
from headscope.text.nulls import scramble_tokens
from headscope.watching.hooks import SiteTensors, watch

__all__ = ["random_tokens", "unmoved_layers", "with_null", "without_null"]


def random_tokens(model: nn.Module, anatomy: Anatomy, batches: Sequence[Batch], seed: int) -> Sequence[Batch]:
    """The batches with random tokens in place of theirs; padding and all else stay.

    Args:
        model, anatomy: tell which positions are padding, and which tokens stand for no text.
        batches: the text.
        seed: of the draws.

    Raises:
        InputError: as `scramble_tokens` does.
    """
    drawn = scramble_tokens(as_read(model, anatomy, batches), seed, placeholders(model))
    # what was left out, or put in, for the draw alone
    return [
        {**old, **{name: new[name] for name in old if name in new}} for old, new in zip(batches, drawn, strict=True)
    ]


def unmoved_layers(
    model: nn.Module, anatomy: Anatomy, texts: Sequence[Batch], randoms: Sequence[Batch]
) -> frozenset[int]:
    """Layers whose maps are the same, bit by bit, on a text and on random tokens: of a picture, or of sound.

    Told by the first batch whose tokens differ; all layers where none does.

    Args:
        model: the model.
        anatomy: whose maps.
        texts, randoms: the text, and the same with random tokens.
    """
    for text, random in zip(texts, randoms, strict=True):
        if digest([text]) != digest([random]):
            before, after = (_maps_of(model, anatomy, batch) for batch in (text, random))
            return frozenset(layer for layer, own in before.items() if after.get(layer) == own)
    return frozenset(site.layer for site in anatomy.sites)


def _maps_of(model: nn.Module, anatomy: Anatomy, batch: Batch) -> dict[int, str]:
    """By layer, a digest of its maps: they may be too many to be held."""
    found: dict[int, str] = {}

    def receive(site: Site, tensors: SiteTensors) -> None:
        found[site.layer] = digest([{"pattern": tensors["pattern"].detach()}])

    with evaluating(model), torch.no_grad(), watch(model, anatomy.sites, {"pattern"}, receive):
        run_model(model, batch, **last_logits(model, batch))
    return found


def with_null(table: PairTable, random: PairTable, unmoved: Collection[int], other: Collection[int]) -> PairTable:
    """A table with its values on random tokens beside it: NaN, with the reason, for two heads whose maps both stay.

    Args:
        table: of maps on text.
        random: the same on random tokens.
        unmoved: layers whose maps are the same on both.
        other: those of the other model, where the columns are its heads.
    """
    rows = np.array([head.layer in unmoved for head in table.heads])
    columns = rows if table.other is None else np.array([head.layer in other for head in table.other])
    null = np.where(rows[:, None] & columns, np.nan, random.matrix)
    gone = bool((np.isnan(null) & ~np.isnan(random.matrix)).any())
    facts = {**table.facts, **({"why_no_null": _why(unmoved)} if gone else {})}
    return replace(table, nulls={**table.nulls, "random_tokens": null}, facts=facts)


def without_null(table: PairTable, why: str) -> PairTable:
    """A table that says why there is nothing on random tokens beside it; one of no maps as it is."""
    return replace(table, facts={**table.facts, "why_no_null": why}) if table.of == "pattern" else table


def _why(unmoved: Collection[int]) -> str:
    layers = [str(layer) for layer in sorted(unmoved)]
    which = f"layer{'s' * (len(layers) > 1)} {brief_list(layers)}"
    return f"not for {which}, whose maps are the same bits whatever the tokens are"
