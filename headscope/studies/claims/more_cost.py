"""C8: more heads cost more compute and memory, in training and in inference."""

from collections.abc import Mapping
from typing import ClassVar

import pandas as pd
from matplotlib.figure import Figure

from headscope.reporting.figures import cost_curves, count_curves
from headscope.reporting.figures.style import ARM_NAMES
from headscope.studies.bilingual import Both
from headscope.studies.claims import CLAIMS, FAILS, HOLDS, CostClaim, Measured, Verdict, in_part
from headscope.studies.headcount.results import Sweep
from headscope.studies.scaling import growth

__all__ = ["MoreCost"]

_MORE = 1.1  # times as much: less than that is no more


@CLAIMS.register("C8")
class MoreCost(CostClaim):
    """Time, memory and operations with the most heads, over those with one."""

    kind: ClassVar[str] = "experiment"
    about: ClassVar[Both] = Both("more heads cost more", "ヘッド数と計算コスト・メモリ")
    says: ClassVar[Both] = Both(
        "With more heads computation and memory grow, so that training and inference can get less efficient.",
        "ヘッド数が増えると計算量やメモリ使用量も増加し、トレーニングや推論の効率が低下する可能性がある。",
    )
    where_ja: ClassVar[str] = "ヘッド数が多すぎる場合の問題点"
    means: ClassVar[Both] = Both("", "")
    measured: ClassVar[Both] = Both(
        "Layers with 1 to 64 heads are timed in turns in one process, with the width shared among heads and with heads"
        " of fixed size, in training and inference, with maps written out (eager) and without (sdpa). Bytes and "
        "operations are counted, and operations equal the count by hand.",
        "",
    )
    unit: ClassVar[Both] = Both(
        "time of the most heads over one, at fixed width, eager inference",
        "最多ヘッドと1ヘッドの推論時間の比(幅固定、eager)",
    )
    interval: ClassVar[Both] = Both("95%, over rounds of timing", "")
    rule: ClassVar[Both] = Both(
        "supported if time, memory and operations all grow (over 1.1 times, with the interval) in both arms, both "
        "modes, with both kernels; not supported if none does; else it depends on those",
        "",
    )
    drawn: ClassVar[Both] = Both("Bands: 95% over rounds of timing.", "")
    limits: ClassVar[Both] = Both(
        "One layer of attention on the machine named; a whole model dilutes it. That operations do not grow at fixed "
        "width follows from how attention is defined: the products are the same, cut otherwise.",
        "",
    )

    def measure(self, costs: pd.DataFrame) -> Measured:
        own = costs[(costs["part"] == "attention") & (costs["against"] == "heads")]
        grown = growth(own).set_index(["arm", "mode", "kernel", "quantity"])
        times = grown.drop("analytic", level="quantity")
        numbers = {
            f"{'_'.join(place)}{end}": float(value)
            for end in ("", "_low", "_high")
            for place, value in times[f"times{end}"].items()
        }
        numbers["most"] = float(own["n_heads"].max())
        first = grown.loc[("width", "inference", "eager", "seconds")]
        middle, low, high = (float(first[f"times{end}"]) for end in ("", "_low", "_high"))
        return Measured(middle, f"{int(first['rounds'])} rounds", numbers, own, low, high)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        lows, highs = ([v for name, v in words.items() if name.endswith(f"_{end}")] for end in ("low", "high"))
        if min(lows) > _MORE:
            return HOLDS
        return FAILS if max(highs) <= _MORE else in_part(Both("", ""))

    def say(self, words: Mapping[str, float]) -> Both:
        still = [f"{what} at {where}" for (what, where), most in _grown(words).items() if not most > _MORE]
        same = f" No growth: {'; '.join(still)}." if still else ""
        width, head_dim = (_arm(words, arm) for arm in ARM_NAMES)
        return Both(f"With {words['most']:g} heads in place of 1, {width}. {head_dim.capitalize()}.{same}", "")

    def beside(self, sweep: Sweep) -> tuple[Both, Mapping[str, Figure]]:
        labels = {
            "parameters": "parameters",
            "flops": "operations a step",
            "memory": "memory of a step",
            "seconds": "processor time of a step",
        }
        figures = {name: count_curves(sweep.runs, name, label=label) for name, label in labels.items()}
        sentence = (
            "What whole learners took that were trained with few heads and with many, one thread each. A step of the "
            "smallest takes a millisecond or two, and such times scatter."
        )
        return Both(sentence, ""), figures

    def draw(self, table: pd.DataFrame) -> Figure:
        return cost_curves(table, "attention", "heads")


_KERNELS = ("eager", "sdpa")


def _arm(words: Mapping[str, float], arm: str) -> str:
    """What one arm takes, in times: eager and sdpa, in inference and in training."""

    def times(quantity: str, mode: str) -> str:
        eager, sdpa = (f"{words[f'{arm}_{mode}_{kernel}_{quantity}']:.3g}" for kernel in _KERNELS)
        return f"× {eager}" if eager == sdpa else f"× {eager} eager and × {sdpa} sdpa"

    parts = []
    for quantity, name in (("flops", "operations"), ("bytes", "memory"), ("seconds", "time")):
        inference, training = times(quantity, "inference"), times(quantity, "training")
        parts.append(f"{name} {inference}" + ("" if inference == training else f" (in training {training})"))
    return f"at {ARM_NAMES[arm]}: {'; '.join(parts)}"


def _grown(words: Mapping[str, float]) -> dict[tuple[str, str], float]:
    """How much each quantity grows at the most, over both modes, by (quantity and kernel, arm) in words."""
    found: dict[tuple[str, str], float] = {}
    for arm, where in ARM_NAMES.items():
        for quantity, name in (("flops", "operations"), ("bytes", "memory"), ("seconds", "time")):
            for kernel in _KERNELS:
                what = name if quantity == "flops" else f"{name} ({kernel})"
                own = [words[f"{arm}_{mode}_{kernel}_{quantity}_high"] for mode in ("inference", "training")]
                found[what, where] = max(*own, found.get((what, where), 0.0))
    return found
