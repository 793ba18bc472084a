"""Analyses made up from a seed: what the report sees, without a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from headscope.heads import HeadId
from headscope.planning.candidates import list_candidates
from headscope.planning.quadrants import Lines, draw_lines
from headscope.planning.removal import Removal, ladder
from headscope.sites import Anatomy, Site, Slices
from headscope.tables import HeadTable, PairTable
from headscope.verdict.verdicts import Finding, Verdict

NAN = float("nan")


@dataclass(frozen=True, eq=False)
class SyntheticAnalysis:
    anatomy: Anatomy
    scores: Mapping[str, HeadTable]
    pairs: Mapping[str, PairTable]
    candidates: pd.DataFrame
    removal: Removal
    verdict: Verdict
    facts: Mapping[str, Any] = field(default_factory=dict)
    claims: pd.DataFrame = field(default_factory=lambda: claims())

    @property
    def budget(self) -> float:
        return self.verdict.max_loss_rise

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.verdict.too_little

    def refused(self, heads: object) -> str:
        return ""


def claims() -> pd.DataFrame:
    """Three claims, one of them left open."""
    rows = [
        ("C1", "architecture", "own Q, K, V", "Each head has its own.", "holds", "", 1.0, NAN, NAN,
         "key heads over query heads", "6 layers.", ""),
        ("C6", "experiment", "feature spaces", "Each has its own.", "not decided", "two heads a layer", NAN, NAN, NAN,
         "effective heads", "no layer has two heads.", ""),
        ("C17", "experiment", "integration", "They are integrated.", "holds in part", "some layers", 5.0, 4.9, 5.1,
         "rank over that of one head", "One head varies in 6 directions.", "The sum is richer."),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=[
        "claim", "kind", "about", "says", "verdict", "where", "effect", "low", "high", "unit", "sentence",
        "follows",
    ])  # fmt: skip


def anatomy(n_layers: int, n_heads: int, kind: str = "self") -> Anatomy:
    heads = tuple((4 * h, 4 * h + 1, 4 * h + 2, 4 * h + 3) for h in range(n_heads))
    sites = tuple(
        Site(
            layer=layer, kind=kind, block=layer, module_name=f"layers.{layer}.attention", call=0,
            unit=f"layers.{layer}.attention", route="registry", n_heads=n_heads, n_kv_heads=n_heads,
            n_value_heads=n_heads, head_dim=4, value_dim=4, scaling=0.5, head_ids=tuple(range(n_heads)),
            kv_of_query=tuple(range(n_heads)), query=(Slices("q", heads),), key=(Slices("k", heads),),
            value=(Slices("v", heads),), output=Slices("o", heads),
        )
        for layer in range(n_layers)
    )  # fmt: skip
    return Anatomy("MadeUpModel", sites, "0" * 16)


def analysis(
    n_layers: int = 6,
    n_heads: int = 12,
    *,
    metric: str = "drift",
    unit: str = "",
    negative: bool = False,
    cross_layer: bool = True,
    undefined: tuple[str, ...] = (),
    seed: int = 0,
    too_little: tuple[str, ...] = (),
    **changes: Any,
) -> SyntheticAnalysis:
    """An analysis that looks like one of a real model.

    Args:
        n_layers, n_heads: its shape.
        metric, unit: what importance is measured in.
        negative: let some heads be better removed.
        cross_layer: whether similarities across layers are there.
        undefined: heads whose similarity, replaceability and importance are NaN.
        seed: of every draw.
        too_little: what cannot be told from so little text.
        changes: facts to set or replace.
    """
    rng = np.random.default_rng(seed)
    where = anatomy(n_layers, n_heads)
    heads = where.heads
    importance = 0.002 * rng.lognormal(0.0, 1.3, len(heads))
    importance[0] *= 40  # one head that towers over the rest, as real models have
    if negative:
        importance[rng.random(len(heads)) < 0.18] *= -0.4
    replaceability = 1 - rng.lognormal(-1.0, 0.6, len(heads))
    missing = np.array([str(head) in undefined for head in heads])
    importance[missing] = replaceability[missing] = NAN
    spread = 0.3 * np.abs(importance) + 0.0004

    def table(name: str, score: np.ndarray, error: np.ndarray, unit: str, tokens: int) -> HeadTable:
        return HeadTable(name, unit, heads, score, score - error, score + error, {"documents": 640, "tokens": tokens})

    restored = {"constant": np.full(len(heads), 0.4), "restored": 0.4 + 0.6 * replaceability}
    needed = np.maximum(importance, 0) * (1 - np.clip(restored["restored"], 0, 1))
    norm = rng.lognormal(0.4, 0.5, len(heads))
    gradient = np.abs(importance) * rng.lognormal(0, 0.3, len(heads))
    scores = {
        "ablation": table("ablation", importance, spread, unit, 2048),
        "gradient": table("gradient", gradient, 0.2 * gradient, unit, 66304),
        "norm": table("norm", norm, 0.02 * norm, "", 66304),
        "replaceability": table("replaceability", replaceability, np.full(len(heads), 0.03), "", 66304),
        "needed": table("needed", needed, np.full(len(heads), NAN), unit, 2048),
    }
    scores["replaceability"] = replace(scores["replaceability"], columns=restored)
    pairs = {name: _pairs(name, heads, rng, cross_layer, missing) for name in ("cka", "cosine")}
    lines = draw_lines(importance)
    stand_ins = {
        head: (mates[int(rng.integers(len(mates)))], float(rng.uniform(0.1, 0.6)))
        for head in heads
        if str(head) not in undefined and (mates := [m for m in heads if m.layer == head.layer and m != head])
    }
    removal = _removal(heads, importance, metric, unit)
    verdict = _verdict(removal, scores, lines, unit, rng, too_little)
    candidates = list_candidates(scores, pairs["cka"], stand_ins, lines, removal.order, len(verdict.chosen))
    facts = _facts(where, metric, unit) | changes
    return SyntheticAnalysis(where, scores, pairs, candidates, removal, verdict, facts)


def stand_beside(run: SyntheticAnalysis, means: Mapping[str, float]) -> SyntheticAnalysis:
    """An analysis whose replaceability and similarities stand beside numbers about these means, by name."""
    rng = np.random.default_rng(1)
    own = run.scores["replaceability"]

    def about(mean: float, shape: tuple[int, ...]) -> np.ndarray:
        return mean + rng.uniform(-0.02, 0.02, shape)

    columns = {name: about(mean, own.score.shape) for name, mean in means.items()}
    scores = {**run.scores, own.name: replace(own, columns={**own.columns, **columns})}
    pairs = {
        name: replace(table, nulls={null: about(mean, table.matrix.shape) for null, mean in means.items()})
        for name, table in run.pairs.items()
    }
    return replace(run, scores=scores, pairs=pairs)


def _removal(heads: tuple[HeadId, ...], importance: np.ndarray, metric: str, unit: str) -> Removal:
    """Costs that add up, a tenth dearer where nothing was chosen."""
    order = tuple(heads[i] for i in np.argsort(importance, kind="stable")[: int(np.isfinite(importance).sum())])
    sizes = ladder(len(order))
    cost = np.array([np.sort(importance)[:size].sum() for size in sizes])
    spread = 0.2 * np.abs(cost) + 0.0002
    costs = pd.DataFrame(
        {"heads": sizes, "chosen_cost": cost, "chosen_low": cost - spread, "chosen_high": cost + spread,
         "cost": 1.1 * cost, "low": 1.1 * cost - spread, "high": 1.1 * cost + spread}
    )  # fmt: skip
    return Removal(order, costs, metric, unit, not unit, 3.024 if unit else 0.0, {"documents": 213}, 0.03)


def _pairs(
    name: str, heads: tuple[HeadId, ...], rng: np.random.Generator, cross_layer: bool, missing: np.ndarray
) -> PairTable:
    tastes = rng.normal(size=(len(heads), 14)) + 0.6 * rng.normal(size=14)
    tastes /= np.linalg.norm(tastes, axis=1, keepdims=True)
    matrix = np.abs(tastes @ tastes.T) ** 1.4
    layer = np.array([head.layer for head in heads])
    if not cross_layer:
        matrix[layer[:, None] != layer[None, :]] = NAN
    matrix[missing] = NAN
    matrix[:, missing] = NAN
    same = layer[:, None] == layer[None, :]
    low, high = (np.where(same, matrix + shift, NAN) for shift in (-0.02, 0.02))
    return PairTable(name, "z", heads, matrix, low, high, {"documents": 640, "tokens": 66304})


def _verdict(
    removal: Removal, scores: Mapping[str, HeadTable], lines: Lines, unit: str, rng: np.random.Generator,
    too_little: tuple[str, ...],
) -> Verdict:  # fmt: skip
    importance = scores["ablation"]
    top = importance.heads[int(np.nanargmax(importance.score))]
    chosen = removal.chosen
    joint = removal.cost(len(chosen))
    draws = tuple(float(draw) for draw in abs(joint.value) * 3.2 * rng.lognormal(0, 0.3, 19)) if chosen else ()
    first = removal.cost(1)
    return Verdict(
        model="all-MiniLM-L6-v2", n_heads=len(importance.heads),
        n_layers=len({head.layer for head in importance.heads}),
        chosen=tuple(sorted(chosen)), max_loss_rise=0.03, joint=joint.value, joint_low=joint.low,
        joint_high=joint.high, random=draws, stability=0.93,
        cheapest=Finding(removal.order[0], first.value, first.low, first.high),
        most_needed=Finding(top, importance[top] * 1.1, importance[top], importance[top] * 1.2), most_replaceable=None,
        its_constant=NAN,
        twins=None, lines=lines, metric=removal.metric, unit=unit, intact=3.024 if unit else 0.0, n_documents=213,
        n_tokens=2048, text_unit="documents", too_little=too_little,
    )  # fmt: skip


def _facts(where: Anatomy, metric: str, unit: str) -> dict[str, Any]:
    n_layers = len(where.sites)
    return {
        "model": "all-MiniLM-L6-v2", "model_class": "BertModel", "n_parameters": 22_713_216, "n_layers": n_layers,
        "n_heads": where.n_heads, "text": "Python's own documentation (pydoc_data.topics, Python 3.11)",
        "text_sha256": "9f0c" * 16, "text_unit": "documents", "documents": 640, "tokens": 66_304,
        "window_length": 256, "windows": 259, "documents_chosen_on": 427, "documents_judged_on": 213,
        "ablation_tokens": 2048, "metric": metric, "unit": unit, "seed": 0, "device": "cpu", "dtype": "float32",
        "versions": {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.24.0", "headscope": "0.1.0"},
        "seconds": {"load": 0.8, "observe": 11.3, "gradient": 7.9, "ablation": 48.2, "verdict": 9.6},
        "peak_memory_mb": 812.4, "date": "2026-11-25",
    }  # fmt: skip
