"""C5: every query meets every key, so that cost grows with the square of the length."""

from collections.abc import Mapping
from typing import ClassVar

import pandas as pd
from matplotlib.figure import Figure

from headscope.reporting.figures import cost_curves
from headscope.studies.bilingual import Both
from headscope.studies.claims import CLAIMS, FAILS, HOLDS, CostClaim, Measured, Verdict, in_part
from headscope.studies.scaling import growth

__all__ = ["SquareOfLength"]

_SQUARE, _LINEAR = 1.8, 1.2  # exponents from which on it grows with the square, and below which it does not


@CLAIMS.register("C5")
class SquareOfLength(CostClaim):
    """Exponents of time, memory and operations against length."""

    kind: ClassVar[str] = "definition"
    about: ClassVar[Both] = Both("cost ∝ length²", "コストはシーケンス長の二乗に比例")
    says: ClassVar[Both] = Both(
        "Every query is compared with every key (10 tokens: 10 × 10 pairs). [So cost grows with the square of the "
        "length.]",
        "各クエリが全てのキーと比較される(10トークンなら10×10組)。[したがってコストはシーケンス長の二乗に比例する。]",
    )
    where_ja: ClassVar[str] = "シーケンス全体に対するアテンション計算"
    means: ClassVar[Both] = Both("", "")
    measured: ClassVar[Both] = Both(
        "Of the reference one layer of attention alone is timed, of a named model the whole model, on a row of its "
        "text that is repeated; several lengths in turns in one process, many rounds. Bytes and operations are counted"
        " beside it. An exponent is the logarithm to base 2 of how many times as much the last doubling of the length "
        "takes, where the maps weigh most, in inference; the table's is that of time with maps written out (eager), "
        "and beside it stand those of a kernel that never writes them (sdpa; Dao et al. 2022, arXiv:2205.14135).",
        "",
    )
    unit: ClassVar[Both] = Both(
        "exponent of time over the last doubling, eager inference",
        "推論時間が長さの何乗で増えるか(最後に長さを2倍にした区間、eager)",
    )
    interval: ClassVar[Both] = Both("95%, over rounds of timing", "")
    rule: ClassVar[Both] = Both(
        "supported if the exponents of time, memory and operations are all above 1.8, with their intervals and both "
        "kernels; not supported if all are below 1.2; else it depends on which and on the kernel",
        "",
    )
    drawn: ClassVar[Both] = Both(
        "Bands: 95% over rounds of timing. The dotted line beneath grows with the square of the length.", ""
    )
    limits: ClassVar[Both] = Both(
        "On the machine named, at the lengths shown. At short lengths most of the time goes into starting kernels; the"
        " projections, and in a whole model the layers between, grow with the length itself, not its square, so that a"
        " model may seem linear until its maps outweigh them. An exponent of time above 2 is the machine's and no law:"
        " operations and bytes never grow faster than the square; perhaps maps outgrow the processor's cache. Rounds "
        "are of one session: another, on the same two shared processors, gave 3.5.",
        "",
    )

    of_a_model: ClassVar[bool] = True

    def measure(self, costs: pd.DataFrame) -> Measured:
        part = "attention" if "attention" in set(costs["part"]) else str(costs["part"].iloc[0])
        own = costs[(costs["part"] == part) & (costs["against"] == "length") & (costs["mode"] == "inference")]
        grown = growth(own).set_index(["kernel", "quantity"])
        kernels = own["kernel"].unique().tolist()
        first = grown.loc[("eager" if "eager" in kernels else kernels[0], "seconds")]
        numbers = {
            f"{kernel}_{quantity}{end}": float(grown.loc[(kernel, quantity), f"last{end}"])
            for kernel in kernels
            for quantity in ("seconds", "bytes", "flops")
            for end in ("", "_low", "_high")
        }
        sizes = {
            "whole": float(part == "model"),
            "shortest": float(own["length"].min()),
            "longest": float(own["length"].max()),
        }
        rounds = f"{int(first['rounds'])} rounds"
        middle, low, high = (float(first[f"last{end}"]) for end in ("", "_low", "_high"))
        table = costs[(costs["part"] == part) & (costs["against"] == "length")]
        return Measured(middle, rounds, {**numbers, **sizes}, table, low, high)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        lows, highs = ([v for name, v in words.items() if name.endswith(f"_{end}")] for end in ("low", "high"))
        if min(lows) > _SQUARE:
            return HOLDS
        return FAILS if max(highs) < _LINEAR else in_part(Both("", ""))

    def say(self, words: Mapping[str, float]) -> Both:
        parts = []
        for kernel in ("eager", "sdpa"):
            if f"{kernel}_seconds" in words:
                time, memory, operations = (words[f"{kernel}_{name}"] for name in ("seconds", "bytes", "flops"))
                parts.append(f"{kernel}: time T^{time:.2f}, memory T^{memory:.2f}, operations T^{operations:.2f}")
        what = "The whole model, from" if words["whole"] else "One layer of attention, from"
        return Both(f"{what} {words['longest'] / 2:g} to {words['longest']:g} tokens, {'; '.join(parts)}.", "")

    def draw(self, table: pd.DataFrame) -> Figure:
        return cost_curves(table, str(table["part"].iloc[0]), "length")
