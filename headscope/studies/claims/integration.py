"""C17: concatenation and projection integrate the heads into a richer representation."""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from headscope.anatomy.weights import output_weights
from headscope.errors import AnatomyError
from headscope.reporting.figures import figure_of, layer_dots
from headscope.statistics.moments import Moments
from headscope.studies.bilingual import Both
from headscope.studies.claims import CLAIMS, FAILS, HOLDS, SEEDS_DRAWN, Measured, ModelClaim, Verdict, in_part
from headscope.studies.subjects import Subject
from headscope.surplus.effective import effective_rank
from headscope.uncertainty.intervals import jackknife

__all__ = ["Integration"]

_KEPT = 0.9  # of the directions that stood side by side
_NAMES = ("one", "side_by_side", "projected")


@CLAIMS.register("C17")
class Integration(ModelClaim):
    """Effective ranks of one head's contribution, of all of them side by side, and after the projection."""

    kind: ClassVar[str] = "experiment"
    about: ClassVar[Both] = Both("integration", "統合と豊かな表現")
    says: ClassVar[Both] = Both(
        "Concatenation and projection integrate what the heads extracted into a richer representation.",
        "連結と線形変換により、各ヘッドの特徴が統合され、より豊かな表現になる。",
    )
    where_ja: ClassVar[str] = "ヘッドの連結と最終出力の生成"
    means: ClassVar[Both] = Both("", "")
    measured: ClassVar[Both] = Both(
        "How many directions something varies in over the text: the effective rank of its covariance, the exponential "
        "of the entropy of its standard deviations along its main directions (Roy and Vetterli 2007): of one head's "
        "contribution, of the contributions of all heads side by side, and of their sum, which is what the projection "
        "makes.",
        "",
    )
    unit: ClassVar[Both] = Both(
        "effective rank after projection over that of one head", "射影後の有効ランク÷1ヘッドの有効ランク"
    )
    interval: ClassVar[Both] = Both("95%, the mean over layers of each layer's ends", "")
    rule: ClassVar[Both] = Both(
        "supported if projected outputs vary in more directions than one head's, by the low end, and on average in no "
        "fewer than 90% of those that stood side by side; not supported if in no more than one head's, by the high end;"
        " else depends",
        "",
    )
    drawn: ClassVar[Both] = Both("Effective ranks in each layer.", "") + SEEDS_DRAWN
    limits: ClassVar[Both] = Both(
        "Counts directions of variation, on this text; it does not ask whether they are of use. Where heads × head_dim"
        " is no more than the width, nothing need be lost in the sum: what is lost is lost where heads write into "
        "directions that they share (C14). Where it is more, as in Gemma, some must be.",
        "",
    )

    def measure(self, subject: Subject) -> Measured:
        weights = output_weights(subject.model, subject.anatomy.apart)
        rows = []
        for layer, blocks in subject.moments.items():
            own = weights[layer]
            if len(own) < 2:
                continue
            spread = jackknife(_ranks(own), blocks, [block.n for block in blocks])
            lows, highs = spread.interval()
            ranks = dict(zip((*_NAMES, "ratio"), spread.centre.tolist(), strict=True))
            ends = {"ratio_low": float(lows[3]), "ratio_high": float(highs[3])}
            rows.append({"layer": layer, "n_heads": len(own), **ranks, **ends})
        if not rows:
            raise AnatomyError("no layer has two heads whose contributions can be told apart")
        table = pd.DataFrame(rows)
        means = {name: float(table[name].mean()) for name in (*_NAMES, "n_heads")}
        effect, low, high = (float(table[name].mean()) for name in ("ratio", "ratio_low", "ratio_high"))
        return Measured(effect, f"{subject.n_documents} documents", means, table, low, high)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        if words["high"] <= 1:
            return FAILS
        kept = words["projected"] >= _KEPT * words["side_by_side"]
        return HOLDS if words["low"] > 1 and kept else in_part(Both("", ""))

    def say(self, words: Mapping[str, float]) -> Both:
        return Both(
            f"One head's contribution varies in {words['one']:.1f} directions, those of all side by side in "
            f"{words['side_by_side']:.1f}, and after the projection, their sum, in {words['projected']:.1f} "
            f"({words['projected'] / words['side_by_side']:.0%}).",
            "",
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        series = {"one": "one head", "side_by_side": "side by side", "projected": "projected"}
        return figure_of(layer_dots(table, series, label="effective rank"))


def _ranks(weights: Sequence[Tensor]) -> Callable[[Sequence[Moments]], np.ndarray]:
    """From blocks of moments to the three ranks, and the ratio of the last to the first."""
    joined = torch.cat(list(weights), dim=1)
    # contributions in coordinates of each head's own, which keep lengths and angles: z alone can be scaled at will
    apart = torch.block_diag(*(torch.linalg.qr(own)[1] for own in weights))

    def ranks(blocks: Sequence[Moments]) -> np.ndarray:
        moments = Moments.total(blocks)
        covariance = moments.second(moments.mean) / moments.n
        one = np.mean([_rank(covariance[own, own], own_w) for own, own_w in zip(moments.slices, weights, strict=True)])
        side_by_side, projected = _rank(covariance, apart), _rank(covariance, joined)
        return np.array([one, side_by_side, projected, projected / one])

    return ranks


def _rank(covariance: Tensor, weights: Tensor) -> float:
    """Effective rank of W C Wᵀ; by the smaller of two matrices with the same eigenvalues but for zeros."""
    if weights.shape[0] <= weights.shape[1]:
        covariance = weights @ covariance @ weights.T
    else:
        values, directions = torch.linalg.eigh(covariance)
        root = directions * values.clamp_min(0).sqrt()
        covariance = root.T @ (weights.T @ weights) @ root
    variances = torch.linalg.eigvalsh(covariance).clamp_min(0)
    return effective_rank(variances.sqrt().numpy())
