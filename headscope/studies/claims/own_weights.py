"""C1: every head has its own query, key and value weights, and as many dimensions as its share of the width."""

from collections.abc import Mapping
from math import isnan
from typing import ClassVar

import pandas as pd
from matplotlib.figure import Figure

from headscope._support.formatting import count
from headscope.anatomy.weights import input_weights
from headscope.reporting.figures import layer_dots
from headscope.sites import Site
from headscope.studies.bilingual import Both
from headscope.studies.claims import CLAIMS, EXACT, HOLDS, Measured, ModelClaim, Verdict, in_part
from headscope.studies.subjects import Subject

__all__ = ["OwnWeights"]


@CLAIMS.register("C1")
class OwnWeights(ModelClaim):
    """Heads counted, and the weights that make their queries, keys and values."""

    kind: ClassVar[str] = "architecture"
    about: ClassVar[Both] = Both("own Q, K, V", "専用のQ・K・V")
    says: ClassVar[Both] = Both(
        "Each head makes its own queries, keys and values with weights of its own; with a width of 512 and 8 heads "
        "each has 64 dimensions.",
        "各ヘッドは専用の重み行列でQ・K・Vを作る。512次元・8ヘッドなら各64次元。",
    )
    where_ja: ClassVar[str] = "クエリ、キー、バリューの生成"
    means: ClassVar[Both] = Both("", "")
    measured: ClassVar[Both] = Both(
        "The probe that finds a model's attention says which rows of which weights make each head's query, key and "
        "value. Where heads share keys and values in groups (Ainslie et al. 2023, arXiv:2305.13245) there are fewer "
        "key heads than query heads. Beside it, whether head_dim is the width over the number of heads.",
        "",
    )
    unit: ClassVar[Both] = Both("key and value heads over query heads", "キー・バリューヘッド数÷クエリヘッド数")
    rule: ClassVar[Both] = Both(
        "supported if every query head has keys and values of its own, and heads × head_dim is the width, in every "
        "layer; else depends",
        "",
    )
    drawn: ClassVar[Both] = Both("Heads of each layer, and the dimensions of their queries and keys.", "")
    limits: ClassVar[Both] = Both(
        "A fact of the architecture, not of training. Nothing ties the dimensions of a head to width / heads: many "
        "models choose others.",
        "",
    )

    def measure(self, subject: Subject) -> Measured:
        rows = [
            {
                "layer": site.layer, "n_heads": site.n_heads, "n_kv_heads": site.n_kv_heads, "head_dim": site.head_dim,
                "value_dim": site.value_dim, "width": _width(subject, site),
            }
            for site in subject.anatomy.sites
        ]  # fmt: skip
        table = pd.DataFrame(rows)
        share = float(table["n_kv_heads"].sum() / table["n_heads"].sum())
        means = {name: float(table[name].mean()) for name in ("n_heads", "n_kv_heads", "head_dim", "width")}
        shared = float((table["n_heads"] * table["head_dim"] == table["width"]).mean())
        numbers = {**means, "shared": shared, "layers": float(len(table))}
        return Measured(share, EXACT, numbers, table)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        return HOLDS if words["effect"] == 1 and words["shared"] == 1 else in_part(Both("", ""))

    def say(self, words: Mapping[str, float]) -> Both:
        shared = "each with keys and values of its own"
        if words["effect"] < 1:
            pairs = (
                "pair of keys and values, which they share" if words["n_kv_heads"] == 1 else "pairs, shared in groups"
            )
            shared = f"but only {words['n_kv_heads']:.3g} {pairs}"
        width = (
            "" if isnan(words["width"]) else f" {'=' if words['shared'] == 1 else '≠'} {words['width']:.4g}, the width"
        )
        return Both(
            f"{count(int(words['layers']), 'layer')} of {words['n_heads']:.3g} query heads of {words['head_dim']:.3g} "
            f"dimensions ({words['n_heads']:.3g} × {words['head_dim']:.3g}{width}), {shared}.",
            "",
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        counted = {"n_heads": "query heads", "n_kv_heads": "key and value heads"}
        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        layer_dots(table, counted, label="heads", ax=left)
        layer_dots(table, {"head_dim": ""}, label="dimensions of a head", ax=right)
        return figure


def _width(subject: Subject, site: Site) -> float:
    """Dimensions that its heads read; NaN where they are not made by one linear map."""
    return next((float(heads[0].shape[1]) for heads in input_weights(subject.model, site).values()), float("nan"))
