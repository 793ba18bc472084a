"""Formulas of the paper held against what a model computes: the same but for rounding, layer by layer."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from math import inf
from typing import ClassVar

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from headscope._support.formatting import count
from headscope.anatomy.check import tolerance
from headscope.errors import NumericalError
from headscope.reporting.figures import figure_of, layer_dots
from headscope.studies.bilingual import NOTHING, Both
from headscope.studies.claims import SEEDS_DRAWN, Measured, ModelClaim, Verdict, claim_named, in_layers
from headscope.studies.subjects import Subject

__all__ = ["MadeAgain", "apart"]

_FLOOR = 1e-9  # of the figure: less is nothing in float32


class MadeAgain(ModelClaim):
    """A claim that a formula gives what a model computes."""

    kind: ClassVar[str] = "definition"
    drawn_with: ClassVar[tuple[str, ...]] = ("C2", "C3", "C4")
    unit: ClassVar[Both] = Both("largest difference, of the layer's largest value", "層の最大値に対する最大差の比")
    rule: ClassVar[Both] = Both(
        "it holds if no layer differs by more than rounding allows: 0.01% of the layer's largest value in float32, 1% "
        "in float16, 5% in bfloat16; it does not hold if every layer does; else it holds in part",
        "どの層でも差が丸め誤差の許容範囲(層の最大値に対し、float32で0.01%、float16で1%、bfloat16で5%)"
        "に収まれば成り立ち、"
        "すべての層で超えれば成り立たず、それ以外は一部で成り立つ",
    )
    drawn: ClassVar[Both] = (
        Both(
            "The largest difference in each layer, of the layer's largest value, for the formulas of those of C2, C3 "
            "and C4 that were asked. What is below 10⁻⁹, or zero, stands there. The dotted line is what rounding "
            "allows.",
            "C2、C3、C4のうち測定したものの式についての、各層の最大差(その層の最大値に対する比)。10⁻⁹未満の値とゼロは10⁻⁹の"
            "位置に示す。点線は丸め誤差の許容範囲。",
        )
        + SEEDS_DRAWN
    )
    bounds: ClassVar[tuple[float, float]] = (0.0, inf)

    @abstractmethod
    def compare(self, subject: Subject) -> Iterator[dict[str, float]]:
        """A row for each layer that can be asked: what `apart` gives, and further numbers by name.

        Args:
            subject: the model and its text.

        Raises:
            AnatomyError: there is no such layer.
        """

    @abstractmethod
    def found(self, words: Mapping[str, float]) -> Both:
        """What was found, in a sentence; further numbers of layers are there as the largest of all."""

    def measure(self, subject: Subject) -> Measured:
        table = pd.DataFrame(list(self.compare(subject)))
        further = table.columns.drop(["layer", "difference", "allowed"])
        numbers = {f"largest_{name}": float(table[name].max()) for name in further}
        numbers["layers"] = float(len(table))
        numbers["kept"] = float((table["difference"] <= table["allowed"]).sum())
        numbers["left_out"] = float(len(subject.anatomy.sites) - len(table))
        return Measured(float(table["difference"].max()), count(len(table), "layer"), numbers, table)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        return in_layers(words["kept"], words["layers"])

    def say(self, words: Mapping[str, float]) -> Both:
        left_out = int(words["left_out"])
        without = Both(
            f"{count(left_out, 'layer')} could not be asked.", f"ほかに測定できない層が{left_out}層あります。"
        )
        return self.found(words) + (without if left_out else NOTHING)

    def draw(self, table: pd.DataFrame) -> Figure:
        """See `Claim.draw`; several claims' rows, told apart by a column `claim`, are drawn side by side."""
        own = table if "claim" in table else table.assign(claim="")
        rows = [name for name in ("training_seed", "layer") if name in own]
        shown = own.pivot(index=rows, columns="claim", values="difference").clip(lower=_FLOOR)
        series = {name: f"{name}: {claim_named(name).about.en}" if name else "" for name in shown}
        allowed, label = float(table["allowed"].max()), "largest difference, relative"
        lines = {f"{100 * allowed:.2g}%": allowed}
        ax = layer_dots(shown.reset_index(), series, label=label, log=True, lines=lines)
        ax.set_ylim(_FLOOR / 2, 10 * max(allowed, float(shown.max(axis=None))))
        return figure_of(ax)


def apart(layer: int, made: Tensor, real: Tensor, *sources: Tensor) -> dict[str, float]:
    """How far what was made again is from what a layer computed: layer, difference and allowed, of its largest number.

    Args:
        layer: the layer's number.
        made: by the formula.
        real: by the model, of the same shape.
        sources: what `made` was made from; the coarsest of all formats says what rounding allows.

    Raises:
        NumericalError: NaN or infinity on either side.
    """
    made, wanted = made.detach().double(), real.detach().double()
    if not (made.isfinite().all() and wanted.isfinite().all()):
        raise NumericalError(
            f"layer {layer} computes NaN or infinity on this text, and nothing can be held against that"
        )
    difference = float((made - wanted).abs().max())
    allowed = max(tolerance(one.dtype) for one in (real, *sources))
    relative = float(torch.tensor(difference) / wanted.abs().max()) if difference else 0.0
    return {"layer": layer, "difference": relative, "allowed": allowed}
