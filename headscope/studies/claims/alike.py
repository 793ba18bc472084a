"""C9: many heads learn the same, so that some are redundant."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from headscope.effects.sweep import group_effects
from headscope.planning.rises import Rise
from headscope.reporting.figures import count_curves, figure_of, removal_curves, sorted_dots
from headscope.studies.bilingual import NOTHING, Both
from headscope.studies.claims import CLAIMS, FAILS, HOLDS, Measured, ModelClaim, Verdict, in_part
from headscope.studies.headcount.results import Sweep
from headscope.studies.headcount.telling import mean_table
from headscope.studies.shares import head_rows, share_beyond
from headscope.studies.subjects import Subject
from headscope.verdict.preparation import Budget

__all__ = ["Alike"]

_MOST_OF_IT = 0.5  # of what a head writes, that the rest of its layer restores
_MANY, _FEW = 0.5, 0.1  # shares of the heads


@CLAIMS.register("C9")
class Alike(ModelClaim):
    """Heads that the rest of their layer restores for the most part, and heads that can go."""

    kind: ClassVar[str] = "experiment"
    about: ClassVar[Both] = Both("redundancy", "ヘッド間の冗長性")
    says: ClassVar[Both] = Both(
        "Many heads may learn similar patterns. This redundancy makes the model less efficient, and quality does not "
        "always rise.",
        "多くのヘッドが同様のパターンを学習してしまうことがあり、冗長性が発生する。モデルの効率が下がり、必ずしも性能が"
        "向上しない場合がある。",
    )
    where_ja: ClassVar[str] = "ヘッド数が多すぎる場合の問題点"
    means: ClassVar[Both] = Both("", "")
    measured: ClassVar[Both] = Both(
        "For every head, the share of its contribution that the other heads of its layer restore linearly, on "
        "documents that the fit did not see (ridge regression; `headscope.importance`, replaceability). Beside it, how"
        " many heads can be removed together at a cost of 1% of the loss, or of 0.01 where the metric is a distance to "
        "the intact model, the least important first; ordered and judged on the same text, so that it is rather too "
        "many.",
        "",
    )
    unit: ClassVar[Both] = Both("share of heads restored by more than half", "半分を超えて復元できるヘッドの割合")
    interval: ClassVar[Both] = Both(
        "from the share of heads whose own 95% interval lies above one half to the share of those whose interval "
        "reaches above it",
        "",
    )
    rule: ClassVar[Both] = Both(
        "supported if more than half of the heads are, by the low end; not supported if fewer than a tenth, by the "
        "high end; else depends",
        "",
    )
    drawn: ClassVar[Both] = Both("Bars: 95% over documents, of each head. The dotted line is one half.", "")
    limits: ClassVar[Both] = Both(
        "Restorable is not removable: what the rest restores it restores once its weights are adjusted to it. How many"
        " heads can go as they are is the second number. Heads that are unlike in pairs (C6) may be restored all the "
        "same, by many others together. Linear restoration within a layer only; with little text fits carry over "
        "badly, and less is restored than could be. How far a model is trained matters: the reference, at a learning "
        "rate that left it at 2.07 nats a byte, had 40% of its heads restored by more than half. Whether quality rises"
        " with more heads is asked under C7 and C11.",
        "",
    )
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def measure(self, subject: Subject) -> Measured:
        table = head_rows(subject.restored, "restored")
        effect, low, high = share_beyond(table, "restored", _MOST_OF_IT)
        numbers = {"mean": float(table["restored"].mean()), "heads": float(len(table))}
        if subject.evidence is None:  # an analysis says by itself which heads can go
            numbers["removable"] = _removable(subject)
        return Measured(effect, f"{subject.n_documents} documents", numbers, table, low, high)

    def decide(self, words: Mapping[str, float]) -> Verdict:
        if words["low"] > _MANY:
            return HOLDS
        return FAILS if words["high"] < _FEW else in_part(Both("", ""))

    def say(self, words: Mapping[str, float]) -> Both:
        gone = f"; {words['removable']:.0%} can go together at a cost of 1%" if "removable" in words else ""
        return Both(
            f"Of {words['heads']:g} heads, {words['effect']:.0%} are restored by more than half from the rest of their "
            f"layer (mean share restored {words['mean']:.0%}){gone}.",
            "",
        )

    def beside(self, sweep: Sweep) -> tuple[Both, Mapping[str, Figure]]:
        own = sweep.runs[sweep.runs["removable"].notna()]
        if own.empty:
            return NOTHING, {}
        table = mean_table(own, "removable", lambda mean: f"{mean:.0%}")
        sentence = (
            "Share of the heads that can be removed together at a cost of 1% of what was learnt, ordered on other rows "
            "than it is judged on, by the number of heads of a layer. With few heads the steps are large: one head of a"
            " layer of one is half of all. Were more heads more redundant, it would rise along a row; learners that "
            f"learnt nothing have nothing to lose.\n\n{table}\n\nBeneath it error with that share removed (means over "
            "seeds, fixed width; at 100% no attention is left), and how alike heads are."
        )
        figures = {
            "removable": count_curves(sweep.runs, "removable", label="share removable at 1%"),
            "removal": removal_curves(sweep.removal[sweep.removal["task"].isin(own["task"])]),
            "cka": count_curves(sweep.runs, "cka", label="mean CKA of two heads"),
        }
        return Both(sentence, ""), figures

    def draw(self, table: pd.DataFrame) -> Figure:
        return figure_of(sorted_dots(table, "restored", label="share that the layer restores", size=_MOST_OF_IT))


def _removable(subject: Subject) -> float:
    """Share of the heads that can be removed together at a cost of 1%, the least important first."""
    worth = subject.worth
    order = np.argsort(worth.score, kind="stable")[: int(np.isfinite(worth.score).sum())]  # NaN comes last
    ranked = [worth.heads[place] for place in order]
    most = Rise.read(Budget().max_loss_rise).above(subject.intact, subject.judged_by.is_distance)
    for size in range(1, len(ranked) + 1):
        gone = [ranked[:size]]
        effects = group_effects(subject.model, subject.sample, subject.judged_by, subject.anatomy, gone)
        if effects.values.mean() > most:
            return (size - 1) / len(ranked)
    return 1.0
