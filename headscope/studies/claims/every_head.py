"""C12: each head captures something different, so that every head's output matters."""

from collections.abc import Mapping
from typing import ClassVar

import pandas as pd
from matplotlib.figure import Figure

from headscope.formatting import number
from headscope.reporting.figures import figure_of, sorted_dots
from headscope.studies.claims import CLAIMS, DEPENDS, NOT_SUPPORTED, SUPPORTED, Measured, ModelClaim
from headscope.studies.shares import head_rows, share_beyond
from headscope.studies.subjects import Subject

__all__ = ["EveryHead"]

_SIZE = 0.001  # of the intact model's loss; of a distance, itself
_NEARLY_ALL, _HALF = 0.9, 0.5


@CLAIMS.register("C12")
class EveryHead(ModelClaim):
    """What removing each head alone costs."""

    about: ClassVar[str] = "every head matters"
    about_ja: ClassVar[str] = "どのヘッドも重要"
    says: ClassVar[str] = "Each head's output captures a different feature, so each of them is important."
    says_ja: ClassVar[str] = "各ヘッドの出力は異なる特徴を捉えるため、それぞれの出力が重要。"
    measured: ClassVar[str] = (
        "Every head is switched off alone, exactly, and the metric taken again on the same text (Michel et al. 2019, "
        "arXiv:1905.10650). A head matters if that costs more than 0.1% of the loss, or 0.001 where the metric is a "
        "distance to the intact model."
    )
    unit: ClassVar[str] = "share of heads that matter"
    rule: ClassVar[str] = (
        "supported if more than nine heads in ten matter; not supported if fewer than half do; else depends"
    )
    limits: ClassVar[str] = (
        "Ends of the interval count heads whose own 95% interval lies wholly above the size, and heads whose interval "
        "reaches above it. A head alone: two that stand in for each other both seem not to matter. By a distance to "
        "the intact model no head can be seen to harm."
    )
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def measure(self, subject: Subject) -> Measured:
        size = _SIZE if subject.judged_by.is_distance else _SIZE * abs(subject.intact)
        table = head_rows(subject.worth, "effect").assign(size=size)
        effect, low, high = share_beyond(table, "effect", size)
        helped = float((table["effect_high"] < 0).mean())
        numbers = {"size": size, "helped": helped, "heads": float(len(table)), "largest": float(table["effect"].max())}
        return Measured(effect, low, high, f"{subject.worth.facts['documents']} documents", numbers, table)

    def decide(self, words: Mapping[str, float]) -> str:
        if words["low"] > _NEARLY_ALL:
            return SUPPORTED
        return NOT_SUPPORTED if words["high"] < _HALF else DEPENDS

    def say(self, words: Mapping[str, float]) -> str:
        return (
            f"Of {words['heads']:g} heads, {words['effect']:.0%} cost more than {number(words['size'])} when they alone"
            f" are removed (the dearest {number(words['largest'])}); the model does better without "
            f"{words['helped']:.0%}."
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        size = float(table["size"].iloc[0])
        return figure_of(sorted_dots(table, "effect", label="cost of removing the head", size=size, log=True))
