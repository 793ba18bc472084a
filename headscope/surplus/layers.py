"""Redundancy of a model: for each layer, how many heads it is worth, and what the best few of them give back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import pandas as pd
from torch import nn

from headscope._support.formatting import brief_list
from headscope._support.progress import Progress, part_of
from headscope._support.shown import Shown, reasons
from headscope._support.tabular import read_table, write_table
from headscope.anatomy import anatomy_of
from headscope.anatomy.untrained import UNTRAINED, check_null, drawn_by, untrained_copy
from headscope.anatomy.weights import output_weights
from headscope.errors import InputError
from headscope.heads import HeadId
from headscope.likeness.passes import MOST_DIMENSIONS, looks_across
from headscope.sites import Anatomy, Site
from headscope.statistics.grouped import by_layer
from headscope.statistics.moments import Moments
from headscope.statistics.prediction import RIDGE
from headscope.statistics.summed_moments import SummedMoments
from headscope.statistics.swapped_moments import Swapped, SwappedMoments, why_no_chance
from headscope.surplus.curve import LEAST_BLOCKS, Weights, curve_by_chance, curve_spreads, fit_best
from headscope.surplus.effective import effective_heads, effective_spread
from headscope.tables import head_names
from headscope.text.batches import Batch
from headscope.text.feeding import Batches, feed
from headscope.text.sides import sides_of
from headscope.uncertainty.intervals import ONE_DOCUMENT, why_no_interval
from headscope.watching.observation import observe

__all__ = ["CONSTANT", "WHOLE", "Redundancy", "rate_redundancy", "redundancy"]

WHOLE = "all"  # stands for a layer's number where heads of every layer are meant
CONSTANT = "constant"  # stands for a head where none is kept yet
_EFFECTIVE = (
    "layer", "n_heads", "effective", "low", "high", "chance", "tokens_per_dimension", "n_documents", "n_tokens",
)  # fmt: skip
_CURVE = (
    "layer", "k", "head", "share", "low", "high", "chance",
    "restored", "restored_low", "restored_high", "n_documents", "n_tokens",
)  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Redundancy(Shown):
    """How many heads each layer is worth.

    Attributes:
        effective: columns layer ("0", "1" …, and "all" for the heads of every layer together, where they were compared
            with each other), n_heads, effective (see `headscope.surplus.effective.effective_heads`), low, high,
            chance (the same of heads that each saw another document; NaN for "all"), tokens_per_dimension (positions
            over the dimensions of the widest head), n_documents, n_tokens.
        curve: columns layer, k, head, share, low, high: what the layer's best k heads give back of what varies in its
            output; chance: the same where the other heads are of other documents; restored, restored_low,
            restored_high: what they and a constant give back of the whole output. See
            `headscope.surplus.curve.curve_spreads` and `curve_by_chance`. head is the k-th that all documents together
            would choose ("constant" for k = 0). Where documents are few, heads look too much alike and fits carry over
            badly: both numbers are too low.
        facts: what it was measured on and how; JSON values only.

    Layers in `effective` and heads in `curve` are ordered categories: they sort by their numbers, not as text.
    """

    effective: pd.DataFrame
    curve: pd.DataFrame
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layer, head = self.effective["layer"], self.curve["head"]
        order: list[HeadId | str] = [CONSTANT, *sorted(map(HeadId.parse, {*map(str, head)} - {CONSTANT}))]
        object.__setattr__(self, "effective", self.effective.assign(layer=head_names(layer, dict.fromkeys(layer))))
        object.__setattr__(self, "curve", self.curve.assign(head=head_names(head, order)))

    def _tables(self) -> dict[str, pd.DataFrame]:
        return {"effective number of heads": self.effective, "share that the best k heads give back": self.curve}

    def _missing(self) -> list[str]:
        return reasons(self.facts)

    def save(self, folder: str | Path) -> None:
        """Write effective_heads and redundancy_curve as .csv, .parquet and .json into an existing folder."""
        about = {"facts": dict(self.facts)}
        write_table(Path(folder), "effective_heads", self.effective, {"name": "effective_heads", **about})
        write_table(Path(folder), "redundancy_curve", self.curve, {"name": "redundancy_curve", **about})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read back what `save` wrote; floats return bit-equal."""
        effective, about = read_table(Path(folder), "effective_heads", {*_EFFECTIVE}, {"n_heads"})
        curve, _ = read_table(Path(folder), "redundancy_curve", {*_CURVE}, {"k"})
        return cls(effective, curve, about["facts"])


def redundancy(
    model: nn.Module,
    batches: Batches,
    *,
    anatomy: Anatomy | None = None,
    skip_first: int = 0,
    seed: int = 0,
    null: str = "",
    progress: Progress | None = None,
) -> Redundancy:
    """The effective number of heads of each layer and of the model, and how much of what varies the best k give back.

    Args:
        model: run once over the batches, in evaluation mode; left as it was.
        batches: dicts of tensors as the model takes them, with an optional "document" (batch,).
        anatomy: skips the probe.
        skip_first: positions at the start of each row that do not count.
        seed: of the weights of an untrained copy.
        null: "untrained": the same of an untrained copy stands beside as columns, on the same text: what architecture
            and input alone give. A reference, not a test: a trained model below it has grown apart.
        progress: told of each batch; see `headscope.Progress`.

    Returns:
        A Redundancy. The row of the whole model is there where all layers see the same positions and their heads have
        at most 4,096 dimensions together; intervals are NaN where the documents are too few.

    Raises:
        InputError: no batch, or no position that counts.
        UnknownNameError: no such null.
        ModelError: the model has no untrained copy; the parameter that cannot be drawn is named.
    """
    check_null(null)
    kept = feed(model, batches)
    if len(kept) == 0:
        raise InputError("there is no batch to measure redundancy on")
    anatomy = anatomy_of(model, kept[0], anatomy).apart
    copy = untrained_copy(model, seed, anatomy) if null else None
    found = _found(model, kept, anatomy, skip_first, progress)
    if copy is None:
        return found
    own = _found(copy, kept, anatomy, skip_first, part_of(progress, UNTRAINED))
    effective = found.effective.assign(untrained=own.effective["effective"])
    curve = found.curve.assign(untrained=own.curve["share"])
    facts = {**found.facts, UNTRAINED: drawn_by(model), "seed": seed}
    return replace(found, effective=effective, curve=curve, facts=facts)


def _found(
    model: nn.Module, kept: Sequence[Batch], anatomy: Anatomy, skip_first: int, progress: Progress | None
) -> Redundancy:
    """See `redundancy`."""
    layered, swapped, crossed = SummedMoments(), SwappedMoments(), SummedMoments(scope="model")
    whole = looks_across(anatomy)
    statistics = [layered, swapped, *([crossed] if whole else [])]
    observed = observe(model, kept, statistics, anatomy=anatomy, skip_first=skip_first, progress=progress)
    facts = {
        **observed.facts("gated_z"), **sides_of(kept), "skip_first": skip_first, "ridge": RIDGE,
        **anatomy.facts,
    }  # fmt: skip
    if why := why_no_interval(observed.n_documents):
        facts["why_no_interval"] = why
    elif why := why_no_interval(observed.n_documents, LEAST_BLOCKS):
        facts["why_no_interval"] = f"of the redundancy curve: {why}"
    if why := why_no_chance([site.layer for site in anatomy.sites], swapped.compute()):
        facts["why_no_chance"] = why
    groups = list(crossed.compute().values()) if whole else []
    together = groups[0] if len(groups) == 1 else None
    sums = by_layer(layered.compute()), swapped.compute()
    found = rate_redundancy(anatomy.sites, *sums, output_weights(model, anatomy), together, facts)
    apart = "layers see different positions" if whole else f"heads have over {MOST_DIMENSIONS} dimensions"
    whys = _missing(found, apart)
    return replace(found, facts={**found.facts, "why_no_value": "; ".join(whys)}) if whys else found


def _missing(found: Redundancy, apart: str) -> list[str]:
    """Which numbers are missing, and why."""
    whys = []
    if WHOLE not in set(found.effective["layer"]):
        whys.append(f"not for the whole model, whose {apart}")
    if len(dead := found.effective.loc[found.effective["effective"].isna(), "layer"]):
        whys.append(f"no effective number for layer {brief_list(dead.tolist())}: its heads are constant")
    if found.curve["restored"].isna().any():
        whys.append(f"no curve: {ONE_DOCUMENT}")
    elif len(still := found.curve.loc[found.curve["share"].isna(), "layer"].unique()):
        whys.append(f"no curve for layer {brief_list([*map(str, still)])}: it writes the same everywhere")
    return whys


def rate_redundancy(
    sites: Sequence[Site],
    moments: Mapping[int, Sequence[Moments]],
    swapped: Mapping[int, Sequence[Swapped]],
    weights: Mapping[int, Weights],
    together: Sequence[Moments] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Redundancy:
    """A Redundancy from sums that were taken before.

    Args:
        sites: the layers; those without moments are left out.
        moments: by layer, of each block of documents.
        swapped: by layer, of heads beside those of other documents; a layer without has no chance.
        weights: by layer, W_O of each head.
        together: of all heads of all layers, of each block; None leaves the whole model out.
        facts: what it was measured on.
    """
    facts = dict(facts or {})
    groups = {str(site.layer): moments[site.layer] for site in sites if site.layer in moments}
    if together is not None:
        groups[WHOLE] = together
    apart = {str(layer): halves for layer, halves in swapped.items()}
    effective = [{"layer": layer, **_effective_row(own, apart.get(layer, ()))} for layer, own in groups.items()]
    curve = [
        row
        for site in sites if site.layer in moments
        for row in _curve_rows(site.heads, moments[site.layer], swapped.get(site.layer, ()), weights[site.layer])
    ]  # fmt: skip
    one, other = pd.DataFrame(effective, columns=_EFFECTIVE), pd.DataFrame(curve, columns=_CURVE)
    one["n_documents"] = other["n_documents"] = facts.get("documents")
    if "blocks" in facts:
        for frame in (one, other):
            frame.insert(1, "block", [facts["blocks"].get(str(layer), "") for layer in frame["layer"]])
    return Redundancy(one, other, facts)


def _effective_row(blocks: Sequence[Moments], swapped: Sequence[Swapped]) -> dict[str, Any]:
    spread = effective_spread(blocks)
    low, high = spread.interval()
    n_tokens = sum(block.n for block in blocks)
    return {
        "n_heads": len(blocks[0].dims),
        "effective": float(spread.centre),
        "low": float(low),
        "high": float(high),
        "chance": effective_heads(Moments.total([half.of_strangers for half in swapped])) if swapped else float("nan"),
        "tokens_per_dimension": n_tokens / max(blocks[0].dims),
        "n_tokens": n_tokens,
    }


def _curve_rows(
    heads: Sequence[HeadId], blocks: Sequence[Moments], swapped: Sequence[Swapped], weights: Weights
) -> list[dict[str, Any]]:
    share, restored = curve_spreads(blocks, weights)
    order = fit_best(Moments.total(blocks), weights).order
    counted = {"layer": heads[0].layer, "n_tokens": sum(block.n for block in blocks)}
    columns = {
        "k": range(len(heads) + 1),
        "head": [CONSTANT, *(str(heads[place]) for place in order)],
        "share": share.centre,
        **dict(zip(("low", "high"), share.interval(), strict=True)),
        "chance": curve_by_chance(swapped, order, weights),
        "restored": restored.centre,
        **dict(zip(("restored_low", "restored_high"), restored.interval(), strict=True)),
    }
    return [counted | dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
