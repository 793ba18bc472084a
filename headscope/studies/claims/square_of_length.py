"""C5: every query meets every key, so that cost grows with the square of the length."""

from collections.abc import Mapping
from typing import ClassVar

import pandas as pd
from matplotlib.figure import Figure

from headscope.reporting.figures import cost_curves
from headscope.studies.claims import CLAIMS, DEPENDS, NOT_SUPPORTED, SUPPORTED, CostClaim, Measured
from headscope.studies.scaling import growth

__all__ = ["SquareOfLength"]

_SQUARE, _LINEAR = 1.8, 1.2  # exponents from which on it grows with the square, and below which it does not


@CLAIMS.register("C5")
class SquareOfLength(CostClaim):
    """Exponents of time, memory and operations against length."""

    about: ClassVar[str] = "cost ∝ length²"
    about_ja: ClassVar[str] = "コストは系列長の二乗"
    says: ClassVar[str] = (
        "Every query is compared with every key (10 tokens: 10 × 10 pairs), so cost grows with length squared."
    )
    says_ja: ClassVar[str] = "各クエリが全てのキーと比較される(10トークンなら10×10組)。コストは系列長の二乗で増える。"
    measured: ClassVar[str] = (
        "Layers of several lengths are timed in turns in one process, each exponent is fitted once a round, and bytes "
        "and operations are counted beside it. The exponent that decides is that of time over the last doubling, where "
        "the maps weigh most, in inference, with maps written out."
    )
    unit: ClassVar[str] = "exponent of time over the last doubling"
    rule: ClassVar[str] = (
        "supported if time, memory and operations all have exponents above 1.8 there with either kernel; not supported "
        "if none has; depends otherwise"
    )
    limits: ClassVar[str] = (
        "On the machine named, at the lengths shown. Time at short lengths is what starting a kernel costs, and the "
        "projections grow with the length itself, not its square."
    )

    of_a_model: ClassVar[bool] = True

    def measure(self, costs: pd.DataFrame) -> Measured:
        part = "attention" if "attention" in set(costs["part"]) else str(costs["part"].iloc[0])
        own = costs[(costs["part"] == part) & (costs["against"] == "length") & (costs["mode"] == "inference")]
        grown = growth(own).set_index(["kernel", "quantity"])
        kernels = own["kernel"].unique().tolist()
        first = grown.loc[("eager" if "eager" in kernels else kernels[0], "seconds")]
        numbers = {
            f"{kernel}_{quantity}": float(grown.loc[(kernel, quantity), "last"])
            for kernel in kernels
            for quantity in ("seconds", "bytes", "flops")
        }
        sizes = {"shortest": float(own["length"].min()), "longest": float(own["length"].max())}
        rounds = f"{int(first['rounds'])} rounds"
        ends = float(first["last"]), float(first["last_low"]), float(first["last_high"])
        return Measured(
            *ends, rounds, {**numbers, **sizes}, costs[(costs["part"] == part) & (costs["against"] == "length")]
        )

    def decide(self, words: Mapping[str, float]) -> str:
        exponents = [value for name, value in words.items() if name.endswith(("_seconds", "_bytes", "_flops"))]
        if min(exponents) > _SQUARE:
            return SUPPORTED
        return NOT_SUPPORTED if max(exponents) < _LINEAR else DEPENDS

    def say(self, words: Mapping[str, float]) -> str:
        parts = []
        for kernel in ("eager", "sdpa"):
            if f"{kernel}_seconds" in words:
                time, memory, operations = (words[f"{kernel}_{name}"] for name in ("seconds", "bytes", "flops"))
                parts.append(f"{kernel}: time T^{time:.2f}, memory T^{memory:.2f}, operations T^{operations:.2f}")
        return f"From {words['longest'] / 2:g} to {words['longest']:g} tokens, {'; '.join(parts)}."

    def draw(self, table: pd.DataFrame) -> Figure:
        return cost_curves(table, str(table["part"].iloc[0]), "length")
