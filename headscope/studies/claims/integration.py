"""C17: concatenation and projection integrate the heads into a richer representation."""

from collections.abc import Callable, Mapping, Sequence
from math import isnan
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from headscope.anatomy.weights import output_weights
from headscope.errors import AnatomyError
from headscope.reporting.figures import figure_of, layer_dots
from headscope.statistics.moments import Moments
from headscope.studies.bilingual import Both, joined
from headscope.studies.claims import (
    CLAIMS,
    FAILS,
    HOLDS,
    ROUNDING,
    SEEDS_DRAWN,
    Measured,
    ModelClaim,
    Verdict,
    in_part,
    undecided,
)
from headscope.studies.layers import Layer, by_kind, layers_named, named, of_layers, only
from headscope.studies.subjects import Subject
from headscope.surplus.effective import effective_rank
from headscope.uncertainty.intervals import jackknife

__all__ = ["Integration"]

_MORE = Both("more documents: intervals span 1", "文書が不足(区間が1をまたぐ)")
_NAMES = ("one", "side_by_side", "projected", "ratio")


@CLAIMS.register("C17")
class Integration(ModelClaim):
    """Effective ranks of one head's contribution, of all of them side by side, and after the projection."""

    kind: ClassVar[str] = "experiment"
    about: ClassVar[Both] = Both("integration", "統合と豊かな表現")
    says: ClassVar[Both] = Both(
        "Concatenation and linear map integrate the different features that the heads extracted, so that the model can "
        "make a richer representation.",
        "このプロセスにより、各ヘッドで抽出された異なる特徴が統合され、モデルがより豊かな表現を生成することができる。",
    )
    where_ja: ClassVar[str] = "ヘッドの連結と最終出力の生成"
    means: ClassVar[Both] = Both(
        "We ask whether what all heads of a layer write together varies in more directions than what one head writes. "
        "If it does, then the layer can tell tokens apart in more ways than any head alone; if not, then its heads all "
        "write into the same few directions.",
        "全ヘッドの寄与の和が、1個のヘッドの寄与より多くの方向に広がっているかを調べます"
        "(方向の数は有効ランクで測るため、小数になります)。多くの方向に広がっているなら、層は1個のヘッドより多くの面でトークンを区別でき、"
        "そうでなければ、ヘッドはどれも同じ少数の方向に書き込んでいることになります。",
    )
    measured: ClassVar[Both] = Both(
        "How many directions something varies in over the text: the effective rank of its covariance, the exponential "
        "of the entropy of its standard deviations along its main directions (Roy and Vetterli 2007). It is taken of "
        "one head's contribution (the mean over heads), of the contributions of all heads side by side, and of their "
        "sum, which is what the projection makes. Each layer is judged by itself, with its own interval.",
        "テキスト全体でいくつの方向に変化するかを、共分散の有効ランクで測ります。有効ランクは、"
        "主方向に沿った標準偏差のエントロピーをHとしてexp(H)です(Roy・Vetterli 2007)。N方向に均等に散らばればN、"
        "1方向だけなら1です。対象は、1個のヘッドの寄与(ヘッドについての平均)、すべてのヘッドの寄与を並べたもの、"
        "射影の出力であるそれらの和の3つです。判定は層ごとに、層ごとの区間で行います。",
    )
    unit: ClassVar[Both] = Both(
        "effective rank after projection over that of one head, mean over layers",
        "射影後の有効ランク÷1ヘッドの有効ランク(層の平均)",
    )
    interval: ClassVar[Both] = Both(
        "over documents, the mean over layers of each layer's 95% ends (at least 95% for the mean)",
        "文書についての各層の95%区間の両端を層で平均したもの(平均の区間としては95%以上)",
    )
    rule: ClassVar[Both] = Both(
        "it holds if in every layer the projected sum varies in more directions than one head's contribution, by the "
        "whole interval; it does not hold if it does so in no layer, by the whole interval; else it holds in part, in "
        "the kinds of layers or the layers that are named, or is not decided where no layer's interval tells",
        "すべての層で、射影後の和が1個のヘッドの寄与より多くの方向に変化するなら成り立つ(区間全体で判定)。"
        "どの層でもそうでないなら成り立たない(区間全体で判定)。それ以外は、名前を挙げた種類の層または個々の層で"
        "一部で成り立つ。どの層の区間からも判断できなければ未判定とする",
    )
    drawn: ClassVar[Both] = Both("Effective ranks in each layer.", "層ごとの有効ランク。") + SEEDS_DRAWN
    follows: ClassVar[Both] = Both(
        "Readers infer that the projection adds something to the concatenation. It makes no dimension that the heads "
        "do not have; effective rank may go either way. It sums what the heads write, and where two heads write into "
        "directions that they share (C14), the sum varies in fewer directions than the heads side by side. Richer "
        "than one head does not mean richer than the concatenation.",
        "射影が連結に何かを付け加える、と読まれがちですが、そうではありません。"
        "線形変換はヘッドにない次元を作りません(有効ランクは増えることも減ることもあります)。"
        "射影はヘッドが書き込むものを足し合わせるだけで、2個のヘッドが共有する方向に書き込めば(C14)、"
        "和の方向の数は並べたときより少なくなります。1個のヘッドより豊かであることは、"
        "連結より豊かであることを意味しません。",
    )
    limits: ClassVar[Both] = Both(
        "Counts directions of variation on this text; it does not ask whether they are of use. It is a low bar: heads "
        "with random weights pass it as well, as they need only differ. Where heads × head_dim is no more than the "
        "width, nothing need be lost in the sum. Where it is more, as in Gemma, some must be.",
        "このテキストで変化する方向の数を数えるだけで、それが役に立つかどうかは問いません。"
        "また、この基準は緩いものです。ヘッドが互いに異なってさえいればよく、ランダムな重みのヘッドでも満たします。"
        "ヘッド数×head_dimが幅以下なら、和をとっても方向が失われないことがあります。"
        "幅を超える場合(Gemmaなど)は、必ず一部が失われます。",
    )

    def measure(self, subject: Subject) -> Measured:
        weights = output_weights(subject.model, subject.anatomy.apart)
        rows: list[dict[str, Any]] = []
        numbers: dict[str, float] = {}
        for layer, blocks in subject.moments.items():
            own, kind = weights[layer], subject.kind(layer)
            if len(own) < 2:
                continue
            spread = jackknife(_ranks(own), blocks, [block.n for block in blocks])
            lows, highs = spread.interval()
            ranks = dict(zip(_NAMES, spread.centre.tolist(), strict=True))
            if isnan(ranks["ratio"]):
                continue  # no head of the layer writes anything
            low, high = float(lows[-1]), float(highs[-1])
            known = {**ranks, "least_low": low, "largest_high": high}
            numbers |= {named(name, Layer(kind, layer)): value for name, value in known.items()}
            rows.append(
                {"layer": layer, "kind": kind, "n_heads": len(own), **ranks, "ratio_low": low, "ratio_high": high}
            )
        if not rows:
            raise AnatomyError("no layer has two heads whose contributions can be told apart")
        table = pd.DataFrame(rows)
        window, tokens = subject.idle_window
        numbers |= {"tokens": float(tokens), "window": float(window)}
        effect, low, high = (float(table[name].mean()) for name in ("ratio", "ratio_low", "ratio_high"))
        return Measured(effect, subject.over, numbers, table, low, high)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        lows, highs = (of_layers(words, name) for name in ("least_low", "largest_high"))
        richer = [layer for layer, low in lows.items() if low > 1 + ROUNDING]
        if len(richer) == len(lows):
            return HOLDS
        if richer:
            return in_part(only(richer, lows))
        return FAILS if all(high <= 1 + ROUNDING for high in highs.values()) else undecided(_MORE)

    def say(self, words: Mapping[str, float]) -> Both:
        kinds = joined(
            Both(
                f"In {layers_named([kind]).en} ({len(times)}) one head's contribution varies in "
                f"{_mean(words, 'one', kind):.1f} directions, and the sum of all, after the projection, in "
                f"{_mean(words, 'projected', kind):.1f}: {np.mean(times):.2f} times as many in the mean over layers.",
                f"{layers_named([kind]).ja}({len(times)}層)では、1個のヘッドの寄与は"
                f"{_mean(words, 'one', kind):.1f}方向に、射影後の和は"
                f"{_mean(words, 'projected', kind):.1f}方向に変化します。層ごとの比の平均は{np.mean(times):.2f}倍です"
                "。",
            )
            for kind, times in by_kind(words, "ratio").items()
        )
        if not words["window"]:
            return kinds
        tokens, window = (f"{words[name]:,.0f}" for name in ("tokens", "window"))
        return kinds + Both(
            f"The texts have up to {tokens} tokens, so a window of {window} hides nothing in them: how many directions "
            "there are beyond it is not seen here.",
            f"テキストは最長{tokens}トークンで、{window}トークンの窓はその中では何も隠しません。"
            "窓を超える長さでの方向の数は、ここでは分かりません。",
        )

    def headline(self, words: Mapping[str, float]) -> Both:
        kinds = [(layers_named([kind]), float(np.mean(times))) for kind, times in by_kind(words, "ratio").items()]
        each = joined(
            (Both(f"{times:.1f} in {layers.en}", f"{times:.1f}倍({layers.ja})") for layers, times in kinds), ", ", "、"
        )
        return Both(
            f"The sum of all heads varies in so many times the directions of one head: {each.en}.",
            f"全ヘッドの和が変化する方向の数は、1個のヘッドの{each.ja}です。",
        )

    def follow(self, words: Mapping[str, float]) -> Both:
        kept = {
            kind: (_mean(words, "side_by_side", kind), _mean(words, "projected", kind))
            for kind in by_kind(words, "ratio")
        }
        return joined(
            Both(
                f"In {layers_named([kind]).en} the heads' contributions side by side vary in {apart:.1f} directions, "
                f"and their sum in {after / apart:.0%} as many.",
                f"{layers_named([kind]).ja}では、ヘッドの寄与を並べたものは{apart:.1f}方向に変化し、"
                f"和の方向の数はその{after / apart:.0%}です。",
            )
            for kind, (apart, after) in kept.items()
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        series = {"one": "one head", "side_by_side": "side by side", "projected": "projected"}
        return figure_of(layer_dots(table, series, label="effective rank"))


def _mean(words: Mapping[str, float], name: str, kind: str) -> float:
    """Of a number over the layers of a kind."""
    return float(np.mean(by_kind(words, name)[kind]))


def _ranks(weights: Sequence[Tensor]) -> Callable[[Sequence[Moments]], np.ndarray]:
    """From blocks of moments to the three ranks, and the ratio of the last to the first."""
    joined = torch.cat(list(weights), dim=1)
    # contributions in coordinates of each head's own, which keep lengths and angles: z alone can be scaled at will
    apart = torch.block_diag(*(torch.linalg.qr(own)[1] for own in weights))

    def ranks(blocks: Sequence[Moments]) -> np.ndarray:
        moments = Moments.total(blocks)
        covariance = moments.second(moments.mean) / moments.n
        each = [_rank(covariance[own, own], own_w) for own, own_w in zip(moments.slices, weights, strict=True)]
        written = [rank for rank in each if not isnan(rank)]  # a head that writes nothing varies in no direction
        one = np.mean(written) if written else np.nan
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
