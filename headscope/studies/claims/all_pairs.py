"""C16: every token relates to every other token of the sequence."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from headscope.reporting.figures import figure_of, layer_dots
from headscope.studies.bilingual import Both
from headscope.studies.claims import CLAIMS, FAILS, HOLDS, SEEDS_DRAWN, Measured, ModelClaim, Verdict
from headscope.studies.subjects import Subject
from headscope.text.batches import kept_positions

__all__ = ["AllPairs"]

_HIDDEN = -1e4  # what masks add is no larger: -inf, the least number of the type, or this


@CLAIMS.register("C16")
class AllPairs(ModelClaim):
    """Pairs that the mask allows, and how many keys a query really looks at."""

    kind: ClassVar[str] = "architecture"
    about: ClassVar[Both] = Both("all pairs of tokens", "全トークン間の関係")
    says: ClassVar[Both] = Both(
        "Every query is compared with every key, so each token can relate to all other tokens.",
        "各クエリが全てのキーと比較され、各トークンは他のすべてのトークンとの関係性を持つことが可能になる。",
    )
    where_ja: ClassVar[str] = "シーケンス全体に対するアテンション計算"
    means: ClassVar[Both] = Both("", "")
    measured: ClassVar[Both] = Both(
        "The share of pairs of real tokens that mask and window leave to any head of a layer. "
        "Beside it the effective span of a head: the exponential of the entropy of a query's weights, over the number "
        "of keys that it may look at; 1 if it looks at all of them alike.",
        "",
    )
    unit: ClassVar[Both] = Both("share of pairs allowed, mean over layers", "マスクと窓が許す組の割合(層の平均)")
    rule: ClassVar[Both] = Both("supported if every layer allows every pair; not supported otherwise", "")
    drawn: ClassVar[Both] = Both("Each layer.", "") + SEEDS_DRAWN
    limits: ClassVar[Both] = Both(
        "The paper is right for encoders. A causal model hides the future by design: of T tokens' pairs it leaves (T +"
        " 1) / 2T, about half. At the lengths of the text: a window that is longer than the text hides nothing here.",
        "",
    )
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def measure(self, subject: Subject) -> Measured:
        rows = []
        for layer, own in subject.look("pattern", "bias").items():
            site, pattern = own.site, own.pattern.double().cpu()
            queries = kept_positions(subject.few, site.kind, pattern.shape[2])
            keys = kept_positions(subject.few, "self" if site.kind == "cross" else site.kind, pattern.shape[3])
            real = queries[:, :, None] & keys[:, None, :]
            allowed = _open(own.bias.double().cpu(), pattern) & real
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
        return Measured(mean, f"{len(table)} layers", numbers, table)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        return HOLDS if words["least"] == 1 else FAILS

    def say(self, words: Mapping[str, float]) -> Both:
        return Both(
            f"In rows of up to {words['tokens']:g} tokens, {words['effect']:.0%} of all pairs are allowed; a query's"
            f" weights are as wide as looking evenly at {words['span']:.0%} of the keys that it may see.",
            "",
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        series = {"allowed": "pairs allowed", "span": "effective span of a head"}
        return figure_of(layer_dots(table, series, label="share", lines={"all": 1.0}))


def _open(bias: Tensor, pattern: Tensor) -> Tensor:
    """(batch, query, key): which pairs any head may look at; by the map itself where nothing tells the bias."""
    if bias.isnan().any():
        return (pattern > 0).any(1)
    return (bias > _HIDDEN).expand(pattern.shape).any(1)
