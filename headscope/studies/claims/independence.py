"""C13: heads compute independently of each other."""

from collections.abc import Mapping
from math import isnan, nan
from typing import ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from headscope._support.formatting import number
from headscope.effects.ablation import ablate
from headscope.errors import AnatomyError
from headscope.reporting.figures import figure_of, layer_dots
from headscope.studies.bilingual import Both
from headscope.studies.claims import CLAIMS, FAILS, HOLDS, Measured, ModelClaim, Verdict
from headscope.studies.subjects import Subject

__all__ = ["Independence"]

_MOST_LAYERS = 8  # that a head is removed in


@CLAIMS.register("C13")
class Independence(ModelClaim):
    """What removing a head does to the maps of the others."""

    kind: ClassVar[str] = "definition"
    about: ClassVar[Both] = Both("independent heads", "ヘッドの独立性")
    says: ClassVar[Both] = Both(
        "Every head computes its attention independently of the others.", "アテンションの計算は各ヘッドが独立して行う。"
    )
    where_ja: ClassVar[str] = "アテンションスコアの計算"
    means: ClassVar[Both] = Both("", "")
    measured: ClassVar[Both] = Both(
        "One head of a layer is switched off, and the maps of all other heads are captured again: those of its own "
        "layer must be the same to the last bit; those of later layers are compared by total variation (half the "
        "summed difference of a query's weights: 0 = the same, 1 = nothing in common).",
        "",
    )
    unit: ClassVar[Both] = Both("largest change of another map in the layer", "同じ層の他のマップの最大変化")
    rule: ClassVar[Both] = Both("supported if no map of the same layer changes at all; not supported otherwise", "")
    drawn: ClassVar[Both] = Both(
        "How far maps move, by how many layers they come after the removed head's own (0: its own layer). Small marks: "
        "single removals; large marks: their mean.",
        "",
    )
    limits: ClassVar[Both] = Both(
        "A head is switched off after its map is made, so for heads side by side this confirms the wiring, and could "
        "not come out otherwise. Independent within a layer only: later layers read what earlier heads wrote, and "
        "training ties all heads by one loss. One head of each of up to eight layers, on a few rows.",
        "",
    )
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def measure(self, subject: Subject) -> Measured:
        sites = subject.anatomy.apart.sites
        if not sites:
            raise AnatomyError("no head of this model can be switched off alone")
        intact = subject.look("pattern")
        chosen = sorted({round(place) for place in np.linspace(0, len(sites) - 1, min(len(sites), _MOST_LAYERS))})
        rows = []
        for site in (sites[place] for place in chosen):
            with ablate(subject.model, [site.heads[0]], anatomy=subject.anatomy):
                without = subject.look("pattern")
            for layer, own in without.items():
                moved = (own.pattern.double() - intact[layer].pattern.double()).abs()
                rows.append(
                    {
                        "removed_in": site.layer, "layer": layer, "behind": layer - site.layer,
                        "largest": float(moved.max()), "variation": float(moved.sum(-1).mean() / 2),
                    }
                )  # fmt: skip
        table = pd.DataFrame(rows)
        same, later = table[table["behind"] == 0], table[table["behind"] > 0]
        worst = float(same["largest"].max())
        numbers = {
            "later": float(later["variation"].mean()) if len(later) else nan,
            "removed": float(len(chosen)),
        }
        return Measured(worst, f"{len(chosen)} heads removed", numbers, table)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        return HOLDS if words["effect"] == 0 else FAILS

    def say(self, words: Mapping[str, float]) -> Both:
        same = "stay the same to the last bit" if words["effect"] == 0 else f"change by up to {number(words['effect'])}"
        later = f"; those of later layers move by a total variation of {number(words['later'])} on average"
        return Both(
            f"With a head removed, the maps of the other heads in its layer {same}"
            f"{'' if isnan(words['later']) else later}.",
            "",
        )

    def draw(self, table: pd.DataFrame) -> Figure:
        moved = table.loc[table["behind"] >= 0, ["behind", "variation"]]
        ax = layer_dots(moved.rename(columns={"behind": "layer"}), {"variation": ""}, label="total variation of maps")
        ax.set_xlabel("layers after the removed head's (0: its own)")
        return figure_of(ax)
