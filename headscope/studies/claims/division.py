"""C14: the embedding is divided among the heads."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import isnan
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from headscope.anatomy.weights import input_weights, output_weights
from headscope.errors import AnatomyError
from headscope.reporting.figures import figure_of, layer_dots
from headscope.studies.bilingual import Both
from headscope.studies.claims import CLAIMS, EXACT, FAILS, HOLDS, SEEDS_DRAWN, Measured, ModelClaim, Verdict, in_part
from headscope.studies.subjects import Subject

__all__ = ["Division"]

_NOTHING = 1e-6  # of the longest column: a shorter one reads nothing of its input dimension


@CLAIMS.register("C14")
class Division(ModelClaim):
    """How much of the width each head reads, and how much of it two heads share."""

    kind: ClassVar[str] = "architecture"
    about: ClassVar[Both] = Both("the embedding is divided", "埋め込みの分割")
    says: ClassVar[Both] = Both(
        "The input's embedding is divided into several heads; the original vector is split into small ones.",
        "入力トークンの埋め込みベクトルを複数の「ヘッド」に分割し、元のベクトルを小さな次元に分ける。",
    )
    where_ja: ClassVar[str] = "マルチヘッドアテンションの概要」と「クエリ、キー、バリューの生成"
    means: ClassVar[Both] = Both("", "")
    measured: ClassVar[Both] = Both(
        "Of each head's query, key and value weights: the share of input dimensions with any weight at all. Were the "
        "embedding divided among h heads it would be 1/h. Beside it, the overlap of the subspaces that two heads read "
        "(by their value weights) and write: the mean squared cosine of the principal angles between them (Björck and "
        "Golub 1973), 0 if they share nothing, 1 if they are the same, head_dim / width by chance.",
        "",
    )
    unit: ClassVar[Both] = Both("share of the width that a head reads", "ヘッドが読む入力次元の割合")
    rule: ClassVar[Both] = Both(
        "supported if a head reads its share 1/h alone; not supported if it reads over 90%; else depends", ""
    )
    drawn: ClassVar[Both] = (
        Both("Each layer. Dotted lines: what a head would read of a divided embedding, and the overlap by chance.", "")
        + SEEDS_DRAWN
    )
    limits: ClassVar[Both] = Both(
        "It is the projections that are narrow, not what they read: every head sees the whole embedding and chooses "
        "its own directions in it. The picture of slices is right for the concatenated output, not for the input.",
        "",
    )
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def measure(self, subject: Subject) -> Measured:
        out = output_weights(subject.model, subject.anatomy.apart)
        rows = []
        for site in subject.anatomy.sites:
            own = input_weights(subject.model, site)
            if not own or site.n_heads < 2:
                continue
            columns = torch.cat([torch.stack([head.norm(dim=0) for head in heads]) for heads in own.values()])
            read = (columns > _NOTHING * columns.max()).double().mean(1)
            width = columns.shape[1]
            rows.append(
                {
                    "layer": site.layer, "n_heads": site.n_heads, "width": width, "read": float(read.mean()),
                    "read_overlap": _overlap(own.get("v", [])),
                    "write_overlap": _overlap([head.T for head in out.get(site.layer, [])]),
                    "chance": site.value_dim / width,
                }
            )  # fmt: skip
        if not rows:
            raise AnatomyError(
                "no layer has two heads, each made by one linear map of the width, that it could be divided among"
            )
        table = pd.DataFrame(rows)
        effect = float(table["read"].mean())
        names = ("read_overlap", "write_overlap", "chance", "n_heads")
        numbers = {name: float(table[name].mean()) for name in names}
        return Measured(effect, EXACT, numbers, table)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        if words["effect"] <= 1 / words["n_heads"]:
            return HOLDS
        return FAILS if words["effect"] > 0.9 else in_part(Both("", ""))

    def say(self, words: Mapping[str, float]) -> Both:
        known = {what: words[f"{what}_overlap"] for what in ("read", "write")}
        shared = ", and ".join(
            f"the subspaces that two heads of a layer {what} overlap by {value:.2f}"
            for what, value in known.items()
            if not isnan(value)
        )
        overlaps = f"; {shared} (by chance {words['chance']:.2f})" if shared else ""
        divided = words["effect"] <= 1 / words["n_heads"]
        return Both(
            f"Each head reads {words['effect']:.0%} of the width{'' if divided else ', not'} 1/{words['n_heads']:.3g} "
            f"of it{overlaps}.",
            "",
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        series = {"read": "width read by a head", "read_overlap": "overlap, read", "write_overlap": "overlap, written"}
        share, chance = float((1 / table["n_heads"]).mean()), float(table["chance"].mean())
        alike = abs(share - chance) < 0.01
        lines = {"1 / heads, and\nby chance": share} if alike else {"1 / heads": share, "by chance": chance}
        series = {name: words for name, words in series.items() if table[name].notna().any()}
        return figure_of(layer_dots(table, series, label="share", lines=lines))


def _overlap(weights: Sequence[Tensor]) -> float:
    """Mean squared cosine of the principal angles of every two heads' row spaces; NaN with fewer than two."""
    bases = [torch.linalg.qr(head.T.double())[0] for head in weights]
    shared = [float((a.T @ b).square().sum()) / min(a.shape[1], b.shape[1]) for a, b in combinations(bases, 2)]
    return float(np.mean(shared)) if shared else float("nan")
