"""C6: heads look at different feature spaces, so that together they see from several sides."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from headscope.errors import InputError
from headscope.likeness.comparing import similarity
from headscope.likeness.measures.cka import Cka
from headscope.reporting.figures import count_curves, figure_of, layer_dots
from headscope.statistics.moments import Moments
from headscope.studies.bilingual import NOTHING, Both
from headscope.studies.claims import CLAIMS, FAILS, HOLDS, SEEDS_DRAWN, Measured, ModelClaim, Verdict, in_part
from headscope.studies.headcount.results import Sweep
from headscope.studies.headcount.telling import mean_table
from headscope.studies.subjects import Subject
from headscope.surplus.effective import effective_spread

__all__ = ["Diversity"]

_ENDS = ("share", "share_low", "share_high")
_MANY, _FEW = 0.5, 0.25  # of the way from all alike to no two alike


@CLAIMS.register("C6")
class Diversity(ModelClaim):
    """How many unrelated heads the heads of a layer amount to."""

    kind: ClassVar[str] = "experiment"
    about: ClassVar[Both] = Both("different feature spaces", "異なる特徴空間")
    says: ClassVar[Both] = Both(
        "Each head works in a feature space of its own; together they see relations from many sides.",
        "各ヘッドは異なる特徴空間で独自に情報を処理し、関係を多角的に評価する。",
    )
    where_ja: ClassVar[str] = "マルチヘッドアテンションの概要"
    means: ClassVar[Both] = Both("", "")
    measured: ClassVar[Both] = Both(
        "Outputs z of every two heads of a layer are compared by linear CKA over the text (Kornblith et al. 2019, "
        "arXiv:1905.00414), and the effective number of heads is the exponential of the entropy of the eigenvalues of "
        "that matrix (Friedman and Dieng 2023, arXiv:2210.02410): 1 if all N are alike, N if no two are. It is held "
        "against both: (effective − 1) / (N − 1). Beside it, how alike maps are by Jensen–Shannon (1 − the divergence "
        "in bits; `headscope.similarity`, pattern_js), a few rows, and the same on random tokens.",
        "",
    )
    unit: ClassVar[Both] = Both(
        "effective heads beyond one, over heads beyond one, mean over layers", "(有効ヘッド数−1)÷(ヘッド数−1)(層の平均)"
    )
    interval: ClassVar[Both] = Both("95%, the mean over layers of each layer's ends", "")
    rule: ClassVar[Both] = Both(
        "supported if at least a half, by the low end; not supported if at most a quarter, by the high end; else "
        "depends",
        "",
    )
    drawn: ClassVar[Both] = (
        Both(
            "Each layer; dotted lines are the rule's, for effective heads. Bars: 95% over documents, of one model. ",
            "",
        )
        + SEEDS_DRAWN
    )
    limits: ClassVar[Both] = Both(
        "CKA sees linear likeness of outputs on this text, two heads at a time: what no other head has, several may "
        "have together (C9). Few tokens make heads look more alike than they are. How far a model is trained matters: "
        "the reference, at a learning rate that left it at 2.07 nats a byte, came to 0.81. What single heads look at "
        "is told by `headscope.roles`.",
        "",
    )
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def measure(self, subject: Subject) -> Measured:
        rows = []
        for layer, blocks in subject.moments.items():
            whole = Moments.total(blocks)
            if len(whole.dims) < 2:
                continue
            spread = effective_spread(blocks)
            ends = (float(spread.centre), *(float(end) for end in spread.interval()))
            shares = {name: (value - 1) / (len(whole.dims) - 1) for name, value in zip(_ENDS, ends, strict=True)}
            alike = Cka().compare({"moments": whole})[np.triu_indices(len(whole.dims), 1)]
            rows.append(
                {
                    "layer": layer,
                    "n_heads": len(whole.dims),
                    "effective": ends[0],
                    **shares,
                    "cka": float(np.nanmean(alike)),
                }
            )
        if not rows:
            raise InputError("no layer has two heads to compare")
        table = pd.DataFrame(rows)
        effect, low, high = (float(table[name].mean()) for name in _ENDS)
        numbers = {"cka": float(table["cka"].mean()), "heads": float(table["n_heads"].mean())}
        numbers["effective"] = float(table["effective"].mean())
        maps = similarity(subject.model, [subject.few], "pattern_js", anatomy=subject.anatomy, seed=subject.seed)
        pairs = maps.to_frame()
        # of a model that takes no tokens, and of layers that see none, there are no random ones: one mean beside the
        # other is over the same pairs, or there is none
        by_chance = float(pairs["random_tokens"].mean(skipna=False)) if maps.nulls else float("nan")
        numbers |= {"maps": float(pairs["value"].mean()), "maps_random": by_chance}
        return Measured(effect, f"{subject.n_documents} documents", numbers, table, low, high)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        if words["low"] >= _MANY:
            return HOLDS
        return FAILS if words["high"] <= _FEW else in_part(Both("", ""))

    def say(self, words: Mapping[str, float]) -> Both:
        chance = words["maps_random"]
        beside = f", on random tokens by {chance:.2f}" if chance == chance else ""
        return Both(
            f"The {words['heads']:.3g} heads of a layer count as {words['effective']:.1f} unrelated ones "
            f"({words['effect']:.0%}); mean CKA of two heads {words['cka']:.2f}. Their maps are alike "
            f"by {words['maps']:.2f}{beside}.",
            "",
        )

    def beside(self, sweep: Sweep) -> tuple[Both, Mapping[str, Figure]]:
        own = sweep.runs[sweep.runs["effective_heads"].notna()]
        if own.empty:
            return NOTHING, {}
        table = mean_table(own, "effective_heads", lambda mean: f"{mean:.3g}")
        sentence = f"Effective heads of a layer, by the number of heads that it has:\n\n{table}"
        return Both(sentence, ""), {
            "effective_heads": count_curves(sweep.runs, "effective_heads", label="effective heads")
        }

    def draw(self, table: pd.DataFrame) -> Figure:
        series = {"share": "effective heads (0: all alike, 1: no two)", "cka": "mean CKA"}
        return figure_of(layer_dots(table, series, label="0 to 1", lines={"a half": _MANY, "a quarter": _FEW}))
