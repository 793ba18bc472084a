"""C16: every token relates to every other token of the sequence."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from headscope.batches import kept_positions
from headscope.reporting.figures import figure_of, layer_dots
from headscope.studies.claims import CLAIMS, NOT_SUPPORTED, SUPPORTED, Measured, ModelClaim
from headscope.studies.subjects import Subject

__all__ = ["AllPairs"]


@CLAIMS.register("C16")
class AllPairs(ModelClaim):
    """Pairs that the mask allows, and how many keys a query really looks at."""

    about: ClassVar[str] = "all pairs of tokens"
    about_ja: ClassVar[str] = "全トークン間の関係"
    says: ClassVar[str] = "Every query is compared with every key, so each token can relate to all other tokens."
    says_ja: ClassVar[str] = "各クエリが全てのキーと比較され、各トークンは他のすべてのトークンと関係を持つ。"
    measured: ClassVar[str] = (
        "The share of pairs of real tokens that get any weight from any head of a layer: what mask and window leave. "
        "Beside it the effective span of a head: the exponential of the entropy of a query's weights, over the keys "
        "that it may look at; 1 if it looks at all alike."
    )
    unit: ClassVar[str] = "share of pairs allowed, mean over layers"
    rule: ClassVar[str] = "supported if every layer allows every pair; not supported otherwise"
    limits: ClassVar[str] = (
        "At the lengths of the text: a window that is longer than the text hides nothing here. Encoders allow all "
        "pairs; a causal model hides the future, about half of them, by design."
    )
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def measure(self, subject: Subject) -> Measured:
        rows = []
        for layer, own in subject.look("pattern").items():
            site, pattern = own.site, own.pattern.double().cpu()
            queries = kept_positions(subject.few, site.kind, pattern.shape[2])
            keys = kept_positions(subject.few, "self" if site.kind == "cross" else site.kind, pattern.shape[3])
            real = queries[:, :, None] & keys[:, None, :]
            allowed = (pattern > 0).any(1) & real
            entropy = -(pattern * pattern.clamp_min(1e-300).log()).sum(-1)
            room = allowed.sum(-1).clamp_min(1)
            spans = (entropy.exp() / room[:, None])[queries[:, None].expand(entropy.shape)]
            rows.append(
                {
                    "layer": layer, "kind": site.kind, "tokens": int(queries.sum(1).max()),
                    "allowed": float(allowed.sum() / real.sum()), "span": float(spans.mean()),
                }
            )  # fmt: skip
        table = pd.DataFrame(rows)
        shares = table["allowed"].to_numpy(np.float64)
        numbers = {
            "span": float(table["span"].mean()),
            "least": float(shares.min()),
            "tokens": float(table["tokens"].max()),
        }
        mean = float(shares.mean())
        return Measured(mean, float(shares.min()), float(shares.max()), f"{len(table)} layers", numbers, table)

    def decide(self, words: Mapping[str, float]) -> str:
        return SUPPORTED if words["least"] == 1 else NOT_SUPPORTED

    def say(self, words: Mapping[str, float]) -> str:
        return (
            f"In rows of up to {words['tokens']:g} tokens, {words['effect']:.0%} of all pairs get any weight; a query's"
            f" weights are as wide as looking evenly at {words['span']:.0%} of the keys that it may see."
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        series = {"allowed": "pairs with any weight", "span": "effective span of a head"}
        return figure_of(layer_dots(table, series, label="share", lines={"all": 1.0}))
