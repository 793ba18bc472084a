"""C8: more heads cost more compute and memory, in training and in inference."""

from collections.abc import Mapping
from typing import ClassVar

import pandas as pd
from matplotlib.figure import Figure

from headscope.reporting.figures import cost_curves, count_curves
from headscope.studies.claims import CLAIMS, DEPENDS, NOT_SUPPORTED, SUPPORTED, CostClaim, Measured
from headscope.studies.headcount.results import Sweep
from headscope.studies.scaling import growth

__all__ = ["MoreCost"]

_MORE = 1.1  # times as much: less than that is no more


@CLAIMS.register("C8")
class MoreCost(CostClaim):
    """Time, memory and operations with the most heads, over those with one."""

    about: ClassVar[str] = "more heads cost more"
    about_ja: ClassVar[str] = "ヘッド数と計算コスト・メモリ"
    says: ClassVar[str] = (
        "With more heads computation and memory grow, so that training and inference get less efficient."
    )
    says_ja: ClassVar[str] = "ヘッド数が増えると計算量やメモリ使用量も増加し、トレーニングや推論の効率が低下する。"
    measured: ClassVar[str] = (
        "Layers with 1 to 64 heads are timed in turns in one process, with the width shared among heads and with heads"
        " of fixed size, in training and inference, with maps written out (eager) and without (sdpa). Bytes and "
        "operations are counted, and operations equal the count by hand."
    )
    unit: ClassVar[str] = "time of the most heads over one, at fixed width, eager inference"
    rule: ClassVar[str] = (
        "supported if time, memory and operations all grow (over 1.1 times) in both arms, both modes, with both "
        "kernels; not supported if none does; else depends"
    )
    limits: ClassVar[str] = "One layer of attention on the machine named; a whole model dilutes it."

    def measure(self, costs: pd.DataFrame) -> Measured:
        own = costs[(costs["part"] == "attention") & (costs["against"] == "heads")]
        grown = growth(own).set_index(["arm", "mode", "kernel", "quantity"])
        times = grown["times"].drop("analytic", level="quantity")
        numbers = {"_".join(place): float(value) for place, value in times.items()}
        first = grown.loc[("width", "inference", "eager", "seconds")]
        ends = float(first["times"]), float(first["times_low"]), float(first["times_high"])
        return Measured(*ends, f"{int(first['rounds'])} rounds", {**numbers, "most": float(own["n_heads"].max())}, own)

    def decide(self, words: Mapping[str, float]) -> str:
        times = [value for name, value in words.items() if name.startswith(("width_", "head_dim_"))]
        if min(times) > _MORE:
            return SUPPORTED
        return DEPENDS if max(times) > _MORE else NOT_SUPPORTED

    def say(self, words: Mapping[str, float]) -> str:
        width, fixed = (
            [
                words[f"{arm}_training_{kernel}"]
                for kernel in ("eager_flops", "eager_bytes", "sdpa_bytes", "eager_seconds")
            ]
            for arm in ("width", "head_dim")
        )
        return (
            f"From 1 to {words['most']:g} heads at fixed width, training takes {width[0]:.1f} times the operations, "
            f"{width[1]:.1f} times the memory with maps written out and {width[2]:.1f} without, and {width[3]:.1f} "
            f"times as long; at fixed head_dim {fixed[0]:.0f}, {fixed[1]:.0f}, {fixed[2]:.0f} and {fixed[3]:.0f} times."
        )

    def beside(self, sweep: Sweep) -> tuple[str, Mapping[str, Figure]]:
        labels = {
            "parameters": "parameters",
            "flops": "operations a step",
            "memory": "bytes a step",
            "seconds": "seconds",
        }
        figures = {name: count_curves(sweep.runs, name, label=label) for name, label in labels.items()}
        return "What whole learners took that were trained with few heads and with many, one thread each.", figures

    def draw(self, table: pd.DataFrame) -> Figure:
        return cost_curves(table, "attention", "heads")
