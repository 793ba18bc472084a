"""C12: each head captures something different, so that every head's output matters."""

from collections.abc import Mapping
from math import isnan
from typing import ClassVar

import pandas as pd
from matplotlib.figure import Figure

from headscope._support.formatting import number
from headscope.reporting.figures import figure_of, sorted_dots
from headscope.studies.bilingual import Both
from headscope.studies.claims import CLAIMS, FAILS, HOLDS, Measured, ModelClaim, Verdict, in_part
from headscope.studies.shares import head_rows, share_beyond
from headscope.studies.subjects import Subject

__all__ = ["EveryHead"]

_SIZE = 0.001  # of the intact model's loss; of a distance, itself
_NEARLY_ALL, _HALF = 0.9, 0.5


@CLAIMS.register("C12")
class EveryHead(ModelClaim):
    """What removing each head alone costs."""

    kind: ClassVar[str] = "experiment"
    about: ClassVar[Both] = Both("every head matters", "どのヘッドも重要")
    says: ClassVar[Both] = Both(
        "Each head's output captures a different feature, so each of them is important.",
        "各ヘッドの出力は異なる特徴を捉えるため、それぞれの出力が重要である。",
    )
    where_ja: ClassVar[str] = "アテンション出力の生成"
    means: ClassVar[Both] = Both("", "")
    measured: ClassVar[Both] = Both(
        "Every head is switched off alone, exactly, and the metric taken again on the same text, a sample where there "
        "is much of it, as each head takes a forward pass (Michel et al. 2019, arXiv:1905.10650). A head matters if "
        "that costs more than 0.1% of the loss, or 0.001 where the metric is a distance to the intact model.",
        "",
    )
    unit: ClassVar[Both] = Both("share of heads that matter", "重要なヘッドの割合")
    interval: ClassVar[Both] = Both(
        "from the share of heads whose own 95% interval lies above the size to the share of those whose interval "
        "reaches above it",
        "",
    )
    rule: ClassVar[Both] = Both(
        "supported if more than nine heads in ten matter, by the low end; not supported if fewer than half do, by the "
        "high end; else depends",
        "",
    )
    drawn: ClassVar[Both] = Both(
        "Bars: 95% over documents, of each head. The dotted line is the size; the axis is logarithmic on either side "
        "of 0, and linear next to it.",
        "",
    )
    limits: ClassVar[Both] = Both(
        "A head alone: two that stand in for each other both seem not to matter. By a distance to "
        "the intact model no head can be seen to harm.",
        "",
    )
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def measure(self, subject: Subject) -> Measured:
        size = _SIZE if subject.judged_by.is_distance else _SIZE * abs(subject.intact)
        table = head_rows(subject.worth, "effect").assign(size=size, unit=subject.judged_by.unit)
        effect, low, high = share_beyond(table, "effect", size)
        numbers = {
            "heads": float(len(table)),
            "largest": float(table["effect"].max() / size * _SIZE),
            "surely": low,
            "distance": float(subject.judged_by.is_distance),
            "helped": float((table["effect_high"] < 0).mean()),
        }
        return Measured(effect, f"{subject.worth.facts['documents']} documents", numbers, table, low, high)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        if words["low"] > _NEARLY_ALL:
            return HOLDS
        return FAILS if words["high"] < _HALF else in_part(Both("", ""))

    def say(self, words: Mapping[str, float]) -> Both:
        surely = "" if isnan(words["surely"]) else f" ({words['surely']:.0%} with their whole interval)"
        if words["distance"]:
            size, largest, helped = f"{_SIZE:g} (a distance to the intact model)", number(words["largest"]), ""
        else:
            size, largest = f"{_SIZE:.1%} of the loss", f"{words['largest']:.2%}"
            helped = f" Removing {words['helped']:.0%} of them lowers it, with the whole interval."
        return Both(
            f"Of {words['heads']:g} heads, {words['effect']:.0%}{surely} cost more than {size} when they alone are "
            f"removed; the costliest {largest}.{helped}",
            "",
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        size, unit = float(table["size"].mean()), "".join(table["unit"].dropna().unique())  # read back, "" is NaN
        label = f"cost of removing the head, {unit}" if unit else "cost of removing the head"
        return figure_of(sorted_dots(table, "effect", label=label, size=size, log=True))
