"""Redundancy: how many heads a layer is worth, and how few of them give back what all of them write."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from headscope._support.formatting import brief_list
from headscope._support.progress import Progress
from headscope._support.shown import Shown, reasons
from headscope.anatomy import discover
from headscope.anatomy.examples import probe_example
from headscope.errors import InputError
from headscope.heads import Anatomy, HeadId, Site
from headscope.statistics.grouped import by_layer
from headscope.statistics.moments import Moments, total
from headscope.statistics.prediction import RIDGE
from headscope.statistics.summed_moments import SummedMoments
from headscope.surplus.effective import effective_spread
from headscope.tables import read_table, write_table
from headscope.text.batches import Batch
from headscope.uncertainty.intervals import ONE_DOCUMENT, Spread, jackknife_spread, why_no_interval
from headscope.watching.observation import observe
from headscope.watching.passes import MOST_DIMENSIONS, looks_across
from headscope.watching.weights import output_weights

__all__ = [
    "CONSTANT",
    "WHOLE",
    "Best",
    "Redundancy",
    "curve_spread",
    "fit_best",
    "rate_redundancy",
    "redundancy",
    "residuals",
    "total_energy",
]

Floats = npt.NDArray[np.float64]
Weights = Sequence[Float64[Tensor, "width dim"]]

WHOLE = "all"  # stands for a layer's number where heads of every layer are meant
CONSTANT = "constant"  # stands for a head where none is kept yet
_EFFECTIVE = ("layer", "n_heads", "effective", "low", "high", "tokens_per_dimension", "n_documents", "n_tokens")
_CURVE = ("layer", "k", "head", "share", "low", "high", "n_documents", "n_tokens")
_LEAST = 4  # blocks: leaving one out must leave something in either half


@dataclass(frozen=True, eq=False, repr=False)
class Redundancy(Shown):
    """How many heads each layer is worth.

    Attributes:
        effective: columns layer ("0", "1" …, and "all" for the heads of every layer together, where they were compared
            with each other), n_heads, effective (see `headscope.surplus.effective.effective_heads`), low, high,
            tokens_per_dimension (positions over the dimensions of the widest head), n_documents, n_tokens.
        curve: columns layer, k, head, share, low, high: what the layer's best k heads give back of its output; see
            `curve_spread`. head is the k-th that all documents together would choose ("constant" for k = 0).
            Where documents are few, heads look too much alike and fits carry over badly: both numbers are too low.
        facts: what it was measured on and how; JSON values only.
    """

    effective: pd.DataFrame
    curve: pd.DataFrame
    facts: Mapping[str, Any] = field(default_factory=dict)

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
        return cls(effective.astype({"layer": str}), curve, about["facts"])


def redundancy(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    anatomy: Anatomy | None = None,
    skip_first: int = 0,
    progress: Progress | None = None,
) -> Redundancy:
    """The effective number of heads of each layer and of the model, and how much the best k heads give back.

    Args:
        model: run once over the batches, in evaluation mode; left as it was.
        batches: dicts of tensors as the model takes them, with an optional "document" (batch,).
        anatomy: skips the probe.
        skip_first: positions at the start of each row that do not count.
        progress: told of each batch; see `headscope._support.progress`.

    Returns:
        A Redundancy. The row of the whole model is there where all layers see the same positions and their heads have
        at most 4,096 dimensions together; intervals are NaN where the documents are too few.

    Raises:
        InputError: no batch, or no position that counts.
    """
    kept = batches if isinstance(batches, Sequence) else list(batches)
    if len(kept) == 0:
        raise InputError("there is no batch to measure redundancy on")
    anatomy = (discover(model, probe_example(model, kept[0])) if anatomy is None else anatomy).cuttable
    layered, crossed = SummedMoments(), SummedMoments(scope="model")
    whole = looks_across(anatomy)
    statistics = [layered, crossed] if whole else [layered]
    observed = observe(model, kept, statistics, anatomy=anatomy, skip_first=skip_first, progress=progress)
    facts = {
        **observed.facts("gated_z"), "skip_first": skip_first, "ridge": RIDGE,
        "model_class": anatomy.model_class, "fingerprint": anatomy.fingerprint,
    }  # fmt: skip
    if why := why_no_interval(observed.n_documents):
        facts["why_no_interval"] = why
    elif why := why_no_interval(observed.n_documents, _LEAST):
        facts["why_no_interval"] = f"of the redundancy curve: {why}"
    groups = list(crossed.compute().values()) if whole else []
    together = groups[0] if len(groups) == 1 else None
    found = rate_redundancy(anatomy.sites, by_layer(layered.compute()), output_weights(model, anatomy), together, facts)
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
    if found.curve["share"].isna().any():
        whys.append(f"no curve: {ONE_DOCUMENT}")
    return whys


def rate_redundancy(
    sites: Sequence[Site],
    moments: Mapping[int, Sequence[Moments]],
    weights: Mapping[int, Weights],
    together: Sequence[Moments] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Redundancy:
    """A Redundancy from sums that were taken before.

    Args:
        sites: the layers; those without moments are left out.
        moments: by layer, of each block of documents.
        weights: by layer, W_O of each head.
        together: of all heads of all layers, of each block; None leaves the whole model out.
        facts: what it was measured on.
    """
    facts = dict(facts or {})
    groups = {str(site.layer): moments[site.layer] for site in sites if site.layer in moments}
    if together is not None:
        groups[WHOLE] = together
    effective = [{"layer": layer, **_effective_row(blocks)} for layer, blocks in groups.items()]
    curve = [
        row
        for site in sites if site.layer in moments
        for row in _curve_rows(site.heads, moments[site.layer], weights[site.layer])
    ]  # fmt: skip
    one, other = pd.DataFrame(effective, columns=_EFFECTIVE), pd.DataFrame(curve, columns=_CURVE)
    one["n_documents"] = other["n_documents"] = facts.get("documents")
    return Redundancy(one, other, facts)


@dataclass(frozen=True, eq=False)
class Best:
    """A layer's heads in the order in which they help most, and the layer's output predicted from the first k of them.

    With C + λ = L Lᵀ in that order and u = L⁻¹ (z - mean), the prediction from the first k heads is B u, cut off after
    their dimensions: one factorisation serves every k.

    Attributes:
        order: heads, best first.
        ends: how many dimensions the first k heads have, k from 0.
        rows: the dimensions of z in that order.
        mean: (D,) mean of z where it was fitted.
        lower: (D, D) L.
        own: (D, D) BᵀB, with B = W C L⁻ᵀ (width, D).
        hit: (D, D) BᵀW.
        gram: (D, D) WᵀW.
    """

    order: tuple[int, ...]
    ends: tuple[int, ...]
    rows: tuple[int, ...]
    mean: Float64[Tensor, " dim"]
    lower: Float64[Tensor, "dim dim"]
    own: Float64[Tensor, "dim dim"]
    hit: Float64[Tensor, "dim dim"]
    gram: Float64[Tensor, "dim dim"]


def fit_best(moments: Moments, weights: Weights, ridge: float = RIDGE) -> Best:
    """Choose heads one after another, each the one that then helps most to predict the layer's whole output.

    The prediction is a ridge regression with an unpenalised constant; what is made smallest is what it minimises, the
    squared error with the penalty. Kept heads are swept out of [[C + λ, C Wᵀ], [W C, W C Wᵀ]], block after block: the
    gain of each head that is left is then tr(P⁻¹ Y Yᵀ), P its own block and Y its rows of C Wᵀ. About D³ in all.

    Args:
        moments: of one layer, of what enters the output projection.
        weights: W_O of each head, (width, value_dim).
        ridge: λ as a share of the mean diagonal of Σ z zᵀ.

    Returns:
        The order and the predictions; among heads that help equally the first is taken.
    """
    mean, output = moments.mean, torch.cat(list(weights), dim=1)
    covariance = moments.second(mean)
    scale = float((covariance.diagonal() + moments.n * mean**2).mean())
    penalised = covariance + (ridge * scale or 1.0) * torch.eye(len(mean), dtype=torch.float64)
    cross = covariance @ output.T
    order = _greedy_order(penalised.clone(), cross.clone(), moments.slices)
    rows = [row for head in order for row in range(len(mean))[moments.slices[head]]]
    lower = torch.linalg.cholesky(penalised[rows][:, rows])
    slope = torch.linalg.solve_triangular(lower, cross[rows], upper=False)
    ordered = output[:, rows]
    ends = np.cumsum([0, *(moments.dims[head] for head in order)]).tolist()
    sums = slope @ slope.T, slope @ ordered, ordered.T @ ordered
    return Best(tuple(order), tuple(ends), tuple(rows), mean, lower, *sums)


def _greedy_order(
    left: Float64[Tensor, "dim dim"], cross: Float64[Tensor, "dim width"], slices: Sequence[slice]
) -> list[int]:
    """Heads, best first; `left` (C + λ) and `cross` (C Wᵀ) are swept in place."""
    order: list[int] = []
    remaining = list(range(len(slices)))
    while remaining:
        gains = []
        for head in remaining:
            own = slices[head]
            half = torch.linalg.solve_triangular(torch.linalg.cholesky(left[own, own]), cross[own], upper=False)
            gains.append(float(half.square().sum()))
        chosen = remaining.pop(int(np.argmax(gains)))
        order.append(chosen)
        own = slices[chosen]
        explained = torch.cholesky_solve(left[own], torch.linalg.cholesky(left[own, own]))  # P⁻¹ [row block]
        columns = left[:, own].clone()
        cross -= explained.T @ cross[own]
        left -= columns @ explained
    return order


def residuals(best: Best, judge_on: Moments) -> Float[np.ndarray, " k"]:
    """(N + 1,) Σ over positions of ‖y - ŷ‖², ŷ from the best k heads and a constant, k = 0 … N.

    y is what all heads together add to the output projection's output. Sums of disjoint documents add up.

    Args:
        best: fitted elsewhere.
        judge_on: moments of the same layer.
    """
    second = judge_on.second(best.mean)[list(best.rows)][:, list(best.rows)]
    half = torch.linalg.solve_triangular(best.lower, second, upper=False)
    among = torch.linalg.solve_triangular(best.lower, half.T, upper=False)  # Σ u uᵀ
    whole = float((best.gram * second).sum())
    hit = (best.hit * half).sum(1).numpy().cumsum()  # Σ ⟨ŷ, y⟩ with each dimension more
    nested = (best.own * among).numpy().cumsum(0).cumsum(1).diagonal()  # and Σ ‖ŷ‖²
    left = whole - 2 * hit + nested
    return np.array([whole, *(left[end - 1] for end in best.ends[1:])])


def total_energy(moments: Moments, weights: Weights) -> float:
    """Σ over positions of ‖Σ_h W_O^h z^h‖², not centred: the energy of all that a layer's heads write together.

    Args:
        moments: of one layer.
        weights: W_O of each head, (width, value_dim).
    """
    output = torch.cat(list(weights), dim=1)
    return float((output @ moments.second(torch.zeros_like(moments.pivot)) * output).sum())


def curve_spread(blocks: Sequence[Moments], weights: Weights, ridge: float = RIDGE) -> Spread:
    """Share of a layer's output energy that its best k heads give back, on documents that did not choose them.

    1 - Σ ‖y - ŷ‖² / Σ ‖y‖² over positions, y what all heads write together, not centred, and ŷ predicted from the
    k heads and a constant; see `fit_best`. Heads are chosen and ŷ is fitted on every second block of documents and
    judged on the rest, then the other way round; the two shares are averaged.

    Args:
        blocks: moments of one layer, of each block of documents.
        weights: W_O of each head, (width, value_dim).
        ridge: see `fit_best`.

    Returns:
        (N + 1,) for k = 0 (the constant alone) … N; no unit, at most 1: 1 = the k heads give back everything; below 0 =
        worse than nothing on unseen documents. A layer that writes nothing has 1. NaN with fewer than two blocks that
        hold anything. The error is that of the delete-m jackknife with choice and fit made anew each time; NaN with
        fewer than four blocks.

    Source: our own definition; the greedy choice is that of forward selection, the estimate of the error that of
        `headscope.uncertainty.intervals.jackknife_spread`.
    """
    filled = [block for block in blocks if block.n]
    if len(filled) < 2:
        return jackknife_spread(np.full(len(weights) + 1, np.nan), [], [block.n for block in filled])
    halves = filled[::2], filled[1::2]
    fits = [fit_best(total(half), weights, ridge) for half in halves]
    whole = _both_ways(fits, halves, weights)
    if len(filled) < _LEAST:
        return Spread(whole, np.full_like(whole, np.nan), np.asarray(np.float64(len(filled) - 1)))
    without = []
    for gone in range(len(filled)):
        own, place = gone % 2, gone // 2
        left = [block for i, block in enumerate(halves[own]) if i != place]
        refitted = fit_best(total(left), weights, ridge)
        pair = ([refitted, fits[1]], [left, halves[1]]) if own == 0 else ([fits[0], refitted], [halves[0], left])
        without.append(_both_ways(*pair, weights))
    return jackknife_spread(whole, without, [block.n for block in filled])


def _both_ways(fits: Sequence[Best], halves: Sequence[Sequence[Moments]], weights: Weights) -> Floats:
    """(N + 1,) shares given back, each half's fit judged on the other half, averaged."""
    return np.asarray(np.mean([_share(fits[way], total(halves[1 - way]), weights) for way in (0, 1)], axis=0))


def _share(best: Best, judge_on: Moments, weights: Weights) -> Floats:
    energy = total_energy(judge_on, weights)
    return 1 - residuals(best, judge_on) / energy if energy > 0 else np.ones(len(weights) + 1)


def _effective_row(blocks: Sequence[Moments]) -> dict[str, Any]:
    spread = effective_spread(blocks)
    low, high = spread.interval()
    n_tokens = sum(block.n for block in blocks)
    return {
        "n_heads": len(blocks[0].dims),
        "effective": float(spread.centre),
        "low": float(low),
        "high": float(high),
        "tokens_per_dimension": n_tokens / max(blocks[0].dims),
        "n_tokens": n_tokens,
    }


def _curve_rows(heads: Sequence[HeadId], blocks: Sequence[Moments], weights: Weights) -> list[dict[str, Any]]:
    spread = curve_spread(blocks, weights)
    names = [CONSTANT, *(str(heads[place]) for place in fit_best(total(blocks), weights).order)]
    counted = {"layer": heads[0].layer, "n_tokens": sum(block.n for block in blocks)}
    return [
        {"k": k, "head": name, "share": share, "low": low, "high": high} | counted
        for k, (name, share, low, high) in enumerate(zip(names, spread.centre, *spread.interval(), strict=True))
    ]
